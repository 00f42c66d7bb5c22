"""conv2d against its formula in float64: forward, both gradients, second order, every road that leads to it."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
import fastcnn.functional as F
from fastcnn.ops import conv2d as conv
from tests.cases import ALEXNET, MOBILENET, RESNET50, RESNEXT50, VGG16

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
GEOMETRY = ((2, 1), (1, 0), (1, 1), 2)


def random_case(seed: int) -> dict:
    """A geometry that hits edges: sizes of one, primes, indivisible channels, strides beyond the kernel, dilation."""
    r = random.Random(seed)
    while True:
        groups = r.choice([1, 1, 1, 2, 3, 4, 8])
        group_in = r.choice([1, 2, 3, 4, 5, 7, 8, 16, 17, 32] if groups < 8 else [1, 2, 4, 8])
        group_out = r.choice([group_in, group_in, 1, 2, 3, 7, 8, 16, 33] if groups < 8 else [group_in, 3])
        kernel = r.choice([1, 1, 2, 3, 3, 5, 7]), r.choice([1, 2, 3, 3, 5])
        stride = r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3, 4])
        padding = r.choice([0, 1, 2, 3]), r.choice([0, 1, 2])
        dilation = r.choice([1, 1, 2]), r.choice([1, 1, 2, 3])
        size = r.choice([1, 5, 7, 13, 14, 19]), r.choice([1, 5, 7, 13, 14, 17, 29])
        if all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel)):
            break
    return {
        "x": (r.choice([1, 1, 2, 3]), group_in * groups, *size),
        "weight": (group_out * groups, group_in, *kernel),
        "geometry": (stride, padding, dilation, groups),
        "dtype": r.choice(DTYPES),
        "layouts": [r.choice(LAYOUTS) for _ in range(4)],
        "bias": r.random() < 0.5,
        "residual": r.random() < 0.4,
        "relu": r.random() < 0.4,
        "packed": r.random() < 0.5,
    }


def tolerance(dtype: torch.dtype, terms: int, scale: torch.Tensor) -> torch.Tensor:
    """A sum of `terms` products in the accumulator type: rounding errors add up like a random walk, so
    4 * sqrt(terms) * eps of the largest sum of magnitudes covers them; storing rounds once more, half an ulp."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    eps = 4 * (terms + 4) ** 0.5 * torch.finfo(accumulator).eps
    return (eps + torch.finfo(dtype).eps) * scale.clamp(min=1e-3)


@pytest.mark.parametrize("seed", range(120))
def test_equals_the_formula(seed):
    case = random_case(seed)
    dtype, geometry = case["dtype"], case["geometry"]
    torch.manual_seed(seed)
    x, weight = (torch.randn(case[k]).to(dtype).to(memory_format=f) for k, f in zip(("x", "weight"), case["layouts"]))
    bias = torch.randn(weight.shape[0]).to(dtype) if case["bias"] else None
    x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
    plain = conv.reference(x64, w64, None, None, *geometry, False)
    residual = torch.randn(plain.shape).to(dtype).to(memory_format=case["layouts"][2]) if case["residual"] else None
    want = conv.reference(x64, w64, bias, residual, *geometry, case["relu"])
    magnitude = conv.reference(
        x.abs(), weight.abs(), bias.abs() if case["bias"] else None, None if residual is None else residual.abs(),
        *geometry, False,
    )  # fmt: skip
    terms = weight[0].numel()

    packed = torch.ops.fastcnn._pack_weight(weight, geometry[3]) if case["packed"] else None
    flat = (*geometry[0], *geometry[1], *geometry[2], geometry[3])
    got = conv.ops.raw(x, weight, packed, bias, residual, flat, case["relu"], 1)
    assert ((got - want).abs() <= tolerance(dtype, terms, magnitude)).all()

    grad = torch.randn(plain.shape).to(dtype).to(memory_format=case["layouts"][3])
    dx, dw = torch.autograd.grad(plain, (x64, w64), grad.double())
    mx, mw = torch.autograd.grad(
        conv.reference(a := x.abs().double().requires_grad_(), b := weight.abs().double().requires_grad_(), None, None,
                       *geometry, False), (a, b), grad.abs().double(),
    )  # fmt: skip
    got = torch.ops.fastcnn.conv2d_backward_input(grad, weight, x.shape, *geometry)
    assert ((got - dx).abs() <= tolerance(dtype, terms * weight.shape[0], mx)).all()
    got = torch.ops.fastcnn.conv2d_backward_weight(grad, x, weight.shape, *geometry)
    assert ((got - dw).abs() <= tolerance(dtype, grad[:, 0].numel(), mw)).all()


@pytest.mark.parametrize(
    "layer", [*ALEXNET, *VGG16[-2:], *RESNET50[-4:], *RESNEXT50, *MOBILENET], ids=lambda layer: layer.name
)
def test_named_layers(layer):
    """At their real sizes, on one image, against stock PyTorch's float64."""
    torch.manual_seed(0)
    x = torch.randn(layer.input_shape()).to(memory_format=torch.channels_last)
    weight = torch.randn(layer.weight_shape)
    y = F.conv2d(x, weight, None, **layer.kwargs)
    want = torch.nn.functional.conv2d(x.double(), weight.double(), None, **layer.kwargs)
    magnitude = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), None, **layer.kwargs)
    assert ((y - want).abs() <= tolerance(torch.float32, weight[0].numel(), magnitude)).all()
    assert y.is_contiguous(memory_format=torch.channels_last)


