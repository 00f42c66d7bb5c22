"""max_unpool2d against its formula in float64 and against PyTorch: values are copied or added in order, so exact."""

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn.ops import max_pool2d as pool
from fastcnn.ops import max_unpool2d as unpool
from tests.cases import POOLS

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Shape of the values, output size, whether places are few: so that many windows name one, in an order that matters.
SHAPES = [
    ((2, 96, 6, 7), (13, 15), False),
    ((1, 1, 1, 1), (1, 1), False),
    ((3, 17, 5, 3), (7, 11), True),
    ((1, 33, 9, 9), (9, 9), True),
    ((2, 5, 13, 11), (2, 1), True),
    ((1, 16, 1, 37), (1, 80), False),
]


def sample(shape, size, few, dtype, layout):
    """Small integers, whose sums are exact in every dtype."""
    places = size[0] * size[1]
    indices = torch.randint(0, min(places, 4) if few else places, shape).to(memory_format=layout)
    return torch.randint(-4, 5, shape).to(dtype).to(memory_format=layout), indices


def raw(x, indices, size, overlap):
    return unpool.ops.raw(x, indices, size, overlap == "sum")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overlap", ["assign", "sum"])
@pytest.mark.parametrize("case", SHAPES)
def test_equals_reference(case, overlap, dtype, layout):
    shape, size, few = case
    x, indices = sample(shape, size, few, dtype, layout)
    y = raw(x, indices, size, overlap)
    assert y.dtype == dtype
    assert y.stride() == torch.empty(*shape[:2], *size).to(memory_format=layout).stride() or shape[1] == 1
    assert torch.equal(y.double(), unpool.reference(x, indices, size, overlap == "sum"))
    g = torch.randn(y.shape).to(dtype)
    gathered = g.flatten(2).gather(2, indices.flatten(2)).view(shape)
    assert torch.equal(unpool.ops.gather(g, indices), gathered)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", POOLS, ids=lambda c: c.name)
