"""sparse_conv2d against its formula in float64, and against the dense convolution with zeros for absent links."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import sparse_conv2d as sparse

C3 = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5),
    (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5), (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip
LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# input, kernel, table, stride, padding: C3; then a map that nothing reads, an output without links, a map named twice,
# strides below, at and above the kernel, uneven padding, a plane of more vectors than one block of accumulators.
GEOMETRIES = (
    ((3, 6, 14, 14), (5, 5), C3, (1, 1), (0, 0)),
    ((1, 1, 1, 1), (1, 1), ((0,),), (1, 1), (0, 0)),
    ((2, 4, 7, 11), (3, 2), ((0, 2), (), (3, 3), (2,)), (1, 1), (1, 2)),
    ((2, 3, 13, 9), (3, 3), ((0, 1), (2,), (1, 2)), (2, 2), (1, 0)),
    ((1, 2, 11, 17), (2, 3), ((0, 1), (1,)), (3, 4), (0, 3)),
    ((1, 2, 29, 31), (4, 3), ((0, 1), (1,), (0,)), (1, 2), (2, 1)),
)


def tensors(shape, kernel, table, dtype, layout, bias=True):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    w = torch.randn(sum(map(len, table)), *kernel, dtype=torch.float64).to(dtype)
    return x, w, torch.randn(len(table), dtype=torch.float64).to(dtype) if bias else None


def assert_sum(got, want, magnitude, terms):
    """A sum of `terms` products, each rounded once at most, in the accumulator's precision, against the sum of their
    magnitudes; then one rounding to got's dtype, whose subnormals have fewer bits."""
    accumulator = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps / 2
    rounding = torch.finfo(got.dtype).eps / 2 * want.abs() if got.dtype.itemsize == 2 else 0.0
    slack = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    assert not got.isnan().any()
    assert ((got.double() - want).abs() <= (terms + 1) * accumulator * magnitude + rounding + slack).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference(geometry, dtype, layout):
    shape, kernel, table, stride, padding = geometry
    x, w, b = tensors(shape, kernel, table, dtype, layout)
    links = (*sparse.flatten(table), stride, padding)
    taps = kernel[0] * kernel[1]
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    positive = [t.double().abs().requires_grad_() for t in (x, w, b)]
    want = sparse.reference(*exact, table, stride, padding)
    magnitude = sparse.reference(*positive, table, stride, padding)
    y = sparse.ops.raw(x, w, b, *links)
    assert y.dtype == dtype
    assert y.stride() == torch.empty(y.shape).to(memory_format=layout).stride()
    assert_sum(y, want, magnitude, taps * max(map(len, table)) + 1)

    g = torch.randn(y.shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    expected = torch.autograd.grad(want, exact, g.double())
    magnitudes = torch.autograd.grad(magnitude, positive, g.double().abs())
    dx = sparse.ops.backward_input(g, w, shape, *links)
    dw, db = sparse.ops.backward_weight(g, x, kernel, *links)
    positions = shape[0] * y.shape[2] * y.shape[3]
    for got, e, m, terms in zip((dx, dw, db), expected, magnitudes, (taps * len(w), positions, positions)):
        assert_sum(got, e, m, terms)


def test_equals_dense_convolution():
    x, w, b = tensors((4, 6, 14, 14), (5, 5), C3, torch.float64, torch.contiguous_format)
    for stride, padding, bias in itertools.product((1, (2, 3)), (0, (1, 4)), (b, None)):
        y = F.sparse_conv2d(x, w, bias, C3, stride, padding)
        with fastcnn._config.disabled():
            want = F.sparse_conv2d(x, w, bias, C3, stride, padding)
        torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(F.sparse_conv2d(x[0], w, b, C3), F.sparse_conv2d(x[:1], w, b, C3)[0])
    assert F.sparse_conv2d(x[:0], w, b, C3).shape == (0, 16, 10, 10)
    for view in (x.transpose(2, 3), x[..., ::2, :].repeat(1, 1, 2, 1), x[:1].expand(3, -1, -1, -1)):
        assert torch.equal(F.sparse_conv2d(view, w, b, C3), F.sparse_conv2d(view.contiguous(), w, b, C3))
    transposed = w.transpose(1, 2)
    assert torch.equal(F.sparse_conv2d(x, transposed, b, C3), F.sparse_conv2d(x, transposed.contiguous(), b, C3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_stays_in_its_window(layout):
    """Rows are padded to whole vectors inside: the zeros there must not meet an infinity."""
    x, w, b = tensors((1, 6, 14, 14), (5, 5), C3, torch.float32, layout)
    x[0, 2, 3, 13] = torch.inf
    x[0, 4, 13, 0] = torch.nan
    y = F.sparse_conv2d(x.requires_grad_(), w.requires_grad_(), b, C3)
    want = sparse.reference(x, w, b, C3, (1, 1), (0, 0))
    assert torch.equal(y.isfinite(), want.isfinite())
    for got, expected in zip(torch.autograd.grad(y.sum(), (x, w)), torch.autograd.grad(want.sum(), (x, w))):
        assert torch.equal(got.isfinite(), expected.isfinite())


def test_empty_batch_gives_zero_gradients():
    x, w, b = (t.requires_grad_() for t in tensors((0, 6, 6, 6), (5, 5), C3, torch.float32, torch.contiguous_format))
    F.sparse_conv2d(x, w, b, C3).sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any()
    assert not b.grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stride", "padding", "bias"), [((1, 1), (0, 0), True), ((2, 1), (1, 2), False)])
def test_opcheck_and_gradients(stride, padding, bias, layout):
    table = ((0, 2), (1,), (0, 1, 2))
    links = (*sparse.flatten(table), stride, padding)
    x, w, b = tensors((2, 3, 4, 3), (2, 2), table, torch.float64, layout, bias)
    y = sparse.ops.raw(x, w, b, *links)
    torch.library.opcheck(sparse.ops.raw, (x, w, b, *links))
    x, w, b, g = (t if t is None else t.requires_grad_() for t in (x, w, b, torch.randn_like(y)))
    torch.library.opcheck(sparse.ops.op.op, (x, w, b, *links))
    torch.library.opcheck(sparse.ops.backward_input.op, (g, w, list(x.shape), *links))
    torch.library.opcheck(sparse.ops.backward_weight.op, (g, x, (2, 2), *links))
    inputs = (x, w, b) if bias else (x, w)
    for f in (
        lambda *t: sparse.ops.op.op(*t, *(() if bias else (None,)), *links),
        lambda *t: F.sparse_conv2d(*t, *(() if bias else (None,)), table, stride, padding),
    ):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_transforms():
    x, w, b = tensors((2, 6, 8, 8), (5, 5), C3, torch.float32, torch.contiguous_format)
    f = lambda x: F.sparse_conv2d(x * 2, w, b, C3).tanh()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 7, 10):
        x = torch.randn(2, 6, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        gradient = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Sequential(nn.SparseConv2d(6, 16, 5, C3))
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.sparse_conv2d.default) in str(exported.graph)
    x3 = torch.cat([x, x[:1]]).detach()
    torch.testing.assert_close(exported.module()(x3), module(x3))
    many = torch.randn(3, 2, 6, 5, 5)
    torch.testing.assert_close(torch.vmap(f)(many), torch.stack([f(t) for t in many]))
    weights = torch.randn(2, 60, 5, 5)
    loss = lambda weight: F.sparse_conv2d(many[0], weight, b, C3).square().sum()
    expected = torch.stack([torch.func.grad(loss)(v) for v in weights])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(weights), expected)


def test_autocast():
    x, w, b = tensors((2, 6, 6, 6), (5, 5), C3, torch.float32, torch.contiguous_format)
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = F.sparse_conv2d(x, w, b, C3)
        raw = torch.ops.fastcnn.sparse_conv2d(x, w, b, *sparse.flatten(C3), (1, 1), (0, 0))
    assert y.dtype == raw.dtype == torch.bfloat16
    assert torch.equal(y, raw)
    y.sum().backward()
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout):
    x, w, b = tensors((67, 6, 14, 14), (5, 5), C3, torch.float32, layout)
    links = (*sparse.flatten(C3), (1, 1), (0, 0))
    g = torch.randn(67, 16, 10, 10)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y, dx = sparse.ops.raw(x, w, b, *links), sparse.ops.backward_input(g, w, x.shape, *links)
            results.append((y, dx, *sparse.ops.backward_weight(g, x, (5, 5), *links)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_flops():
    x, w, b = (t.requires_grad_() for t in tensors((2, 6, 14, 14), (5, 5), C3, torch.float32, torch.contiguous_format))
    with FlopCounterMode(display=False) as forward:
        y = F.sparse_conv2d(x, w, b, C3)
    assert forward.get_total_flops() == 2 * 2 * 60 * 25 * 100
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_module():
    torch.manual_seed(0)
    m = nn.SparseConv2d(6, 16, 5, C3)
    assert sum(p.numel() for p in m.parameters()) == 1516  # the paper's count: 60 links of 25, 16 biases
    assert [*m.state_dict()] == ["weight", "bias"]
    assert repr(m) == "SparseConv2d(6, 16, kernel_size=(5, 5), stride=(1, 1), links=60)"
    first, last = m.weight[:3].abs().max(), m.weight[-6:].abs().max()
    assert 0.9 * 2.4 / 75 < first <= 2.4 / 75
    assert 0.9 * 2.4 / 150 < last <= 2.4 / 150
    x = torch.randn(2, 6, 14, 14)
    assert torch.equal(m(x), F.sparse_conv2d(x, m.weight, m.bias, C3))
    assert nn.SparseConv2d(6, 16, 5, C3, bias=False).bias is None
    for arguments, message in (
        ((6, 15, 5, C3), "expected table to have out_channels=15 rows, but got 16"),
        ((5, 16, 5, C3), r"expected distinct input maps 0 to 4 in table\[3\], but got \(3, 4, 5\)"),
        ((2, 1, 3, [[1, 1]]), "expected distinct input maps"),
    ):
        with pytest.raises(ValueError, match=message):
            nn.SparseConv2d(*arguments)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            "expected table to name input maps 0 to 1, but got 2",
            lambda x, w: F.sparse_conv2d(x, w, None, ((0, 2), (1,))),
        ),
        (
            "expected table to name input maps 0 to 1, but got -1",
            lambda x, w: F.sparse_conv2d(x, w, None, ((-1, 0), (1,))),
        ),
        (
            r"expected weight of size \[2, kernel height, kernel width\]",
            lambda x, w: F.sparse_conv2d(x, w, None, ((0,), (1,))),
        ),
        (r"expected 3D weight", lambda x, w: F.sparse_conv2d(x, w[0], None, ((0, 1), (1,)))),
        (
            r"expected bias of size \[2\], but got bias of size \[3\]",
            lambda x, w: F.sparse_conv2d(x, w, torch.zeros(3), ((0, 1), (1,))),
        ),
        (
            r"Input type \(Float\) and weight type \(Double\) should be the same",
            lambda x, w: F.sparse_conv2d(x, w.double(), None, ((0, 1), (1,))),
        ),
        (
            "Kernel size can't be greater than actual input size",
            lambda x, w: F.sparse_conv2d(x[..., :2], w, None, ((0, 1), (1,))),
        ),
        (
            r"expected stride of at least 1, but got \(0, 0\)",
            lambda x, w: F.sparse_conv2d(x, w, None, ((0, 1), (1,)), 0),
        ),
        (
            r"expected padding of at least 0, but got \(-1, -1\)",
            lambda x, w: F.sparse_conv2d(x, w, None, ((0, 1), (1,)), 1, -1),
        ),
        ("overflows", lambda x, w: F.sparse_conv2d(x, w, None, ((0, 1), (1,)), 1, 2**30)),
        (r"Expected 3D \(unbatched\) or 4D", lambda x, w: F.sparse_conv2d(x[0, 0], w, None, ((0, 1), (1,)))),
    ],
)
def test_errors(message, call):
    with pytest.raises(RuntimeError, match=message):
        call(torch.zeros(1, 2, 4, 4), torch.zeros(3, 3, 3))


def test_raw_errors():
    x, w = torch.zeros(1, 2, 4, 4), torch.zeros(3, 3, 3)
    geometry = ((1, 1), (0, 0))
    for counts, indices in (([2], [0, 1, 1]), ([2, 2], [0, 1, 1]), ([4, -1], [0, 1, 1])):
        with pytest.raises(RuntimeError, match=r"expected counts to sum to the number of indices \(3\)"):
            sparse.ops.raw(x, w, None, counts, indices, *geometry)
    with pytest.raises(RuntimeError, match="expected stride to have 2 values, but got 1"):
        sparse.ops.raw(x, w, None, [2, 1], [0, 1, 1], [1], [0, 0])
    with pytest.raises(RuntimeError, match=r"expected grad of size \[1, 2, 2, 2\]"):
        sparse.ops.backward_input(x, w, x.shape, [2, 1], [0, 1, 1], *geometry)
    with pytest.raises(RuntimeError, match=r"expected grad of size \[1, 2, 2, 2\]"):
        sparse.ops.backward_weight(x, x, (3, 3), [2, 1], [0, 1, 1], *geometry)
