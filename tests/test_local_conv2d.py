"""local_conv2d against its formula in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import local_conv2d as local

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Input, output channels, kernel, stride, padding, dilation. conv_local's two layers; a batch of several blocks and
# vectors; single elements, primes, windows that overlap, touch and leave gaps, windows in the padding only.
GEOMETRIES = (
    ((2, 64, 8, 8), 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 32, 8, 8), 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((130, 3, 5, 4), 7, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    ((17, 5, 7, 11), 7, (3, 2), (2, 1), (1, 0), (1, 2)),
    ((67, 2, 5, 3), 13, (2, 3), (3, 4), (2, 3), (2, 1)),
    ((33, 3, 4, 4), 50, (4, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 37, 5, 4), 3, (1, 1), (2, 2), (3, 0), (1, 1)),
)
GEOMETRY = ((2, 1), (1, 0), (1, 2))


def tensors(shape, outputs, kernel, stride, padding, dilation, dtype, layout=torch.contiguous_format, bias=True):
    torch.manual_seed(0)
    along = zip(shape[2:], kernel, stride, padding, dilation)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in along]
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    w = torch.randn(*out, outputs, shape[1], *kernel, dtype=torch.float64).to(dtype)
    return x, w, torch.randn(outputs, *out, dtype=torch.float64).to(dtype) if bias else None


def tolerance(dtype: torch.dtype, terms: int, scale: torch.Tensor) -> torch.Tensor:
    """A sum of `terms` products in the accumulator type: rounding errors add up like a random walk, so
    4 * sqrt(terms) * eps of the largest sum of magnitudes covers them; storing rounds once more, half an ulp."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    eps = 4 * (terms + 4) ** 0.5 * torch.finfo(accumulator).eps
    return (eps + torch.finfo(dtype).eps) * scale.clamp(min=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_reference(geometry, dtype, layout):
    args = geometry[3:]
    for bias in (True, False):
        inputs = [t for t in tensors(*geometry, dtype, layout, bias) if t is not None]
        none = [] if bias else [None]
        exact, positive = ([f(t.double()).requires_grad_() for t in inputs] for f in (torch.clone, torch.abs))
        want, magnitude = local.reference(*exact, *none, *args), local.reference(*positive, *none, *args)
        mine = [t.detach().requires_grad_() for t in inputs]
        y = F.local_conv2d(*mine, *none, *args)
        assert y.dtype == dtype
        assert y.stride() == torch.empty(y.shape).to(memory_format=layout).stride()
        assert ((y - want).abs() <= tolerance(dtype, inputs[1][0, 0, 0].numel(), magnitude)).all()
        with torch.no_grad():
            assert torch.equal(local.ops.raw(*inputs, *none, *args), y)

        grad = torch.randn(y.shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
        expected = torch.autograd.grad(want, exact, grad.double())
        magnitudes = torch.autograd.grad(magnitude, positive, grad.double().abs())
        # An input sums over the windows that hold it and their outputs; a weight and a bias over the batch.
        taps = geometry[2][0] * geometry[2][1]
        for g, e, m, t in zip(
            torch.autograd.grad(y, mine, grad), expected, magnitudes, (taps * geometry[1], len(grad), len(grad))
        ):
            assert ((g - e).abs() <= tolerance(dtype, t, m)).all()


def test_equal_filters_are_a_convolution():
    x, weight, bias = torch.randn(3, 5, 9, 8), torch.randn(6, 5, 3, 2), torch.randn(6)
    want = F.conv2d(x, weight, bias, 2, 1)
    oh, ow = want.shape[2:]
    local_bias = bias.view(-1, 1, 1).expand(6, oh, ow)
    torch.testing.assert_close(F.local_conv2d(x, weight.expand(oh, ow, *weight.shape), local_bias, 2, 1), want)


def test_face():
    args = ((2, 5, 7, 6), 4, (3, 2), *GEOMETRY)
    x, w, b = tensors(*args, torch.float64)
    for bias in (None, b):
        y = F.local_conv2d(x, w, bias, *GEOMETRY)
        with fastcnn._config.disabled():
            torch.testing.assert_close(y, F.local_conv2d(x, w, bias, *GEOMETRY), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(y[0], F.local_conv2d(x[0], w, bias, *GEOMETRY), rtol=1e-12, atol=1e-12)
    assert torch.equal(F.local_conv2d(x[0], w, b, *GEOMETRY), y[0])
    assert F.local_conv2d(x[:0], w, b, *GEOMETRY).shape == (0, *y.shape[1:])
    swapped, mirrored = x.transpose(2, 3).contiguous().transpose(2, 3), w.flip(0).contiguous().flip(0)
    for view, weight in ((swapped, w), (x, w.transpose(0, 2).contiguous().transpose(0, 2)), (x, mirrored)):
        assert torch.equal(F.local_conv2d(view, weight, b, *GEOMETRY), y)
    wide = torch.cat([x, x], 3)[..., ::2]
    assert torch.equal(F.local_conv2d(wide, w, b, *GEOMETRY), F.local_conv2d(wide.contiguous(), w, b, *GEOMETRY))


def test_empty_batch_gives_zero_gradients():
    shape, *rest = ((0, 5, 7, 6), 4, (3, 2), *GEOMETRY)
    x, w, b = (t.requires_grad_() for t in tensors(shape, *rest, torch.float32))
    F.local_conv2d(x, w, b, *GEOMETRY).sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any()
    assert not b.grad.any()


def test_window_in_the_padding_gives_the_bias():
    x, w, b = tensors((2, 3, 1, 1), 4, (1, 1), (1, 1), (1, 1), (1, 1), torch.float32)
    w.data[0, 0] = torch.inf  # meets padding only: left out
    y = F.local_conv2d(x, w.requires_grad_(), b, 1, 1)
    assert torch.equal(y[:, :, 0, 0], b[:, 0, 0].expand(2, 4))
    y.sum().backward()
    assert not w.grad[0, 0].any()
    assert w.grad[1, 1].all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_and_gradients(bias, layout):
    x, w, b = tensors((2, 3, 4, 5), 2, (2, 2), *GEOMETRY, torch.float64, layout, bias)
    y = local.ops.raw(x, w, b, *GEOMETRY)
    torch.library.opcheck(local.ops.raw, (x, w, b, *GEOMETRY))
    x, w, b, g = (t if t is None else t.requires_grad_() for t in (x, w, b, torch.randn_like(y)))
    torch.library.opcheck(local.ops.op.op, (x, w, b, *GEOMETRY))
    torch.library.opcheck(local.ops.backward_input.op, (g, w, list(x.shape), *GEOMETRY))
    torch.library.opcheck(local.ops.backward_weight.op, (g, x, [3, 2, 2], *GEOMETRY))
    inputs = (x, w, b) if bias else (x, w)
    none = () if bias else (None,)
    for f in (
        lambda *t: local.ops.op.op(*t, *none, *GEOMETRY),
        lambda *t: F.local_conv2d(*t, *none, *GEOMETRY),
    ):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_transforms():
    torch._dynamo.reset()
    x, w, b = tensors((3, 4, 6, 5), 5, (3, 2), *GEOMETRY, torch.float32)
    f = lambda x: F.local_conv2d(x * 2, w, b, *GEOMETRY).tanh()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 3, 5):
        x = torch.randn(n, 4, 6, 5, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(f(x).sum(), x))
    module = nn.LocallyConnected2d(4, 5, 3, (6, 5), padding=1)
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.local_conv2d.default) in str(exported.graph)
    torch.testing.assert_close(exported.module()(x.detach()[:3]), module(x.detach()[:3]))
    many = torch.randn(3, 2, 4, 6, 5)
    torch.testing.assert_close(torch.vmap(f)(many), torch.stack([f(t) for t in many]))
    weights = torch.randn(3, *w.shape)
    loss = lambda weight: F.local_conv2d(many[0], weight, b, *GEOMETRY).square().sum()
    expected = torch.stack([torch.func.grad(loss)(v) for v in weights])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(weights), expected)


