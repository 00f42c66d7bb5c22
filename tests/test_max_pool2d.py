"""max_pool2d against its formula in float64 and against PyTorch: maxima are exact, so are the tests."""

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import max_pool2d as pool
from tests.cases import POOLS

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ARGS = ((3, 3), (2, 2), (0, 0), (1, 1), False)  # AlexNet's
# (shape, kernel, stride, padding, dilation, ceil_mode): channels and widths below, at and above a vector of 4, 8 and 16
# lanes, primes, strides 1, 2 and 3, windows that overlap or leave gaps, one output column.
GEOMETRIES = [
    ((2, 96, 13, 17), (3, 3), (2, 2), (0, 0), (1, 1), False),
    ((1, 5, 7, 6), (2, 2), (1, 1), (1, 1), (1, 1), True),
    ((3, 17, 9, 11), (3, 3), (3, 3), (1, 1), (1, 1), False),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
    ((2, 3, 19, 67), (2, 3), (1, 2), (1, 0), (1, 1), True),
    ((1, 33, 12, 37), (3, 2), (2, 1), (1, 1), (2, 3), False),
    ((1, 16, 10, 35), (1, 1), (2, 3), (0, 0), (1, 1), False),
    ((1, 7, 8, 23), (5, 9), (1, 4), (2, 4), (1, 1), True),
    ((1, 4, 20, 18), (17, 16), (1, 1), (0, 0), (1, 1), False),  # 272 positions: int32
    ((1, 20, 11, 11), (5, 5), (1, 1), (2, 2), (1, 1), False),  # 25 windows cover a place
    ((1, 70, 6, 9), (4, 4), (5, 7), (2, 2), (1, 1), False),
    ((2, 40, 9, 10), (3, 3), (2, 2), (1, 1), (1, 1), False),  # CUDA's pieces of planes end anywhere in a row
    ((2, 17, 11, 29), (3, 3), (3, 3), (0, 0), (1, 1), False),  # two rows and columns in no window
    ((1, 2, 9, 2100), (3, 3), (2, 2), (0, 0), (1, 1), False),  # rows too long for a block's shared memory
]


@pytest.fixture(autouse=True)
def poisoned_outputs(poisoned_memory):
    """An output element that a kernel leaves out is NaN."""


def sample(shape, dtype, layout, kind):
    """Few distinct values, so that ties are many; or with NaN and infinities, whole windows of them among those."""
    x = torch.randint(-4, 5, shape).to(dtype)
    if kind == "special":
        x[torch.rand(shape) < 0.15] = torch.nan
        x[torch.rand(shape) < 0.5] = -torch.inf
        x[torch.rand(shape) < 0.05] = torch.inf
        x[:, 0] = -torch.inf
    return x.to(memory_format=layout)


def stock(x, kernel, stride, padding, dilation, ceil_mode):
    return torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)


def values(x, *args):
    """The raw op without argmax, which takes its geometry as one list."""
    return pool.ops.values(x, [i for two in args[:4] for i in two], args[4])


