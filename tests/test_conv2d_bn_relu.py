"""conv2d_bn_relu against its formula in float64 and torch's modules: both modes, all gradients, running statistics."""

import functools
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
import fastcnn.functional as F
from fastcnn.ops import conv2d_bn_relu as fused
from tests.test_conv2d import DTYPES, LAYOUTS, random_case

GEOMETRY = ((2, 1), (1, 0), (1, 1), 2)
ops = torch.ops.fastcnn


def tensors(case, dtype):
    """x, weight, bias, residual, bn_weight, bn_bias of a geometry of test_conv2d's."""
    x, weight = (torch.randn(case[k]).to(dtype).to(memory_format=f) for k, f in zip(("x", "weight"), case["layouts"]))
    weight /= weight[0].numel() ** 0.5
    o = weight.shape[0]
    stride, padding, dilation, groups = case["geometry"]
    size = torch.nn.functional.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups).shape
    residual = torch.randn(size).to(dtype).to(memory_format=case["layouts"][2]) if case["residual"] else None
    return x, weight, torch.randn(o).to(dtype) if case["bias"] else None, residual, torch.rand(o) + 0.5, torch.randn(o)


def error(dtype, terms):
    """z: `terms` products in the accumulator type (see test_conv2d), stored in dtype; its deviation from the mean is
    then divided by a standard deviation of about 1 (the tests' data), and y stored in dtype again. Twelve: values up
    to four deviations, times a weight up to 1.5, times two roundings."""
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return 12 * (4 * (terms + 4) ** 0.5 * accumulator + torch.finfo(dtype).eps)


@pytest.mark.parametrize("seed", range(80))
def test_training_equals_the_formula(seed):
    case = random_case(seed)
    dtype, geometry = case["dtype"], case["geometry"]
    args = tensors(case, dtype)
    relu = case["relu"]
    wanted, _z, mean, var = fused.reference(*args, geometry, 1e-5, relu)
    if wanted[:, 0].numel() < 2 or var.min() < 1e-3:
        pytest.skip("too few values for a variance that a test could compare")
    y, z_out, mean_out, var_out = ops.conv2d_bn_relu(*args, *geometry, 1e-5, relu)
    bound = error(dtype, args[1][0].numel()) / var.min().sqrt().clamp(max=1)
    assert y.dtype == dtype
    assert mean_out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=float(bound) * 4)
    torch.testing.assert_close(mean_out.double(), mean, rtol=0, atol=float(bound))
    torch.testing.assert_close(var_out.double(), var, rtol=float(bound), atol=float(bound))
    # The variance is that of what was stored, to the accumulator's precision.
    stored = z_out.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(var_out.double(), stored, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-9)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "geometry"), [
    ((2, 64, 56, 56, 64, 3), ((1, 1), (1, 1), (1, 1), 1)),
    ((2, 64, 28, 29, 19, 1), ((2, 2), (0, 0), (1, 1), 1)),
    ((3, 32, 15, 13, 32, 3), ((1, 1), (1, 1), (1, 1), 8)),
    ((2, 3, 37, 41, 24, 7), ((2, 2), (3, 3), (1, 1), 1)),
    ((5, 7, 1, 1, 5, 1), ((1, 1), (0, 0), (1, 1), 1)),
])  # fmt: skip
def test_gradients_equal_those_of_torchs_modules(shape, geometry, layout, residual, relu):
    n, c, h, w, o, k = shape
    x = torch.randn(n, c, h, w).to(memory_format=layout).requires_grad_()
    weight = (torch.randn(o, c // geometry[3], k, k) / (c * k * k) ** 0.5).requires_grad_()
    gamma, beta = (torch.rand(o) + 0.5).requires_grad_(), torch.randn(o).requires_grad_()
    stats = [torch.randn(o), torch.rand(o)]
    kept = [s.double() for s in stats]
    leaves = [x, weight, gamma, beta]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    z = torch.nn.functional.conv2d(wide[0], wide[1], None, *geometry)
    u = torch.nn.functional.batch_norm(z, *kept, *wide[2:], True, 0.3)
    r = torch.randn(z.shape).to(memory_format=layout).requires_grad_() if residual else None
    if residual:
        leaves.append(r)
        wide.append(r.detach().double().requires_grad_())
        u = u + wide[-1]
    wanted = u.relu() if relu else u
    y = F.conv2d_bn_relu(
        x, weight, None, *stats, gamma, beta, *geometry, training=True, momentum=0.3,
        activation="relu" if relu else None, residual=r,
    )  # fmt: skip
    g = torch.randn(y.shape)
    # Where the ReLU's input is within rounding of zero either sign is right.
    g = torch.where(u.detach().abs() < 1e-4, 0, g)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close([s.double() for s in stats], kept, rtol=1e-5, atol=1e-5)
    for got, want in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(wanted, wide, g.double())):
        # Sums over up to 6272 pixels of values of magnitude 1 that largely cancel.
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(
            got.double(), want, rtol=0, atol=2e-5 * scale * max(1.0, y[:, 0].numel() ** 0.5 / 16)
        )


@pytest.mark.parametrize("seed", range(80, 120))
def test_inference_equals_the_formula(seed):
    case = random_case(seed)
    dtype, geometry = case["dtype"], case["geometry"]
    x, weight, bias, residual, gamma, beta = tensors(case, dtype)
    mean, var = torch.randn(weight.shape[0]), torch.rand(weight.shape[0]) + 0.5
    weight = torch.nn.Parameter(weight)
    z = fastcnn.ops.conv2d.reference(x, weight.detach(), bias, None, *geometry, False)

    def check():
        y = F.conv2d_bn_relu(
            x, weight, bias, mean, var, gamma, beta, *geometry, activation="relu" if case["relu"] else None,
            residual=residual,
        )  # fmt: skip
        u = (z - mean.double().view(-1, 1, 1)) / (var.double().view(-1, 1, 1) + 1e-5).sqrt()
        u = u * gamma.double().view(-1, 1, 1) + beta.double().view(-1, 1, 1)
        u = u if residual is None else u + residual.double()
        wanted = u.relu() if case["relu"] else u
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=error(dtype, weight[0].numel()) * 4)

    with torch.no_grad():
        check()
        var.mul_(4)  # a kept fold must not survive this
        check()
    check()  # folded by differentiable ops where gradients are wanted


