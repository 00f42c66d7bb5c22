"""adaptive_avg_pool2d against its formula in float64, and against PyTorch."""

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import adaptive_avg_pool2d as pool
from tests.cases import ADAPTIVE_POOLS
from tests.test_avg_pool2d import DTYPES, LAYOUTS, check_both_ways

# (shape, output size): global, the input's own size, divisors, indivisible, larger than the input, no image; then large
# windows, of the output and of the gradient.
GEOMETRIES = [
    ((2, 70, 7, 7), (1, 1)),
    ((17, 150, 3, 5), (1, 1)),
    ((1, 5, 13, 41), (1, 1)),
    ((1, 96, 8, 12), (4, 6)),
    ((2, 17, 9, 20), (3, 20)),
    ((1, 33, 10, 9), (7, 6)),
    ((1, 3, 5, 4), (8, 9)),
    ((1, 16, 6, 37), (1, 5)),
    ((1, 16, 6, 37), (5, 1)),
    ((3, 4, 1, 1), (1, 1)),
    ((0, 3, 5, 5), (2, 2)),
    ((2, 5, 50, 41), (3, 2)),
    ((1, 40, 19, 70), (2, 1)),
    ((1, 9, 2, 3), (31, 34)),
]


@pytest.fixture(autouse=True)
def poisoned_outputs(poisoned_memory):
    """An output element that a kernel leaves out is NaN."""


def terms(shape, size):
    """The most values that one output, or with more outputs than inputs one gradient, sums."""
    return max((-(-h // max(o, 1)) + 1) * (-(-o // h) + 1) for h, o in zip(shape[2:], size)) ** 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), GEOMETRIES)
def test_equals_reference(shape, size, dtype, layout):
    x = torch.randn(shape).to(dtype).to(memory_format=layout)
    check_both_ways(pool.ops, pool.reference, x, (size,), terms(shape, size))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size"), GEOMETRIES)
def test_equals_torch(shape, size, layout):
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, want = F.adaptive_avg_pool2d(x, size), torch.nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
    g = torch.randn_like(y)
    got, expected = (torch.autograd.grad(t, x, g)[0] for t in (y, want))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ADAPTIVE_POOLS, ids=lambda c: c.name)
def test_named_layers(case, layout):
    x = torch.randn(case.input_shape()).to(memory_format=layout)
    size = (case.output_size,) * 2
    check_both_ways(pool.ops, pool.reference, x, (size,), terms(x.shape, size))


def test_output_size_forms():
    x = torch.randn(2, 3, 6, 8)
    for size in (2, (2, 4), [2, 4], (None, 4), (2, None), (None, None), torch.Size([3, 2])):
        torch.testing.assert_close(F.adaptive_avg_pool2d(x, size), torch.nn.functional.adaptive_avg_pool2d(x, size))
        torch.testing.assert_close(nn.AdaptiveAvgPool2d(size)(x), torch.nn.AdaptiveAvgPool2d(size)(x))
        assert repr(nn.AdaptiveAvgPool2d(size)) == repr(torch.nn.AdaptiveAvgPool2d(size))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_bits_do_not_depend_on_threads(size, layout):
    x = torch.randn(3, 200, 17, 19).to(memory_format=layout)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            y = pool.ops.raw(x, size)
            results.append((y, pool.ops.backward(y, x.shape, layout is torch.channels_last, size)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_output(layout):
    """torch has no gradient here; of a sum over nothing it is zero."""
    x = torch.randn(2, 3, 5, 5).to(memory_format=layout).requires_grad_()
    y = F.adaptive_avg_pool2d(x, (0, 3))
    assert y.shape == torch.nn.functional.adaptive_avg_pool2d(x, (0, 3)).shape
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx, torch.zeros(2, 3, 5, 5))


def test_unbatched_and_non_contiguous():
    x = torch.randn(4, 20, 9, 12)
    for view in (x[0], x[:, ::2], x.transpose(2, 3), x[..., 1::3], x[:1].expand(3, -1, -1, -1)):
        for size in (1, (4, 3)):
            want = torch.nn.functional.adaptive_avg_pool2d(view, size)
            torch.testing.assert_close(F.adaptive_avg_pool2d(view, size), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 4)])
def test_opcheck_and_gradients(size, layout):
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(pool.ops.raw, (x.detach(), size))
    torch.library.opcheck(pool.ops.op.op, (x, size))
    y = pool.ops.raw(x.detach(), size).requires_grad_()
    for channels_last in (False, True):
        torch.library.opcheck(pool.ops.backward.op, (y, x.shape, channels_last, size))
    for f in (lambda z: pool.ops.op.op(z, size), lambda z: F.adaptive_avg_pool2d(z, size) ** 3):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


def test_transforms():
    f = lambda x: F.adaptive_avg_pool2d(x * 2, (3, None)).sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12, 15):
        x = torch.randn(2, 4, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.adaptive_avg_pool2d.default) in str(exported.graph)
    both = torch.cat([x, x]).detach()
    torch.testing.assert_close(exported.module()(both), f(both))
    b = torch.randn(3, 2, 4, 9, 9)
    torch.testing.assert_close(torch.vmap(f)(b), torch.stack([f(t) for t in b]))
    gradient = torch.func.grad(lambda t: f(t).sum())
    torch.testing.assert_close(torch.vmap(gradient)(b), torch.stack([gradient(t) for t in b]))


def test_autocast_and_stock_composition():
    x = torch.randn(2, 3, 9, 9)
    y = F.adaptive_avg_pool2d(x, 4)
    with fastcnn._config.disabled():
        torch.testing.assert_close(F.adaptive_avg_pool2d(x, 4), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.adaptive_avg_pool2d(x, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pool.ops.raw(x[0], (2, 2)), "expected 4D input"),
        (lambda x: pool.ops.raw(x, (2,)), "expected output_size to have 2 values, but got 1"),
        (lambda x: pool.ops.raw(x[:, :, :0], (2, 2)), "non-zero size for non-batch dimensions"),
        (lambda x: pool.ops.backward(x, (1, 2, 9, 9), False, (2, 2)), "expected grad of size"),
        (lambda x: F.adaptive_avg_pool2d(x, (2, -1)), "must be greater than or equal to 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(1, 2, 7, 7))