def equal(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference_and_torch(geometry, kind, dtype, layout):
    shape, *args = geometry
    x = sample(shape, dtype, layout, kind)
    y, argmax = pool.ops.raw(x, *args)
    want, where = pool.reference(x, *args)
    equal(y.double(), want)
    assert torch.equal(argmax.long(), where)
    assert argmax.dtype == (torch.int32 if args[0][0] * args[0][1] > 256 else torch.uint8)
    equal(values(x, *args), y)

    z = x.clone().requires_grad_()
    theirs, indices = stock(z, *args)
    equal(y, theirs.detach())
    assert y.stride() == theirs.stride()
    returned = F.max_pool2d(x, *args, return_indices=True)
    equal(returned[0], y)
    assert torch.equal(returned[1], indices)
    # Sums of small integers: exact in every dtype, so the gradient must equal torch's to the bit.
    g = torch.randint(-3, 4, y.shape).to(dtype)
    gx = pool.ops.backward(g, argmax, x.shape, *args)
    (theirs_gx,) = torch.autograd.grad(theirs, z, g)
    assert torch.equal(gx, theirs_gx)
    assert gx.stride() == theirs_gx.stride()
    h, w = shape[2:]
    gathered = x.reshape(*shape[:2], h * w).gather(2, indices.flatten(2)).view(y.shape)
    equal(pool.ops.gather(x, argmax, *args), gathered)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", POOLS, ids=lambda c: c.name)
def test_named_layers(case, layout):
    x = torch.randn(case.input_shape()).to(memory_format=layout).requires_grad_()
    y, theirs = F.max_pool2d(x, **case.kwargs), torch.nn.functional.max_pool2d(x, **case.kwargs)
    equal(y, theirs)
    g = torch.randn_like(y)
    got, want = (torch.autograd.grad(t, x, g)[0] for t in (y, theirs))
    equal(got, want)  # float32: both add in raster order of the windows


@pytest.mark.parametrize("offset", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_begins_anywhere(dtype, offset):
    """Copies of 16 bytes must begin and end within the tensor."""
    memory = torch.randn(offset + 3 * 5 * 13 * 17).to(dtype)
    x = memory[offset:].view(3, 5, 13, 17)
    y, argmax = pool.ops.raw(x, *ARGS)
    want, where = pool.reference(x, *ARGS)
    equal(y.double(), want)
    assert torch.equal(argmax.long(), where)
    g = torch.cat([torch.ones(offset, dtype=dtype), y.flatten()])[offset:].view(y.shape)
    moved = torch.cat([torch.zeros(offset + 1, dtype=argmax.dtype), argmax.flatten()])[offset + 1 :].view(y.shape)
    equal(pool.ops.backward(g, moved, x.shape, *ARGS), pool.ops.backward(g.clone(), argmax, x.shape, *ARGS))


def test_half_gradients_are_summed_in_float32():
    """ATen adds in the half type; one rounding of the exact sum is closer."""
    x = torch.zeros(1, 1, 9, 9).index_fill_(3, torch.tensor([4]), 1.0)
    g = torch.randn(1, 1, 7, 7)
    for dtype in (torch.float16, torch.bfloat16):
        for layout in LAYOUTS:
            z = x.expand(1, 32, 9, 9).to(dtype).contiguous(memory_format=layout).requires_grad_()
            gz = g.to(dtype).expand(1, 32, 7, 7)
            (got,) = torch.autograd.grad(F.max_pool2d(z, 3, 1), z, gz)
            exact = z.detach().double().requires_grad_()
            (want,) = torch.autograd.grad(F.max_pool2d(exact, 3, 1), exact, gz.double())
            equal(got, want.to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dilation", [(3, 3), (3, 1)])
def test_windows_without_a_position(dilation, layout):
    """Dilation can step over the whole input: the maximum of nothing is -inf, and no gradient comes back."""
    x = torch.randn(2, 3, 2, 2).to(memory_format=layout).requires_grad_()
    args = ((2, 2), (1, 1), (1, 1), dilation, False)
    y = F.max_pool2d(x, *args)
    want, _ = pool.reference(x.detach(), *args)
    equal(y.double(), want)
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gx.sum() == want.isfinite().sum()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_far_larger_than_the_input(layout):
    x = torch.randn(1, 6, 5, 4).to(memory_format=layout)
    args = ((20001, 20001), (1, 1), (10000, 10000), (1, 1), False)
    y, argmax = pool.ops.raw(x, *args)
    equal(y, x.amax((2, 3), keepdim=True).expand(y.shape))
    gx = pool.ops.backward(torch.ones_like(y), argmax, x.shape, *args)
    assert gx.sum() == y.numel()
    assert y.stride() == torch.empty_like(y, memory_format=layout).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_threads(layout):
    x = torch.randn(3, 40, 57, 61).to(memory_format=layout)
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            y, argmax = pool.ops.raw(x, *ARGS)
            results.append((y, argmax, values(x, *ARGS), pool.ops.backward(y, argmax, x.shape, *ARGS)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("shape", [(0, 3, 9, 9), (3, 9, 9), (1, 3, 9, 9)])
def test_batches(shape):
    x = torch.randn(shape, requires_grad=True)
    for got, want in zip(F.max_pool2d(x, 3, 2, return_indices=True), stock(x, *ARGS)):
        assert torch.equal(got, want)
    (gx,) = torch.autograd.grad(F.max_pool2d(x, 3, 2).sum(), x)
    assert gx.shape == x.shape


def test_non_contiguous():
    x = torch.randn(4, 20, 17, 18)
    for view in (x[:, ::2], x.transpose(2, 3), x[..., 1::3], x[:1].expand(3, -1, -1, -1), x.transpose(0, 1)):
        equal(F.max_pool2d(view, 3, 2), F.max_pool2d(view.contiguous(), 3, 2))


def test_argument_forms():
    x = torch.randn(1, 2, 9, 8)
    want = torch.nn.functional.max_pool2d(x, 3)
    for stride in (None, (), [], 3, (3,), (3, 3), torch.Size([3, 3])):
        equal(F.max_pool2d(x, 3, stride), want)
    equal(F.max_pool2d(x, [3], padding=[1], dilation=(1,)), torch.nn.functional.max_pool2d(x, 3, padding=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_gradients(layout):
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, argmax = pool.ops.raw(x.detach(), *ARGS)
    torch.library.opcheck(pool.ops.raw, (x.detach(), *ARGS))
    torch.library.opcheck(pool.ops.values, (x.detach(), [i for two in ARGS[:4] for i in two], ARGS[4]))
    torch.library.opcheck(pool.ops.pool.op, (x, *ARGS))
    torch.library.opcheck(pool.ops.backward.op, (y.clone().requires_grad_(), argmax, x.shape, *ARGS))
    torch.library.opcheck(pool.ops.gather.op, (x, argmax, *ARGS))
    for f in (lambda z: pool.ops.pool.op(z, *ARGS)[0], lambda z: F.max_pool2d(z, 3, 2)):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))
    square = lambda z: F.max_pool2d(z, 3, 2) ** 3
    assert torch.autograd.gradgradcheck(square, (x,))


def test_transforms():
    f = lambda x: F.max_pool2d(x * 2, 3, 2).sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12, 15):
        x = torch.randn(2, 4, size, size, requires_grad=True)
        equal(compiled(x), f(x))
        equal(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.max_pool2d.default) in str(exported.graph)
    both = torch.cat([x, x]).detach()
    equal(exported.module()(both), f(both))
    b = torch.randn(3, 2, 4, 9, 9)
    equal(torch.vmap(f)(b), torch.stack([f(t) for t in b]))
    gradient = torch.func.grad(lambda t: f(t).sum())
    equal(torch.vmap(gradient)(b), torch.stack([gradient(t) for t in b]))
    # Twice in reverse: the Hessian (forward mode is not offered).
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64)
    stock_f = lambda x: torch.nn.functional.max_pool2d(x * 2, 3, 2).sin()
    got, want = (torch.func.jacrev(torch.func.jacrev(g))(x) for g in (lambda t: f(t).sum(), lambda t: stock_f(t).sum()))
    torch.testing.assert_close(got, want)


def test_autocast_keeps_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        assert F.max_pool2d(torch.randn(1, 2, 5, 5), 2).dtype == torch.float32


def test_module_and_stock_composition():
    x = torch.randn(2, 3, 9, 9)
    mine, theirs = nn.MaxPool2d(3, 2, 1, ceil_mode=True), torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    equal(mine(x), theirs(x))
    assert repr(mine) == repr(theirs)
    y = F.max_pool2d(x, 3, 2, return_indices=True)
    with fastcnn._config.disabled():
        for got, want in zip(F.max_pool2d(x, 3, 2, return_indices=True), y):
            equal(got, want)
    integers = torch.randint(-9, 9, (1, 2, 6, 6))
    assert torch.equal(F.max_pool2d(integers, 2), torch.nn.functional.max_pool2d(integers, 2))


def cpu(*values):
    return pytest.param(*values, marks=pytest.mark.cpu)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, a: pool.ops.raw(x[0], *ARGS), "expected 4D input"),
        (lambda x, y, a: pool.ops.raw(x, (3,), *ARGS[1:]), "expected kernel_size to have 2 values, but got 1"),
        (lambda x, y, a: pool.ops.raw(x, (3, 0), *ARGS[1:]), "expected kernel_size of at least 1"),
        (lambda x, y, a: pool.ops.raw(x, (2**20, 2**20), (1, 1), (2**19, 2**19), (1, 1), False), "product below 2"),
        (lambda x, y, a: pool.ops.raw(x.int(), *ARGS), "expected a tensor of dtype"),
        (lambda x, y, a: pool.ops.backward(y, a.int(), x.shape, *ARGS), "expected argmax of dtype uint8"),
        (lambda x, y, a: pool.ops.backward(y, a[:, :1], x.shape, *ARGS), "expected argmax of size"),
        (lambda x, y, a: pool.ops.backward(y[:, :1], a, x.shape, *ARGS), "expected grad of argmax's size"),
        (lambda x, y, a: pool.ops.backward(y, a, x.shape[1:], *ARGS), "expected size to be the 4 sizes"),
        cpu(lambda x, y, a: pool.ops.backward(y, a + 9, x.shape, *ARGS), "expected argmax below 9, but it holds"),
        cpu(lambda x, y, a: pool.ops.gather(x, a + 9, *ARGS), "expected argmax below 9, but it holds"),
    ],
)
def test_raw_errors(call, message):
    x = torch.randn(1, 2, 7, 7)
    with pytest.raises(RuntimeError, match=message):
        call(x, *pool.ops.raw(x, *ARGS))


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_infinities_are_no_nan(kernel):
    """NHWC kernels look for NaN by a sum, in which infinities of both signs cancel to one."""
    torch.manual_seed(0)
    x = torch.randn(2, 21, 13, 13)
    at = torch.rand(x.shape)
    x[at < 0.2], x[at > 0.8] = torch.inf, -torch.inf
    for values in (x, torch.where(at.sub(0.5).abs() < 0.02, torch.nan, x)):
        for layout in (torch.contiguous_format, torch.channels_last):
            got = F.max_pool2d(values.to(memory_format=layout), kernel, 2)
            equal(got, torch.nn.functional.max_pool2d(values, kernel, 2))