def test_autocast():
    x, w, b = tensors((2, 3, 4, 4), 2, (3, 3), (1, 1), (1, 1), (1, 1), torch.float32)
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, raw = F.local_conv2d(x, w, b, 1, 1), torch.ops.fastcnn.local_conv2d(x, w, b, (1, 1), (1, 1), (1, 1))
    assert y.dtype == raw.dtype == torch.bfloat16
    assert torch.equal(y, raw)
    y.sum().backward()
    assert w.grad.dtype == torch.float32


def test_flops():
    """Those of the convolution of equal geometry; both gradients cost as much as the output."""
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    counts = []
    for function, w in (
        (F.local_conv2d, torch.randn(5, 5, 6, 4, 3, 3, requires_grad=True)),
        (F.conv2d, torch.randn(6, 4, 3, 3, requires_grad=True)),
    ):
        with FlopCounterMode(display=False) as counter:
            function(x, w, None, 2, 1).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout):
    x, w, b = tensors((70, 19, 8, 8), 21, (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, layout)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y = F.local_conv2d(*inputs, 1, 1)
            results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_samples_do_not_depend_on_the_batch():
    x, w, b = tensors((70, 5, 8, 8), 7, (3, 3), (1, 1), (1, 1), (1, 1), torch.float32)
    assert torch.equal(
        torch.cat([F.local_conv2d(image, w, b, 1, 1) for image in x.split(1)]), F.local_conv2d(x, w, b, 1, 1)
    )


def test_module():
    m = nn.LocallyConnected2d(64, 32, 3, 8, padding=1)
    assert repr(m) == (
        "LocallyConnected2d(64, 32, kernel_size=(3, 3), input_size=(8, 8), stride=(1, 1), padding=(1, 1))"
    )
    assert {name: tuple(t.shape) for name, t in m.state_dict().items()} == {
        "weight": (8, 8, 32, 64, 3, 3),
        "bias": (32, 8, 8),
    }
    assert sum(p.numel() for p in m.parameters()) == 32 * 8 * 8 * (64 * 9 + 1)
    bound = 1 / 24
    assert 0.9 * bound < m.weight.abs().max() <= bound
    assert 0.9 * bound < m.bias.abs().max() <= bound
    assert m(torch.zeros(2, 64, 8, 8)).shape == (2, 32, 8, 8)
    assert m(torch.zeros(64, 8, 8)).shape == (32, 8, 8)
    other = nn.LocallyConnected2d(2, 3, (3, 2), (7, 9), (2, 1), (1, 0), (1, 3), bias=False)
    assert other(torch.zeros(1, 2, 7, 9)).shape == (1, 3, 4, 6) == (1, 3, *other.output_size)
    assert repr(other).endswith("stride=(2, 1), padding=(1, 0), dilation=(1, 3), bias=False)")


@pytest.mark.parametrize(("message", "arguments"), [
    ("kernel_size of at least 1, but got", (1, 1, 0, 4)),
    ("stride of at least 1", (1, 1, 1, 4, 0)),
    ("padding of at least 0", (1, 1, 1, 4, 1, -1)),
    ("dilation of at least 1", (1, 1, 1, 4, 1, 0, 0)),
    ("at least one channel, but got in_channels=0", (0, 1, 1, 4)),
    (r"fits into input_size=\(4, 4\)", (1, 1, 5, 4)),
])  # fmt: skip
def test_module_refuses(message, arguments):
    with pytest.raises(ValueError, match=message):
        nn.LocallyConnected2d(*arguments)


@pytest.mark.cpu  # explain names the kernels of the CPU
def test_explain():
    (row,) = fastcnn.explain(nn.LocallyConnected2d(3, 2, 3, 5), (1, 3, 5, 5)).rows
    assert row.op == "local_conv2d"
    assert "vectors over samples" in row.why