def gradient_inputs():
    torch.manual_seed(0)
    shapes = (2, 4, 6, 5), (6, 2, 3, 3), (6,), (2, 6, 3, 3)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def test_gradcheck_and_gradgradcheck():
    inputs = gradient_inputs()
    functional = lambda x, w, b, r: F.conv2d(x, w, b, *GEOMETRY, activation="relu", residual=r)
    public = lambda x, w, b, r: torch.ops.fastcnn.conv2d(x, w, b, r, *GEOMETRY, True, 1)
    for f in (functional, public):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, w, b, r = gradient_inputs()
    x, r = (t.detach().to(memory_format=layout).requires_grad_() for t in (x, r))
    torch.library.opcheck(torch.ops.fastcnn.conv2d.default, (x, w, b, r, *GEOMETRY, True, 1))
    flat = (2, 1, 1, 0, 1, 1, 2)
    torch.library.opcheck(
        torch.ops.fastcnn._conv2d.default, (x.detach(), w.detach(), None, b.detach(), None, flat, False, 1)
    )
    g = torch.randn_like(r, requires_grad=True)
    torch.library.opcheck(torch.ops.fastcnn.conv2d_backward_input.default, (g, w, list(x.shape), *GEOMETRY))
    torch.library.opcheck(torch.ops.fastcnn.conv2d_backward_weight.default, (g, x, list(w.shape), *GEOMETRY))
    torch.library.opcheck(torch.ops.fastcnn._pack_weight.default, (w.detach(), 2))


def test_functional_transforms():
    x, w, b, _ = (t.detach() for t in gradient_inputs())
    f = lambda x, w: F.conv2d(x, w, b, 1, 0, 1, 2, activation="relu").square().sum()
    want = torch.autograd.grad(f(x, w.requires_grad_()), w)[0]
    torch.testing.assert_close(torch.func.grad(f, 1)(x, w.detach()), want)
    xs, ws = torch.randn(3, *x.shape, dtype=x.dtype), torch.randn(3, *w.shape, dtype=x.dtype)
    conv_one = lambda x, w: F.conv2d(x, w, b, 1, 0, 1, 2)
    for dims in ((0, None), (None, 0), (0, 0)):
        args = (xs if dims[0] == 0 else x, ws if dims[1] == 0 else w.detach())
        pick = lambda i, args=args, dims=dims: [a[i] if d == 0 else a for a, d in zip(args, dims)]
        want = torch.stack([conv_one(*pick(i)) for i in range(3)])
        torch.testing.assert_close(torch.vmap(conv_one, dims)(*args), want)
        got = torch.vmap(torch.func.grad(f, 1), dims)(*args)
        want = torch.stack([torch.func.grad(f, 1)(*pick(i)) for i in range(3)])
        torch.testing.assert_close(got, want)


def test_compile_and_export():
    torch._dynamo.reset()
    module = fastcnn.nn.Conv2d(3, 5, 3, padding=1)
    compiled = torch.compile(lambda x: module(x * 2).relu(), fullgraph=True, dynamic=True)
    for size in (8, 9, 12):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        want = module(x * 2).relu()
        torch.testing.assert_close(compiled(x), want)
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(want.sum(), x))
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.conv2d.default) in str(exported.graph)
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), module(torch.cat([x, x])))


def test_autocast_casts_to_its_dtype():
    module, x = fastcnn.nn.Conv2d(3, 5, 3), torch.randn(1, 3, 8, 8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert module(x).dtype == dtype
            y = torch.ops.fastcnn.conv2d(x, module.weight, None, None, (1, 1), (0, 0), (1, 1), 1, False, 1)
            assert y.dtype == dtype
            assert F.conv2d(x.double(), module.weight.double()).dtype == torch.float64
        module(x).sum().backward()
        assert module.weight.grad.dtype == torch.float32


def test_flops_equal_stock():
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    counts = []
    for function in (F.conv2d, torch.nn.functional.conv2d):
        w = torch.randn(6, 4, 3, 3, requires_grad=True)  # one group: stock counts a grouped weight gradient twice
        with FlopCounterMode(display=False) as counter:
            function(x, w, None, 2, 1).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 1, (2, 1), "same", "valid"])
