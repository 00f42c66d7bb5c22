"""lrn_max_pool2d against its formula in float64, and to the bit against the two ops that it takes the place of."""

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import lrn_max_pool2d as fused
from fastcnn.ops import max_pool2d as pool
from tests.cases import find
from tests.test_local_response_norm import forward_bound

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NORM = {"size": 5, "alpha": 0.3, "beta": 0.75, "k": 2.0}
ALEXNET = {"kernel_size": 3, "stride": 2}
# Shape, normalization, pooling: bands of one and of several rows and channels, with and without remainders; windows
# that overlap, touch, leave gaps, reach over the border or over everything; positions in 32 bits.
GEOMETRIES = [
    ((2, 96, 13, 17), {"groups": 2, "activation": "relu"}, ALEXNET),
    ((3, 17, 40, 33), {}, {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "dilation": (2, 3)}),
    ((1, 6, 7, 5), {"size": 9}, {"kernel_size": 2, "stride": 1, "padding": 1, "ceil_mode": True}),
    ((1, 12, 130, 3), {"groups": 4}, {"kernel_size": 2, "stride": 3}),
    ((1, 70, 20, 18), {"size": 4}, {"kernel_size": (17, 16), "stride": 1}),
    ((2, 20, 11, 11), {"beta": 0.5}, {"kernel_size": 5, "stride": 1, "padding": 2}),
    ((1, 5, 8, 9), {"beta": 1.0, "groups": 5}, {"kernel_size": 3, "stride": None}),
    ((1, 7, 6, 300), {"size": 1, "beta": 0.3}, {"kernel_size": 3, "stride": (1, 4), "padding": 1, "ceil_mode": True}),
    ((2, 8, 1, 1), {}, {"kernel_size": 2, "stride": 1, "padding": 1}),
    ((1, 1, 1, 1), {}, {"kernel_size": 1}),
    ((1, 3, 2, 2), {}, {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3}),
    ((2, 150, 60, 61), {"size": 7}, ALEXNET),
    ((1, 9, 7, 300), {}, ALEXNET),
    ((2, 32, 10, 16), {}, ALEXNET),
]
ARGS = (5, 0.06, 0.75, 2.0, 1, False, (3, 3), (2, 2), (0, 0), (1, 1), False)  # of the ops


def pair_of_ops(x, norm, window):
    """The two functions one after the other; their defaults for a window are not lrn_max_pool2d's."""
    return F.max_pool2d(F.local_response_norm(x, **norm), **{**ALEXNET, **window})


