"""avg_pool2d against its formula in float64, and against PyTorch."""

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import avg_pool2d as pool
from tests.cases import AVG_POOLS

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ARGS = ((3, 3), (2, 2), (1, 1), False, True, None)
# (shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override): channels and widths around 4, 8 and
# 16 lanes, primes, strides 1, 2, 3 and with gaps, one output column, the whole plane.
GEOMETRIES = [
    ((2, 96, 13, 17), (3, 3), (2, 2), (0, 0), False, True, None),
    ((1, 5, 7, 6), (2, 2), (1, 1), (1, 1), True, True, None),
    ((3, 17, 9, 11), (3, 3), (3, 3), (1, 1), True, False, None),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), False, True, None),
    ((2, 3, 19, 67), (2, 5), (1, 2), (1, 2), True, False, None),
    ((1, 33, 12, 37), (3, 1), (2, 2), (1, 0), True, True, None),
    ((1, 16, 10, 35), (1, 2), (2, 3), (0, 1), False, True, -3),
    ((2, 64, 8, 8), (2, 2), (2, 2), (0, 0), False, True, None),
    ((2, 70, 7, 7), (7, 7), (1, 1), (0, 0), False, True, None),
    ((1, 4, 13, 41), (13, 41), (1, 1), (0, 0), False, True, 5),
    ((1, 6, 5, 5), (3, 3), (3, 3), (0, 0), False, True, None),
    ((1, 6, 5, 9), (11, 11), (1, 1), (5, 5), False, True, None),
]


@pytest.fixture(autouse=True)
def poisoned_outputs(poisoned_memory):
    """An output element that a kernel leaves out is NaN."""


def unit(dtype):
    """Unit roundoff."""
    return torch.finfo(dtype).eps / 2


def assert_close(got, want, magnitude, terms):
    """Sums of `terms` values with absolute values' result `magnitude`: at most terms-1 additions and 5 more roundings
    (scales, division) in the accumulator, whatever the order; and one into half precision."""
    accumulator = unit(torch.float64 if got.dtype == torch.float64 else torch.float32)
    half = unit(got.dtype) * want.abs() if got.dtype in (torch.float16, torch.bfloat16) else 0.0
    # A float64 reference rounds as often as a float64 kernel.
    bound = 2 * (terms + 5) * accumulator * magnitude + half + torch.finfo(got.dtype).smallest_normal
    excess = (got.double() - want).abs() - bound
    assert not got.isnan().any()
    assert got.numel() == 0 or excess.max() <= 0, f"exceeds its bound by {excess.max()}"