def test_the_module_is_conv_then_batch_norm():
    for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"activation": None}):
        ours = fastcnn.nn.ConvBNReLU2d(6, 10, 3, padding=1, **options)
        stock = torch.nn.Sequential(torch.nn.Conv2d(6, 10, 3, padding=1, bias=False), torch.nn.BatchNorm2d(
            10, momentum=options.get("momentum", 0.1), affine=options.get("affine", True),
            track_running_stats=options.get("track_running_stats", True),
        ))  # fmt: skip
        names = {"conv": "0", "bn": "1"}
        stock.load_state_dict({names[k.split(".")[0]] + k[k.index(".") :]: v for k, v in ours.state_dict().items()})
        for step in range(4):
            if step == 3:
                ours.eval(), stock.eval()
            x = torch.randn(4, 6, 9, 8)
            wanted = stock(x) if options.get("activation", "relu") is None else stock(x).relu()
            torch.testing.assert_close(ours(x), wanted, rtol=1e-4, atol=1e-4)
        for (k, a), (_, b) in zip(ours.state_dict().items(), stock.state_dict().items()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=k)


def test_from_modules_shares_and_hooks_are_called():
    conv, bn = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), torch.nn.BatchNorm2d(8)
    m = fastcnn.nn.ConvBNReLU2d.from_modules(conv, bn, None)
    x = torch.randn(2, 3, 7, 7)
    wanted = bn.eval()(conv(x))
    assert m.conv.weight is conv.weight
    torch.testing.assert_close(m.eval()(x), wanted)
    seen = []
    conv.register_forward_hook(lambda *a: seen.append(1))
    torch.testing.assert_close(m(x), wanted)
    assert seen
    with pytest.raises(ValueError, match="activation to be None or 'relu', but got 'tanh'"):
        fastcnn.nn.ConvBNReLU2d(3, 8, 3, activation="tanh")