def test_module_equals_torch(mode, padding):
    torch.manual_seed(0)
    stock = torch.nn.Conv2d(4, 6, (4, 3), padding=padding, padding_mode=mode, groups=2)
    module = fastcnn.nn.Conv2d(4, 6, (4, 3), padding=padding, padding_mode=mode, groups=2)
    module.load_state_dict(stock.state_dict())
    assert repr(module) == repr(stock)
    assert isinstance(module, torch.nn.Conv2d)
    for x in (
        torch.randn(2, 4, 9, 8),
        torch.randn(4, 9, 8),
        torch.randn(0, 4, 9, 8),
        torch.randn(2, 9, 8, 4).mT.transpose(1, 3),
    ):
        if x.shape[-3] == 4:
            torch.testing.assert_close(module(x), stock(x))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "changed",
    [{"stride": 2}, {"stride": (2,)}, {"stride": [2, 1]}, {"padding": 2}, {"padding": "same"}, {"dilation": (2,)},
     {"bias": None}],
    ids=str,
)  # fmt: skip
def test_module_reads_its_attributes_as_torch_does(changed, gradients):
    stock, module = torch.nn.Conv2d(4, 6, 3, padding=1), fastcnn.nn.Conv2d(4, 6, 3, padding=1)
    module.load_state_dict(stock.state_dict())
    x = torch.randn(2, 4, 9, 8)
    for either in (stock, module):
        for name, value in changed.items():
            setattr(either, name, value)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(module(x), stock(x))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_module_logs_a_call_once(mode, gradients, monkeypatch, caplog):
    monkeypatch.setattr(fastcnn._config.config, "verbose", True)
    module = fastcnn.nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
    with torch.set_grad_enabled(gradients), caplog.at_level("INFO", "fastcnn"):
        module(torch.randn(1, 4, 9, 8))
    assert [r.getMessage().partition("(")[0] for r in caplog.records] == ["conv2d"]


def test_module_without_weight_says_so():
    module = fastcnn.nn.Conv2d(4, 6, 3)
    module.weight = None
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises(TypeError, match="expected weight to be a Tensor"):
            module(torch.randn(1, 4, 9, 8))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(("channels", "groups", "kernel", "stride", "padding", "dilation"), [
    (16, 1, 3, 1, 1, 1), (3, 1, 7, 2, 3, 1), (32, 32, 3, 1, 1, 1), (8, 2, 3, 2, 2, 2),
    (5, 1, (3, 5), (1, 3), (6, 4), 1),
])  # fmt: skip
def test_padding_modes_without_a_copy(channels, groups, kernel, stride, padding, dilation, mode, dtype, layout):
    """Read where the mode says, or copied there first (what gradients make the module do): the same sums."""
    module = fastcnn.nn.Conv2d(channels, channels * 2 if groups == 1 else channels, kernel, stride, padding, dilation,
                               groups, padding_mode=mode, dtype=dtype)  # fmt: skip
    x = torch.randn(2, channels, 7, 61).to(dtype).to(memory_format=layout)
    copied = module(x)
    with torch.no_grad():
        read = module(x)
    assert read.stride() == copied.stride()
    torch.testing.assert_close(read, copied, rtol=0, atol=0)


def test_one_pixel_with_work_for_many_threads():
    """A map too small to share by pixels, in a layer that wakes the pool."""
    x, weight = torch.randn(1, 2048, 1, 1), torch.randn(17, 2048, 1, 1)
    y = F.conv2d(x.expand(8, -1, -1, -1), weight)
    wide = F.conv2d(x.expand(-1, -1, 3, 3).contiguous(), torch.randn(300, 2048, 3, 3), None)
    assert wide.shape == (1, 300, 1, 1)
    torch.testing.assert_close(
        y[3].flatten(), (weight.double().flatten(1) @ x.double().flatten()).float(), rtol=0, atol=1e-3
    )


def test_padding_modes_reach_no_further_than_the_input():
    for mode, padding in (("reflect", 5), ("circular", 6)):
        module = fastcnn.nn.Conv2d(2, 2, 3, padding=padding, padding_mode=mode)
        with torch.no_grad(), pytest.raises(RuntimeError, match="Padding size should be"):
            module(torch.zeros(1, 2, 5, 5))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_what_fastcnn_does_not_compute_runs_stock(dtype):
    x, w = torch.ones(1, 1, 5, 5, dtype=dtype), torch.ones(1, 1, 3, 3, dtype=dtype)
    assert torch.equal(F.conv2d(x, w), torch.nn.functional.conv2d(x, w))
    choice = fastcnn.explain(F.conv2d, x.shape, w.shape, dtype=dtype).rows
    assert all("stock" in row.kernel for row in choice)


def test_epilogue_keeps_nan():
    x = torch.zeros(1, 16, 3, 3).to(memory_format=torch.channels_last)
    x[0, 3, 1, 1] = torch.nan
    y = F.conv2d(x, torch.ones(16, 16, 1, 1), activation="relu")
    assert y[0, :, 1, 1].isnan().all()
    assert y.isnan().sum() == 16


def test_gradient_of_relu_is_zero_at_zero():
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    F.conv2d(x, torch.ones(1, 1, 1, 1), activation="relu").sum().backward()
    assert (x.grad == 0).all()


def test_settings():
    with pytest.raises(ValueError, match="set_accuracy: expected one of strict, default, fast, but got 'exact'"):
        fastcnn.set_accuracy("exact")
    with pytest.raises(ValueError, match="expected activation"):
        F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), activation="gelu")
    with fastcnn.set_accuracy("strict"):
        F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