def check_both_ways(op, reference, x, args, terms):
    """Forward and backward of `op` against the float64 formula; also that both layouts come out as torch has them."""
    exact = x.double().requires_grad_()
    want = reference(exact, *args)
    y = op.raw(x, *args)
    assert_close(y, want.detach(), reference(x.double().abs(), *args).abs(), terms)
    g = torch.randn(want.shape).to(x.dtype)
    (want_gx,) = torch.autograd.grad(want, exact, g.double())
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    gx = op.backward(g, x.shape, channels_last, *args)
    (magnitude,) = torch.autograd.grad(reference(exact, *args), exact, g.double().abs())
    assert_close(gx, want_gx, magnitude.abs(), terms)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=layout)
    assert gx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference(geometry, dtype, layout):
    shape, *args = geometry
    x = torch.randn(shape).to(dtype).to(memory_format=layout)
    check_both_ways(pool.ops, pool.reference, x, args, args[0][0] * args[0][1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_torch(geometry, layout):
    shape, *args = geometry
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, want = F.avg_pool2d(x, *args), torch.nn.functional.avg_pool2d(x, *args)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
    assert y.stride() == want.stride()
    g = torch.randn_like(y)
    got, expected = (torch.autograd.grad(t, x, g)[0] for t in (y, want))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)
    assert got.stride() == expected.stride()


@pytest.mark.parametrize("geometry", GEOMETRIES[:8])
def test_layouts_give_equal_bits(geometry):
    """Both sum rows first, then columns. (Global pooling sums along memory instead.)"""
    shape, *args = geometry
    x = torch.randn(shape)
    y = pool.ops.raw(x, *args)
    assert torch.equal(pool.ops.raw(x.to(memory_format=torch.channels_last), *args), y)
    gx = (pool.ops.backward(y, x.shape, channels_last, *args) for channels_last in (False, True))
    assert torch.equal(*gx)


@pytest.mark.parametrize("case", AVG_POOLS, ids=lambda c: c.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_named_layers(case, layout):
    x = torch.randn(case.input_shape()).to(memory_format=layout)
    kernel = case.kernel_size
    args = ((kernel,) * 2, (case.stride,) * 2, (case.padding,) * 2, case.ceil_mode, True, None)
    check_both_ways(pool.ops, pool.reference, x, args, kernel * kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_constants_stay(layout):
    """Sums of nine equal small integers are exact, and so is their division: no error at all."""
    for value in (1.0, 3.0, -7.0):
        x = torch.full((2, 20, 9, 9), value).to(memory_format=layout)
        assert torch.equal(F.avg_pool2d(x, 3, 2), torch.full((2, 20, 4, 4), value))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_reach_their_windows_only(layout):
    x = torch.zeros(1, 40, 9, 21)
    x[..., 4, 7], x[..., 4, 12] = torch.nan, torch.inf
    x = x.to(memory_format=layout)
    torch.testing.assert_close(
        F.avg_pool2d(x, 3, 1, 1), torch.nn.functional.avg_pool2d(x, 3, 1, 1), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_threads(layout):
    x = torch.randn(3, 40, 57, 61).to(memory_format=layout)
    args = ((3, 3), (1, 1), (1, 1), False, False, None)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            y = pool.ops.raw(x, *args)
            results.append((y, pool.ops.backward(y, x.shape, layout is torch.channels_last, *args)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("shape", [(0, 3, 9, 9), (3, 9, 9), (1, 3, 9, 9)])
def test_batches(shape):
    x = torch.randn(shape, requires_grad=True)
    y = F.avg_pool2d(x, 3, 2)
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 3, 2))
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert gx.shape == x.shape


def test_non_contiguous():
    x = torch.randn(4, 20, 17, 18)
    for view in (x[:, ::2], x.transpose(2, 3), x[..., 1::3], x[:1].expand(3, -1, -1, -1), x.transpose(0, 1)):
        assert torch.equal(F.avg_pool2d(view, 3, 2), F.avg_pool2d(view.contiguous(), 3, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_gradients(layout):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(pool.ops.raw, (x.detach(), *ARGS))
    torch.library.opcheck(pool.ops.op.op, (x, *ARGS))
    y = pool.ops.raw(x.detach(), *ARGS).requires_grad_()
    for channels_last in (False, True):
        torch.library.opcheck(pool.ops.backward.op, (y, x.shape, channels_last, *ARGS))
    for f in (lambda z: pool.ops.op.op(z, *ARGS), lambda z: F.avg_pool2d(z, 3, 2, 1, True, False) ** 3):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


def test_transforms():
    f = lambda x: F.avg_pool2d(x * 2, 3, 2, 1).sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12, 15):
        x = torch.randn(2, 4, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.avg_pool2d.default) in str(exported.graph)
    both = torch.cat([x, x]).detach()
    torch.testing.assert_close(exported.module()(both), f(both))
    b = torch.randn(3, 2, 4, 9, 9)
    torch.testing.assert_close(torch.vmap(f)(b), torch.stack([f(t) for t in b]))
    gradient = torch.func.grad(lambda t: f(t).sum())
    torch.testing.assert_close(torch.vmap(gradient)(b), torch.stack([gradient(t) for t in b]))
    # Twice in reverse: the Hessian (forward mode is not offered).
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64)
    stock_f = lambda x: torch.nn.functional.avg_pool2d(x * 2, 3, 2, 1).sin()
    got, want = (torch.func.jacrev(torch.func.jacrev(g))(x) for g in (lambda t: f(t).sum(), lambda t: stock_f(t).sum()))
    torch.testing.assert_close(got, want)


def test_module_autocast_and_stock_composition():
    x = torch.randn(2, 3, 9, 9)
    args = (3, 2, 1, True, False)
    mine, theirs = nn.AvgPool2d(*args), torch.nn.AvgPool2d(*args)
    torch.testing.assert_close(mine(x), theirs(x))
    assert repr(mine) == repr(theirs)
    y = F.avg_pool2d(x, *args)
    with fastcnn._config.disabled():
        torch.testing.assert_close(F.avg_pool2d(x, *args), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.avg_pool2d(x, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pool.ops.raw(x[0], *ARGS), "expected 4D input"),
        (lambda x: pool.ops.raw(x, (3,), *ARGS[1:]), "expected kernel_size to have 2 values, but got 1"),
        (lambda x: pool.ops.raw(x, *ARGS[:5], 0), "divisor must be not zero"),
        (lambda x: pool.ops.backward(x, (1, 2, 9, 9), False, *ARGS), "expected grad of size"),
        (lambda x: pool.ops.backward(x, (1, 2, 9), False, *ARGS), "expected size to be the 4 sizes"),
    ],
)
def test_raw_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(1, 2, 7, 7))
