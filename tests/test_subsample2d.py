"""subsample2d against its formula in float64."""

import itertools

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import subsample2d as subsample

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# LeNet-5's S2 and S4, then single elements, primes, windows that overlap, touch and leave gaps, one-element outputs.
GEOMETRIES = (
    ((3, 6, 28, 28), (2, 2), (2, 2)),
    ((2, 16, 10, 10), (2, 2), (2, 2)),
    ((1, 1, 1, 1), (1, 1), (1, 1)),
    ((2, 17, 7, 11), (3, 2), (2, 1)),
    ((1, 37, 13, 5), (2, 3), (3, 4)),
    ((2, 5, 3, 4), (3, 4), (1, 1)),
)


def tensors(shape, kernel, stride, dtype, layout, bias=True):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    w, b = (torch.randn(shape[1], dtype=torch.float64).to(dtype) for _ in range(2))
    return x, w, b if bias else None


def assert_sums(got, want, magnitude, terms):
    """Sums of `terms` products and 3 roundings more, in the accumulator's precision, against the sum of magnitudes;
    then one rounding to got's dtype."""
    accumulator = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps / 2
    rounding = torch.finfo(got.dtype).eps / 2 * want.abs() if got.dtype.itemsize == 2 else 0.0
    slack = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps  # a subnormal has fewer bits
    assert not got.isnan().any()
    assert ((got.double() - want).abs() <= (terms + 3) * accumulator * magnitude + rounding + slack).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kernel", "stride"), GEOMETRIES)
def test_equals_reference(shape, kernel, stride, dtype, layout):
    for scale, bias in ((1.0, True), (1 / (kernel[0] * kernel[1]), False)):
        args = (kernel, stride, scale)
        x, w, b = tensors(shape, kernel, stride, dtype, layout, bias)
        exact = [t if t is None else t.double().requires_grad_() for t in (x, w, b)]
        want = subsample.reference(*exact, *args)
        y = subsample.ops.raw(x, w, b, *args)
        assert y.dtype == dtype
        assert y.stride() == torch.empty(y.shape).to(memory_format=layout).stride()
        window = kernel[0] * kernel[1]
        positive = [t if t is None else t.abs() for t in (x, w, b)]
        assert_sums(y, want, subsample.reference(*positive, *args), window)

        g = torch.randn(y.shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
        inputs = [t for t in exact if t is not None]
        expected = torch.autograd.grad(want, inputs, g.double())
        exact_abs = [t if t is None else t.double().requires_grad_() for t in positive]
        magnitudes = torch.autograd.grad(
            subsample.reference(*exact_abs, *args), [t for t in exact_abs if t is not None], g.double().abs()
        )
        dx = subsample.ops.backward_input(g, w, shape, *args)
        dw, db = subsample.ops.backward_weight(g, x, *args)
        # Rows are summed in double: a row's products and its windows are what rounds.
        for got, e, m, terms in zip((dx, dw, db), expected, magnitudes, (window, window + y.shape[3], y.shape[3])):
            assert_sums(got, e, m, terms)


def test_face():
    x, w, b = tensors((2, 6, 9, 8), None, None, torch.float64, torch.contiguous_format)
    for kernel, stride, reduce, bias in itertools.product((2, (3, 2)), (None, 1, (2, 3)), ("sum", "mean"), (None, b)):
        y = F.subsample2d(x, w, bias, kernel, stride, reduce=reduce)
        with fastcnn._config.disabled():
            want = F.subsample2d(x, w, bias, kernel, stride, reduce=reduce)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-13)
    assert torch.equal(F.subsample2d(x[0], w, b), F.subsample2d(x, w, b)[0])
    assert F.subsample2d(x[:0], w, b).shape == (0, 6, 4, 4)
    for view in (x.transpose(2, 3), x[..., ::2], x[:1].expand(3, -1, -1, -1)):
        assert torch.equal(F.subsample2d(view, w, b), F.subsample2d(view.contiguous(), w, b))


def test_empty_batch_gives_zero_gradients():
    x, w, b = (t.requires_grad_() for t in tensors((0, 6, 4, 4), None, None, torch.float32, torch.contiguous_format))
    F.subsample2d(x, w, b).sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any()
    assert not b.grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_and_gradients(bias, layout):
    args = ((2, 3), (1, 2), 0.5)
    x, w, b = tensors((2, 3, 4, 5), None, None, torch.float64, layout, bias)
    y = subsample.ops.raw(x, w, b, *args)
    x, w, b, g = (t if t is None else t.requires_grad_() for t in (x, w, b, torch.randn_like(y)))
    torch.library.opcheck(subsample.ops.raw, (x.detach(), w.detach(), None if b is None else b.detach(), *args))
    torch.library.opcheck(subsample.ops.op.op, (x, w, b, *args))
    torch.library.opcheck(subsample.ops.backward_input.op, (g, w, list(x.shape), *args))
    torch.library.opcheck(subsample.ops.backward_weight.op, (g, x, *args))
    inputs = (x, w, b) if bias else (x, w)
    for f in (
        lambda *t: subsample.ops.op.op(*t, *(() if bias else (None,)), *args),
        lambda *t: F.subsample2d(*t, *(() if bias else (None,)), (2, 3), (1, 2), reduce="mean"),
    ):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_transforms():
    _, w, b = tensors((2, 6, 4, 4), None, None, torch.float32, torch.contiguous_format)
    f = lambda x: F.subsample2d(x * 2, w, b).tanh()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 7, 10):
        x = torch.randn(2, 6, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        gradient = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Sequential(nn.Subsample2d(6))
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.subsample2d.default) in str(exported.graph)
    x3 = torch.cat([x, x[:1]]).detach()
    torch.testing.assert_close(exported.module()(x3), module(x3))
    many = torch.randn(3, 2, 6, 5, 5)
    torch.testing.assert_close(torch.vmap(f)(many), torch.stack([f(t) for t in many]))
    weights = torch.randn(3, 6)
    loss = lambda weight: F.subsample2d(many[0], weight, b).square().sum()
    expected = torch.stack([torch.func.grad(loss)(v) for v in weights])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(weights), expected)