def small(dtype=torch.float64, residual=True):
    return (
        torch.randn(2, 4, 5, 4, dtype=dtype, requires_grad=True),
        torch.randn(6, 2, 2, 3, dtype=dtype, requires_grad=True),
        torch.randn(6, dtype=dtype, requires_grad=True),
        torch.randn(2, 6, 3, 2, dtype=dtype, requires_grad=True) if residual else None,
        torch.rand(6, dtype=dtype, requires_grad=True),
        torch.randn(6, dtype=dtype, requires_grad=True),
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_gradcheck(relu, residual):
    args = small(residual=residual)

    def f(*a):
        return ops.conv2d_bn_relu(*a, *GEOMETRY, 1e-5, relu)[0]

    def through_module_road(*a):
        x, weight, bias, r, gamma, beta = a
        return F.conv2d_bn_relu(
            x, weight, bias, None, None, gamma, beta, *GEOMETRY, training=True, residual=r,
            activation="relu" if relu else None,
        )  # fmt: skip

    for g in (f, through_module_road):
        assert torch.autograd.gradcheck(g, args)
        assert torch.autograd.gradgradcheck(g, args)


def split(x, weight, bias, r, gamma, beta, relu=True, eps=1e-5):
    """conv2d_bn_relu in training with the convolution and its statistics computed elsewhere, as by Triton's kernels."""
    z = F.conv2d(x, weight, bias, *GEOMETRY)
    var, mean = (t.detach() for t in torch.var_mean(z, (0, 2, 3), correction=0))
    return fused.ops.normalize(z, mean, var, gamma, beta, r, eps, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_normalize_conv2d(relu, residual):
    """The same y and gradients, of both orders, as of the op that convolves, too."""
    args = small(residual=residual)
    whole, apart = ops.conv2d_bn_relu(*args, *GEOMETRY, 1e-5, relu)[0], split(*args, relu=relu)
    torch.testing.assert_close(apart, whole)
    leaves, g = [a for a in args if a is not None], torch.randn_like(whole)
    for ours, wanted in zip(*(torch.autograd.grad(y, leaves, g) for y in (apart, whole))):
        torch.testing.assert_close(ours, wanted)
    assert torch.autograd.gradcheck(functools.partial(split, relu=relu), args)
    assert torch.autograd.gradgradcheck(functools.partial(split, relu=relu), args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_normalize_conv2d_has_the_same_bits(dtype, layout):
    """In both, and in the gradient, the sign of ReLU's input is that of one formula."""
    x, weight, _, r, gamma, beta = (t.detach().to(dtype) for t in small(torch.float32))
    args = (x.contiguous(memory_format=layout), weight, None, r, gamma.float(), beta.float())
    y, z, mean, var = ops._conv2d_bn_relu(*args, *GEOMETRY, 1e-5, True)
    assert ops._normalize_conv2d(z, mean, var, *args[4:], r, 1e-5, True).equal(y)


def test_normalize_conv2d_refuses_what_does_not_fit():
    z, c, r = torch.randn(2, 6, 3, 2), torch.rand(6), torch.randn(2, 6, 3, 3)
    with pytest.raises(RuntimeError, match="expected residual to have the output's size"):
        ops._normalize_conv2d(z, c, c, None, None, r, 1e-5, True)
    with pytest.raises(RuntimeError, match="mean"):
        ops._normalize_conv2d(z, c[:5], c, None, None, None, 1e-5, True)
    assert ops._normalize_conv2d(z[:0], c, c, None, None, None, 1e-5, True).shape == (0, 6, 3, 2)


def test_opcheck():
    z = torch.randn(2, 6, 3, 2, requires_grad=True)
    gamma, beta = small(torch.float32)[4:]
    for residual in (None, torch.randn_like(z, requires_grad=True)):
        torch.library.opcheck(
            ops.normalize_conv2d, (z, torch.rand(6), torch.rand(6), gamma, beta, residual, 1e-5, True)
        )
    for residual in (True, False):
        torch.library.opcheck(ops.conv2d_bn_relu, (*small(torch.float32, residual), *GEOMETRY, 1e-5, True))
    x, weight, bias, r, gamma, beta = (t.detach() for t in small(torch.float32))
    _, z, mean, var = ops._conv2d_bn_relu(x, weight, bias, r, gamma, beta, *GEOMETRY, 1e-5, True)
    torch.library.opcheck(ops._batch_norm_relu_backward, (r, z, r, mean, var, gamma, beta, 1e-5, True, True))


def test_vmap_and_func_grad():
    x, weight, bias, r, gamma, beta = small(torch.float64)

    def loss(weight, x, r):
        return F.conv2d_bn_relu(
            x, weight, bias, None, None, gamma, beta, *GEOMETRY, training=True, residual=r
        ).square().sum()  # fmt: skip

    xs, rs = torch.randn(3, *x.shape, dtype=torch.float64), torch.randn(3, *r.shape, dtype=torch.float64)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weight, xs, rs)
    for i in range(3):
        torch.testing.assert_close(per_sample[i], torch.autograd.grad(loss(weight, xs[i], rs[i]), weight)[0])


def test_compile_and_export():
    m = fastcnn.nn.ConvBNReLU2d(4, 8, 3, padding=1)
    x = torch.randn(2, 4, 9, 9)
    compiled = torch.compile(m, fullgraph=True, dynamic=True, backend="aot_eager")
    twin = fastcnn.nn.ConvBNReLU2d(4, 8, 3, padding=1)
    twin.load_state_dict(m.state_dict())
    y, wanted = compiled(x), twin(x)
    torch.testing.assert_close(y, wanted)
    y.sum().backward(), wanted.sum().backward()
    torch.testing.assert_close(m.conv.weight.grad, twin.conv.weight.grad)
    torch.testing.assert_close(m.bn.running_var, twin.bn.running_var)
    m.eval()
    torch.testing.assert_close(torch.export.export(m, (x,)).module()(x), m(x))


def test_autocast_keeps_the_normalization_wide():
    m = fastcnn.nn.ConvBNReLU2d(4, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = m(torch.randn(2, 4, 9, 9))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert m.bn.weight.grad.dtype == torch.float32
    assert m.bn.running_mean.dtype == torch.float32


def test_flops():
    with FlopCounterMode(display=False) as counter:
        args = [t.detach() for t in small(torch.float32)]
        ops._conv2d_bn_relu(*args, *GEOMETRY, 1e-5, True)
    assert counter.get_total_flops() == 2 * 2 * 6 * 3 * 2 * 2 * 2 * 3


def test_large_mean_keeps_the_variances_digits():
    """var = 1 around mean 1000: the difference of two sums of squares would keep none in float32."""
    x = torch.randn(4, 1, 40, 40) + 1000
    _, _, mean, var = ops._conv2d_bn_relu(
        x, torch.ones(1, 1, 1, 1), None, None, None, None, (1, 1), (0, 0), (1, 1), 1, 1e-5, True
    )
    torch.testing.assert_close(var, x.double().var((0, 2, 3), unbiased=False).float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)


def test_the_same_bits_for_any_number_of_threads():
    threads = torch.get_num_threads()
    for shape, k in (((3, 64, 56, 56), 1), ((3, 16, 57, 61), 3), ((2, 3, 70, 120), 7)):
        x = torch.randn(shape).to(memory_format=random.choice(LAYOUTS))
        args = (x, torch.randn(24, shape[1], k, k), None, None, None, None, (1, 1), (0, 0), (1, 1), 1, 1e-5, True)
        g = None
        found = []
        try:
            for n in (1, 2, 4):
                torch.set_num_threads(n)
                y, z, mean, var = ops._conv2d_bn_relu(*args)
                g = torch.randn_like(y) if g is None else g
                found.append(
                    [
                        y,
                        z,
                        mean,
                        var,
                        *ops._batch_norm_relu_backward(g, z, None, mean, var, None, None, 1e-5, True, False),
                    ]
                )
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_empty_batch_and_single_value():
    m = fastcnn.nn.ConvBNReLU2d(3, 4, 3, padding=1)
    before = m.bn.running_mean.clone()
    y = m(torch.zeros(0, 3, 5, 5))
    assert y.shape == (0, 4, 5, 5)
    y.sum().backward()
    assert torch.equal(m.bn.running_mean, before)
    assert not m.conv.weight.grad.any()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        m(torch.zeros(1, 3, 1, 1))


X, W = torch.zeros(2, 4, 5, 5), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"residual": torch.zeros(2, 6, 5, 5)}, RuntimeError, "residual to have the output's size"),
    ({"residual": torch.zeros(2, 6, 3, 3).double()}, RuntimeError, "residual type"),
    ({"bn_weight": torch.zeros(5)}, RuntimeError, "bn_weight to have 6 elements"),
    ({"bn_bias": torch.zeros(6, 1)}, RuntimeError, "bn_bias to have 6 elements"),
    ({"bn_bias": torch.zeros(6, dtype=torch.int32)}, RuntimeError, "dtype"),
    ({"weight": torch.zeros(6, 3, 3, 3)}, RuntimeError, "to have 3 channels"),
    ({"weight": torch.zeros(6, 4, 3)}, RuntimeError, "4D weight"),
    ({"weight": None}, TypeError, "weight to be a Tensor"),
    ({"stride": 0}, RuntimeError, "stride"),
    ({"stride": (1, 2, 3)}, RuntimeError, "stride"),
    ({"groups": 0}, RuntimeError, "groups"),
    ({"padding": -1}, RuntimeError, "padding"),
    ({"activation": "gelu"}, ValueError, "activation"),
    ({"training": False}, RuntimeError, "running_mean"),
    ({"input": torch.zeros(4, 4)}, RuntimeError, "input"),
])  # fmt: skip
def test_malformed_calls(change, error, message):
    args = {"input": X, "weight": W, "bias": None, "running_mean": None, "running_var": None, "bn_weight": None,
            "bn_bias": None, "training": True, **change}  # fmt: skip
    with pytest.raises(error, match=message):
        F.conv2d_bn_relu(**args)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_pass_through_as_in_torch(dtype):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float32)
    x[0, 0, 0, 0] = torch.nan
    x = x.to(dtype)
    weight = torch.ones(3, 1, 1, 1, dtype=dtype)
    y = F.conv2d_bn_relu(x, weight, None, None, None, None, None, groups=3, training=True)
    assert y[:, 0].isnan().all()
    assert not y[:, 1:].isnan().any()