def test_named_layers(case, layout):
    """What torch gives, forward and backward, after the pooling layers of the networks: their windows overlap."""
    x = torch.randn(case.input_shape()).to(memory_format=layout)
    kwargs = {name: case.kwargs[name] for name in ("kernel_size", "stride", "padding")}
    y, indices = F.max_pool2d(x, **case.kwargs, return_indices=True)
    y = y.detach().requires_grad_()
    mine = F.max_unpool2d(y, indices, **kwargs, output_size=x.shape[2:])
    theirs = torch.nn.functional.max_unpool2d(y, indices, **kwargs, output_size=x.shape[2:])
    assert torch.equal(mine, theirs)
    assert mine.stride() == theirs.stride()
    g = torch.randn_like(mine)
    assert torch.equal(*(torch.autograd.grad(t, y, g)[0] for t in (mine, theirs)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_is_the_adjoint_of_max_pooling(dtype, layout):
    """What max pooling's own backward pass does, which adds in the same order."""
    x = torch.randn(2, 20, 13, 15).to(dtype).to(memory_format=layout)
    args = ((3, 3), (2, 2), (1, 1), (1, 1), False)
    y, argmax = pool.ops.raw(x, *args)
    g = torch.randn(y.shape).to(dtype)
    indices = pool.flat_indices(argmax, 15, *args)
    dx = F.max_unpool2d(g, indices, 3, 2, 1, output_size=x.shape, overlap="sum")
    assert torch.equal(dx, pool.ops.backward(g, argmax, x.shape, *args))


def test_colliding_windows():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    at = torch.full((1, 1, 2, 2), 4)
    assert F.max_unpool2d(x, at, 2, 1).flatten().tolist() == [0, 0, 0, 0, 4, 0, 0, 0, 0]
    assert F.max_unpool2d(x, at, 2, 1, overlap="sum").flatten().tolist() == [0, 0, 0, 0, 10, 0, 0, 0, 0]


def test_half_sums_are_added_in_float32():
    """In float16, 2048 + 1 is 2048."""
    x = torch.tensor([2048.0, 1.0, 1.0, 1.0, 1.0]).half().view(1, 1, 1, 5)
    for layout in LAYOUTS:
        z = x.expand(1, 20, 1, 5).contiguous(memory_format=layout)
        assert (raw(z, torch.zeros_like(z, dtype=torch.int64), (1, 5), "sum")[..., 0] == 2052).all()


@pytest.mark.parametrize("overlap", ["assign", "sum"])
def test_shapes_and_sizes(overlap):
    x = torch.randn(3, 8, 4, 5)
    indices = torch.randint(0, 8 * 10, x.shape)
    y = F.max_unpool2d(x, indices, 2, overlap=overlap)
    assert y.shape == (3, 8, 8, 10)
    assert torch.equal(F.max_unpool2d(x[0], indices[0], 2, overlap=overlap), y[0])
    for size in ((9, 11), [9, 11], torch.Size((3, 8, 9, 11))):
        assert F.max_unpool2d(x, indices, 2, output_size=size, overlap=overlap).shape == (3, 8, 9, 11)
    assert F.max_unpool2d(x, indices % 48, 2, padding=1, overlap=overlap).shape == (3, 8, 6, 8)
    empty = F.max_unpool2d(x[:0], indices[:0], 2, overlap=overlap)
    assert empty.shape == (0, 8, 8, 10)
    nothing = x[:0, :, :1, :1].requires_grad_()  # onto planes without places, which only an empty batch fits
    none = F.max_unpool2d(nothing, indices[:0, :, :1, :1], (2, 1), 1, (1, 0), overlap=overlap)
    assert none.shape == (0, 8, 0, 1)
    assert torch.autograd.grad(none.sum(), nothing)[0].shape == (0, 8, 1, 1)
    for view in (lambda t: t[:, ::2], lambda t: t[:1].expand(3, -1, -1, -1), lambda t: t.flip(3)):
        a, b = view(x), view(indices)
        assert torch.equal(
            F.max_unpool2d(a, b, 2, overlap=overlap), F.max_unpool2d(a.contiguous(), b.contiguous(), 2, overlap=overlap)
        )
    nhwc = indices.to(memory_format=torch.channels_last)
    assert torch.equal(F.max_unpool2d(x, nhwc, 2, overlap=overlap), y)


@pytest.mark.parametrize("overlap", ["assign", "sum"])
def test_stock_composition(overlap):
    """What FASTCNN_DISABLE runs is the same function."""
    x, indices = torch.randn(2, 6, 4, 5), torch.randint(0, 12, (2, 6, 4, 5))
    for a, b in ((x, indices), (x[0], indices[0])):
        y = F.max_unpool2d(a, b, 2, overlap=overlap)
        with fastcnn._config.disabled():
            want = F.max_unpool2d(a, b, 2, overlap=overlap)
        torch.testing.assert_close(y, want)  # scatter_add may add in another order
    integers = torch.ones(1, 2, 2, 2, dtype=torch.int32)
    assert F.max_unpool2d(integers, torch.zeros(1, 2, 2, 2, dtype=torch.int64), 2, overlap="sum").sum() == 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_gradients(layout):
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    distinct = torch.stack([torch.randperm(48)[:12] for _ in range(6)]).view(x.shape).to(memory_format=layout)
    colliding = torch.randint(0, 6, x.shape).to(memory_format=layout)
    g = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    for indices, sum in ((distinct, False), (colliding, True)):
        torch.library.opcheck(unpool.ops.raw, (x.detach(), indices, (6, 8), sum))
        torch.library.opcheck(unpool.ops.unpool.op, (x, indices, (6, 8), sum))
        torch.library.opcheck(unpool.ops.gather.op, (g, indices))
        overlap = "sum" if sum else "assign"
        for f in (
            lambda z, at=indices, sum=sum: unpool.ops.unpool.op(z, at, (6, 8), sum) ** 3,
            lambda z, at=indices, overlap=overlap: F.max_unpool2d(z, at, 2, overlap=overlap) ** 3,
        ):
            assert torch.autograd.gradcheck(f, (x,))
            assert torch.autograd.gradgradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(lambda z, at=indices: unpool.ops.gather.op(z, at) ** 3, (g,))


def test_transforms():
    indices = torch.randint(0, 80, (2, 3, 4, 5))
    f = lambda x, at: F.max_unpool2d(x * 2, at, 2, overlap="sum").sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 6, 9):
        x, at = torch.randn(2, 3, size, size, requires_grad=True), torch.randint(0, 4 * size * size, (2, 3, size, size))
        torch.testing.assert_close(compiled(x, at), f(x, at))
        gradient = torch.autograd.grad(compiled(x, at).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(f(x, at).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    dimension = torch.export.Dim("n", min=2)
    x = torch.randn(2, 3, 4, 5)
    exported = torch.export.export(module, (x, indices), dynamic_shapes=({0: dimension}, {0: dimension}))
    assert str(torch.ops.fastcnn.max_unpool2d.default) in str(exported.graph)
    both = torch.cat([x, x]), torch.cat([indices, indices])
    torch.testing.assert_close(exported.module()(*both), f(*both))
    b = torch.randn(3, 2, 3, 4, 5)
    torch.testing.assert_close(torch.vmap(f, (0, None))(b, indices), torch.stack([f(t, indices) for t in b]))
    gradient = torch.func.grad(lambda t, at: f(t, at).sum())
    many = torch.randint(0, 80, (3, 2, 3, 4, 5))
    torch.testing.assert_close(torch.vmap(gradient)(b, many), torch.stack([gradient(t, at) for t, at in zip(b, many)]))


def test_autocast_keeps_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        y = F.max_unpool2d(torch.randn(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int64), 2)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("overlap", ["assign", "sum"])
def test_threads_change_no_bit(overlap, layout):
    x, indices = torch.randn(3, 40, 37, 41), torch.randint(0, 500, (3, 40, 37, 41))
    x, indices = x.to(memory_format=layout), indices.to(memory_format=layout)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(F.max_unpool2d(x, indices, 2, overlap=overlap))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("overlap", ["assign", "sum"])
def test_planes_of_many_places(overlap, layout):
    """What is made in several parts: with indices in their places' order, and with those that jump about."""
    x = torch.randint(-4, 5, (2, 3, 31, 33)).float().to(memory_format=layout)
    for indices in (torch.arange(31 * 33).mul(4).view(1, 1, 31, 33).expand_as(x), torch.randint(0, 62 * 66, x.shape)):
        indices = indices.contiguous(memory_format=layout)
        y = raw(x, indices, (62, 66), overlap)
        assert torch.equal(y.double(), unpool.reference(x, indices, (62, 66), overlap == "sum"))
    nothing = raw(x[:, :, :0].contiguous(memory_format=layout), indices[:, :, :0], (62, 66), overlap)
    assert nothing.shape == (2, 3, 62, 66)
    assert not nothing.any()


def test_indices_outside_are_left_out_on_a_gpu(request):
    """A kernel there cannot tell the caller, who does not wait for it."""
    if not request.config.getoption("--simt"):
        pytest.skip("of the CUDA kernels alone")
    for layout in LAYOUTS:
        x = torch.arange(1.0, 19.0).view(1, 2, 3, 3).contiguous(memory_format=layout)
        indices = torch.arange(18).remainder(9).view(x.shape).contiguous(memory_format=layout)
        for wrong in (-1, 36, 2**31, 2**62, -(2**63)):
            indices[0, 1, 2, 2] = wrong
            for overlap in ("assign", "sum"):
                y = raw(x, indices, (6, 6), overlap)
                assert torch.equal(y[0, 0].flatten()[:9], torch.arange(1.0, 10.0))
                assert torch.equal(y[0, 1].flatten()[:8], torch.arange(10.0, 18.0))
                assert not y[0, 1].flatten()[8:].any()
            assert unpool.ops.gather(torch.ones(1, 2, 6, 6), indices).flatten().tolist() == [1.0] * 17 + [0.0]


@pytest.mark.cpu  # a GPU leaves them out, as the test above says
@pytest.mark.parametrize("overlap", ["assign", "sum"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", [-1, 36, 2**31, 2**62, -(2**63)])
def test_indices_outside_are_refused(index, layout, overlap):
    x = torch.ones(2, 3, 3, 3).to(memory_format=layout)
    indices = torch.zeros(2, 3, 3, 3, dtype=torch.int64).to(memory_format=layout)
    indices[1, 2, 2, 2] = index
    with pytest.raises(RuntimeError, match=rf"invalid max index: {index} \(output volumes are of size 6x6\)"):
        F.max_unpool2d(x, indices, 2, overlap=overlap)
    with pytest.raises(RuntimeError, match=rf"invalid max index: {index} \(output volumes are of size 6x6\)"):
        unpool.ops.gather(torch.ones(2, 3, 6, 6), indices)


@pytest.mark.cpu  # explain names the kernels of the CPU
def test_explain():
    x, indices = (1, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.int64)
    (row,) = fastcnn.explain(lambda x: F.max_unpool2d(x, indices, 2), x).rows
    assert (row.op, row.kernel) == ("max_unpool2d", f"max_unpool2d ({fastcnn.cpu_capability()})")
    (stock,) = fastcnn.explain(lambda x: torch.nn.functional.max_unpool2d(x, indices, 2), x).rows
    assert stock.kernel == "stock PyTorch (ATen)"