def equal(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_pair_to_the_bit(geometry, dtype, layout):
    """The same kernels run on bands: bits, and so ties and gradients, are the same in every dtype."""
    shape, norm, window = geometry
    norm = {**NORM, **norm}
    x = (torch.randn(shape) * 3).to(dtype).to(memory_format=layout).requires_grad_()
    want = pair_of_ops(x, norm, window)
    y = F.lrn_max_pool2d(x, **norm, **window)
    equal(y, want)
    with torch.no_grad():
        equal(F.lrn_max_pool2d(x, **norm, **window), want)
    g = torch.randn_like(want)
    (dx,), (expected,) = torch.autograd.grad(y, x, g), torch.autograd.grad(want, x, g)
    equal(dx, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_equals_reference(groups, dtype, layout):
    """A maximum moves by no more than the values of its window: their bounds (test_local_response_norm), pooled."""
    args = (5, 0.1, 0.75, 2.0, groups, False, (3, 3), (2, 2), (1, 1), (1, 1), False)
    x = (torch.randn(2, 21, 14, 11) * 3).to(dtype).to(memory_format=layout)
    y, argmax = fused.ops.raw(x, *args)
    want, _ = fused.reference(x, *args)
    values = fused.norm.reference(x, *args[:6])
    unit = torch.finfo(dtype).eps / 2 if dtype in (torch.float16, torch.bfloat16) else 0.0
    bound = forward_bound(values, dtype, 5, 0.75) + unit * values.abs()
    excess = (y.double() - want).abs() - torch.nn.functional.max_pool2d(bound, 3, 2, 1)
    assert excess.max() <= torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert argmax.dtype == torch.uint8
    gathered = pool.ops.gather(F.local_response_norm(x, 5, 0.5, k=2.0, groups=groups), argmax, *args[6:])
    equal(gathered, y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["alexnet.lrn1", "alexnet.lrn2", "zfnet.lrn2"])
def test_named_layers(name, layout):
    case = find(name)
    x = torch.randn(2, case.channels, case.size, case.size).to(memory_format=layout).requires_grad_()
    norm = {"size": 5, "k": case.k, "alpha_mode": case.alpha_mode, "groups": case.groups, "activation": "relu"}
    y, want = F.lrn_max_pool2d(x, **norm), pair_of_ops(x, norm, {})
    equal(y, want)
    g = torch.randn_like(y)
    equal(*(torch.autograd.grad(t, x, g)[0] for t in (y, want)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_begin_anywhere(layout):
    """Rows of whole sectors, which CUDA's kernels walk without slack, but behind an element of another tensor."""
    aligned = torch.randn(2, 32, 10, 16).to(memory_format=layout)

    def shifted(tensor):
        memory = torch.empty(1 + tensor.numel())
        return memory.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)

    x, at_start = shifted(aligned).requires_grad_(), aligned.requires_grad_()
    y, want = F.lrn_max_pool2d(x, 5), F.lrn_max_pool2d(at_start, 5)
    equal(y, want)
    g = torch.randn(y.shape).to(memory_format=layout)
    equal(torch.autograd.grad(y, x, shifted(g))[0], torch.autograd.grad(want, at_start, g)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity(value, layout):
    x = torch.randn(2, 9, 12, 12).to(memory_format=layout)
    x[0, 3, 5, 5] = x[1, 8, 0, 11] = value
    equal(F.lrn_max_pool2d(x, 5, 0.3), pair_of_ops(x, {"size": 5, "alpha": 0.3}, {}))


def test_far_more_padding_than_input():
    """NCHW with far more padding than input runs the NHWC kernels: other sums of squares, the same values."""
    x = torch.randn(1, 6, 3, 3)
    window = {"kernel_size": (1, 9001), "stride": (1, 1), "padding": (0, 4500)}
    y = F.lrn_max_pool2d(x, 5, 0.3, **window)
    torch.testing.assert_close(y, pair_of_ops(x, {"size": 5, "alpha": 0.3}, window))


def test_shapes():
    x = torch.randn(3, 8, 9, 9)
    equal(F.lrn_max_pool2d(x[0], 5), F.lrn_max_pool2d(x[:1], 5)[0])
    empty = torch.randn(0, 8, 9, 9, requires_grad=True)
    y = F.lrn_max_pool2d(empty, 5)
    assert y.shape == (0, 8, 4, 4)
    assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape
    for view in (x[:, ::2], x.transpose(2, 3), x[..., 1::2], x[:1].expand(3, -1, -1, -1), x.flip(1)):
        torch.testing.assert_close(F.lrn_max_pool2d(view, 3), F.lrn_max_pool2d(view.contiguous(), 3), rtol=0, atol=0)


@pytest.mark.parametrize("norm", [{}, {"groups": 2, "activation": "relu", "alpha_mode": "sum"}])
def test_stock_composition(norm):
    """What FASTCNN_DISABLE runs is the same function."""
    x = torch.randn(2, 12, 9, 9, dtype=torch.float64)
    for z in (x, x[0]):
        y = F.lrn_max_pool2d(z, 5, 0.2, k=2.0, padding=1, **norm)
        with fastcnn._config.disabled():
            want = F.lrn_max_pool2d(z, 5, 0.2, k=2.0, padding=1, **norm)
        torch.testing.assert_close(y, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [(5, 0.3, 0.75, 2.0, 1, False), (4, 0.3, 0.5, 1.0, 2, True)])
def test_opcheck_and_gradients(norm, layout):
    args = (*norm, *ARGS[6:])
    x = torch.randn(2, 6, 5, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, argmax = fused.ops.raw(x.detach(), *args)
    torch.library.opcheck(fused.ops.raw, (x.detach(), *args))
    torch.library.opcheck(fused.ops.values, (x.detach(), *args))
    torch.library.opcheck(fused.ops.pool.op, (x, *args))
    torch.library.opcheck(fused.ops.backward.op, (torch.randn_like(y).requires_grad_(), argmax, x, *args))

    def face(z):
        size, alpha, beta, k, groups, relu = norm
        activation = "relu" if relu else None
        return F.lrn_max_pool2d(z, size, alpha * size, beta, k, groups=groups, activation=activation)

    for f in (lambda z: fused.ops.pool.op(z, *args)[0], face):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


def test_transforms():
    f = lambda x: F.lrn_max_pool2d(x * 2, 5, 0.1, groups=2, activation="relu").sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12, 15):
        x = torch.randn(2, 8, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        gradient = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.lrn_max_pool2d.default) in str(exported.graph)
    both = torch.cat([x, x]).detach()
    torch.testing.assert_close(exported.module()(both), f(both))
    b = torch.randn(3, 2, 8, 9, 9)
    torch.testing.assert_close(torch.vmap(f)(b), torch.stack([f(t) for t in b]))
    gradient = torch.func.grad(lambda t: f(t).sum())
    torch.testing.assert_close(torch.vmap(gradient)(b), torch.stack([gradient(t) for t in b]))


def test_autocast_keeps_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert F.lrn_max_pool2d(torch.randn(1, 8, 5, 5), 5).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 40, 37, 41), (1, 96, 55, 55)])
def test_threads_change_no_bit(shape, layout):
    """Their number cuts the bands."""
    x = torch.randn(shape).to(memory_format=layout)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y, argmax = fused.ops.raw(x, *ARGS)
            results.append((y, argmax, fused.ops.backward(y, argmax, x, *ARGS)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_module():
    m = nn.LRNMaxPool2d(5, k=2.0, alpha_mode="sum", groups=2, activation="relu", stride=None)
    assert not m.state_dict()
    assert repr(m) == (
        "LRNMaxPool2d(5, alpha=0.0001, beta=0.75, k=2.0, alpha_mode=sum, groups=2, activation=relu, "
        "kernel_size=3, stride=3, padding=0, dilation=1, ceil_mode=False)"
    )
    x = torch.randn(1, 8, 9, 9)
    want = pair_of_ops(x, {"size": 5, "k": 2.0, "alpha_mode": "sum", "groups": 2, "activation": "relu"}, {"stride": 3})
    assert torch.equal(m(x), want)
    with pytest.raises(ValueError, match="LRNMaxPool2d: expected an odd size with alpha_mode='sum', but got 4"):
        nn.LRNMaxPool2d(4, alpha_mode="sum")


@pytest.mark.cpu
def test_explain():
    (row,) = fastcnn.explain(nn.LRNMaxPool2d(5), (1, 8, 9, 9)).rows
    assert row.op == "lrn_max_pool2d"
    assert row.kernel == f"local_response_norm, then max_pool2d ({fastcnn.cpu_capability()})"
    assert "vectors over pixels" in row.why