@pytest.mark.cpu  # explain names the kernels of the CPU
def test_explain():
    x, w = (2, 8, 9, 9), (16, 8, 3, 3)
    training = lambda x, w: F.conv2d_bn_relu(x, w, None, None, None, None, None, training=True)
    (row,) = fastcnn.explain(training, x, w).rows
    (conv,) = fastcnn.explain(F.conv2d, x, w).rows
    assert row.op == "conv2d_bn_relu"
    assert row.kernel == f"{conv.kernel}, then batch_norm_relu ({fastcnn.cpu_capability()})"
    assert row.tile == conv.tile
    (folded,) = fastcnn.explain(fastcnn.nn.ConvBNReLU2d(8, 16, 3), x).rows  # one convolution in inference
    assert (folded.op, folded.where) == ("conv2d", "conv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_backward_closes_where_forward_did(dtype, layout):
    """ReLU's input is recomputed for the gradient. Here it is zero but for rounding in a quarter of all places; with
    values of few bits, and of as many as there are, since a product may be rounded or not."""
    torch.manual_seed(0)
    channels = 256
    for digits in (torch.arange(4.0), torch.randn(4)):
        x = digits.to(dtype)[torch.randint(4, (2, channels, 8, 8))].to(memory_format=layout)
        weight = torch.eye(channels).to(dtype).view(channels, channels, 1, 1).requires_grad_()
        x64 = x.double()
        mean, var = x64.mean((0, 2, 3)), x64.var((0, 2, 3), unbiased=False)
        bn_bias = (-(digits.to(dtype)[2].double() - mean) / (var + 1e-5).sqrt()).float()
        y = F.conv2d_bn_relu(x, weight, None, None, None, None, bn_bias, training=True)
        (dw,) = torch.autograd.grad(y, weight, (y == 0).to(dtype))
        assert not dw.any()