def test_autocast():
    x, w, b = tensors((2, 6, 4, 4), None, None, torch.float32, torch.contiguous_format)
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, raw = F.subsample2d(x, w, b), torch.ops.fastcnn.subsample2d(x, w, b, (2, 2), (2, 2), 1.0)
    assert y.dtype == raw.dtype == torch.bfloat16
    assert torch.equal(y, raw)
    y.sum().backward()
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout):
    args = ((2, 2), (2, 2), 1.0)
    x, w, b = tensors((37, 19, 28, 28), None, None, torch.float32, layout)
    g = torch.randn(37, 19, 14, 14)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y, dx = subsample.ops.raw(x, w, b, *args), subsample.ops.backward_input(g, w, x.shape, *args)
            results.append((y, dx, *subsample.ops.backward_weight(g, x, *args)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_module():
    torch.manual_seed(0)
    m = nn.Subsample2d(200, 2, reduce="mean")
    assert repr(m) == "Subsample2d(200, kernel_size=(2, 2), reduce='mean')"
    assert [*m.state_dict()] == ["weight", "bias"]
    assert sum(p.numel() for p in m.parameters()) == 400
    assert 2.0 < m.weight.abs().max() <= 2.4
    assert 0.5 < m.bias.abs().max() <= 0.6
    x = torch.randn(1, 200, 4, 4)
    summed = nn.Subsample2d(200)
    assert 0.5 < summed.weight.abs().max() <= 0.6
    summed.load_state_dict({"weight": m.weight / 4, "bias": m.bias})
    torch.testing.assert_close(m(x), summed(x))
    with pytest.raises(ValueError, match="expected reduce to be 'sum' or 'mean', but got 'max'"):
        nn.Subsample2d(2, reduce="max")


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "expected reduce to be 'sum' or 'mean', but got 'max'",
            lambda x, w: F.subsample2d(x, w, reduce="max"),
        ),
        (RuntimeError, r"Expected 3D \(unbatched\) or 4D", lambda x, w: F.subsample2d(x[0, 0], w)),
        (
            RuntimeError,
            r"expected weight of size \[4\], but got weight of size \[3\]",
            lambda x, w: F.subsample2d(x, w[:3]),
        ),
        (
            RuntimeError,
            r"expected bias of size \[4\], but got bias of size \[1\]",
            lambda x, w: F.subsample2d(x, w, w[:1]),
        ),
        (
            RuntimeError,
            r"Input type \(Float\) and weight type \(Double\) should be the same",
            lambda x, w: F.subsample2d(x, w.double()),
        ),
        (
            RuntimeError,
            r"expected input of at least kernel_size \(4, 1\)",
            lambda x, w: F.subsample2d(x, w, None, (4, 1)),
        ),
        (
            RuntimeError,
            r"expected kernel_size of at least 1, but got \(0, 0\)",
            lambda x, w: F.subsample2d(x, w, None, 0),
        ),
        (
            RuntimeError,
            r"expected stride of at least 1, but got \(-1, -1\)",
            lambda x, w: F.subsample2d(x, w, None, 2, -1),
        ),
        (
            RuntimeError,
            "expected kernel_size to be an int or a pair",
            lambda x, w: F.subsample2d(x, w, None, (1, 2, 3)),
        ),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call(torch.zeros(1, 4, 3, 3), torch.zeros(4))


def test_raw_errors():
    x, w = torch.zeros(1, 4, 3, 3), torch.zeros(4)
    with pytest.raises(RuntimeError, match="expected kernel_size to have 2 values, but got 1"):
        subsample.ops.raw(x, w, None, [2], [2, 2], 1.0)
    with pytest.raises(
        RuntimeError, match=r"expected grad of size \[1, 4, 1, 1\], but got grad of size \[1, 4, 3, 3\]"
    ):
        subsample.ops.backward_input(x, w, x.shape, (2, 2), (2, 2), 1.0)
    with pytest.raises(RuntimeError, match=r"expected grad of size"):
        subsample.ops.backward_weight(x, x, (2, 2), (2, 2), 1.0)
