"""conv_transpose2d against its formula in float64: forward, gradients, second order, every road that leads to it."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
import fastcnn.functional as F
from fastcnn import _config, nn
from fastcnn.ops import conv_transpose2d as transposed
from fastcnn.ops._define import memory_format
from tests.cases import ALEXNET, RESNET50
from tests.test_conv2d import DTYPES, LAYOUTS, tolerance

GEOMETRY = ((2, 1), (1, 1), (1, 1), (1, 2), 2)  # stride, padding, output_padding, dilation, groups


def random_case(seed: int) -> dict:
    """A geometry that hits edges: sizes of one, primes, indivisible channels, padding beyond the kernel, dilation,
    output_padding up to the larger of stride and dilation."""
    r = random.Random(seed)
    while True:
        groups = r.choice([1, 1, 1, 2, 3, 4, 8])
        group_in = r.choice([1, 2, 3, 4, 5, 7, 8, 16, 17, 32] if groups < 8 else [1, 2, 4, 8])
        group_out = r.choice([group_in, group_in, 1, 2, 3, 7, 8, 16, 33] if groups < 8 else [group_in, 3])
        kernel = r.choice([1, 1, 2, 3, 3, 5, 7]), r.choice([1, 2, 3, 3, 5])
        stride = r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3, 4])
        padding = r.choice([0, 1, 2, 3]), r.choice([0, 1, 2])
        dilation = r.choice([1, 1, 2]), r.choice([1, 1, 2, 3])
        extra = tuple(r.randrange(max(s, d)) for s, d in zip(stride, dilation))
        size = r.choice([1, 5, 7, 13]), r.choice([1, 5, 7, 14, 17])
        if all(transposed.output_size(*g) > 0 for g in zip(size, kernel, stride, padding, extra, dilation)):
            break
    return {
        "x": (r.choice([1, 1, 2, 3]), group_in * groups, *size),
        "weight": (group_in * groups, group_out, *kernel),
        "geometry": (stride, padding, extra, dilation, groups),
        "dtype": r.choice(DTYPES),
        "layouts": [r.choice(LAYOUTS) for _ in range(3)],
        "bias": r.random() < 0.5,
    }


@pytest.mark.parametrize("seed", range(100))
def test_equals_the_formula(seed):
    case = random_case(seed)
    dtype, geometry = case["dtype"], case["geometry"]
    torch.manual_seed(seed)
    x, weight = (torch.randn(case[k]).to(dtype).to(memory_format=f) for k, f in zip(("x", "weight"), case["layouts"]))
    bias = torch.randn(weight.shape[1] * geometry[4]).to(dtype) if case["bias"] else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    exact, positive = ([f(t.double()).requires_grad_() for t in inputs] for f in (torch.clone, torch.abs))
    want = transposed.reference(*exact, *([] if case["bias"] else [None]), *geometry)
    magnitude = transposed.reference(*positive, *([] if case["bias"] else [None]), *geometry)

    mine = [t.detach().requires_grad_() for t in inputs]
    stride, padding, extra, dilation, groups = geometry
    got = F.conv_transpose2d(
        *mine, *([] if case["bias"] else [None]), stride, padding, extra, groups=groups, dilation=dilation
    )
    assert got.dtype == dtype
    formats = [memory_format(t) for t in (x, weight)]
    assert got.is_contiguous(memory_format=LAYOUTS[torch.channels_last in formats])
    assert ((got - want).abs() <= tolerance(dtype, weight[:, 0].numel() // groups, magnitude)).all()
    with torch.no_grad():
        assert torch.equal(transposed.ops.raw(x, weight, bias, *geometry), got)

    grad = torch.randn(got.shape).to(dtype).to(memory_format=case["layouts"][2])
    expected = torch.autograd.grad(want, exact, grad.double())
    magnitudes = torch.autograd.grad(magnitude, positive, grad.double().abs())
    # An input's gradient sums a window, a weight's and a bias's sum over the map and the batch.
    terms = (weight[0].numel(), x[:, 0].numel(), grad[:, 0].numel())
    for g, e, m, t in zip(torch.autograd.grad(got, mine, grad), expected, magnitudes, terms):
        assert ((g - e).abs() <= tolerance(dtype, t, m)).all()


@pytest.mark.parametrize("layer", [*ALEXNET[:2], *RESNET50[-2:]], ids=lambda layer: layer.name)
def test_named_layers(layer):
    """The way back through published layers, as a deconvnet takes it, against stock PyTorch's float64."""
    x = torch.randn(layer.output_shape()).to(memory_format=torch.channels_last)
    weight = torch.randn(layer.weight_shape)
    y = F.conv_transpose2d(x, weight, None, **layer.kwargs)
    want = torch.nn.functional.conv_transpose2d(x.double(), weight.double(), None, **layer.kwargs)
    magnitude = torch.nn.functional.conv_transpose2d(x.double().abs(), weight.double().abs(), None, **layer.kwargs)
    assert ((y - want).abs() <= tolerance(torch.float32, weight[:, 0].numel(), magnitude)).all()
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_zfnet_conv1_backwards():
    """110x110 to 224x224 needs an output_padding of 1: of two input sizes that give 110 it is the larger."""
    module = nn.ConvTranspose2d(96, 3, 7, stride=2, padding=1, output_padding=1, bias=False)
    assert module(torch.zeros(1, 96, 110, 110)).shape == (1, 3, 224, 224)
    plain = nn.ConvTranspose2d(96, 3, 7, stride=2, padding=1, bias=False)
    assert plain(torch.zeros(1, 96, 110, 110)).shape == (1, 3, 223, 223)
    assert plain(torch.zeros(1, 96, 110, 110), output_size=(224, 224)).shape == (1, 3, 224, 224)


def test_is_the_adjoint_of_conv2d():
    x, y = torch.randn(2, 6, 9, 8, dtype=torch.float64), torch.randn(2, 4, 5, 3, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64)
    there = F.conv2d(x, weight, None, (2, 3), (1, 1), 1, 2)
    back = F.conv_transpose2d(y[:, :, :, : there.shape[3]], weight, None, (2, 3), (1, 1), (0, 2), 2)
    assert back.shape == x.shape
    torch.testing.assert_close((there * y[:, :, :, : there.shape[3]]).sum(), (x * back).sum())


def gradient_inputs():
    torch.manual_seed(0)
    shapes = (2, 4, 4, 3), (4, 3, 3, 3), (6,)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def test_gradcheck_and_gradgradcheck():
    inputs = gradient_inputs()
    stride, padding, extra, dilation, groups = GEOMETRY
    for f in (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, extra, groups, dilation),
        lambda x, w, b: torch.ops.fastcnn.conv_transpose2d(x, w, b, *GEOMETRY),
    ):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, w, b = gradient_inputs()
    x = x.detach().to(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastcnn.conv_transpose2d.default, (x, w, b, *GEOMETRY))
    torch.library.opcheck(torch.ops.fastcnn.conv_transpose2d.default, (x, w, None, *GEOMETRY))
    torch.library.opcheck(transposed.ops.raw, (x.detach(), w.detach(), b.detach(), *GEOMETRY))


def test_functional_transforms():
    x, w, b = (t.detach() for t in gradient_inputs())
    one = lambda x, w: F.conv_transpose2d(x, w, b, 2, 1, 1, 2)
    f = lambda x, w: one(x, w).square().sum()
    want = torch.autograd.grad(f(x, w.requires_grad_()), w)[0]
    torch.testing.assert_close(torch.func.grad(f, 1)(x, w.detach()), want)
    w = w.detach()
    xs, ws = torch.randn(3, *x.shape, dtype=x.dtype), torch.randn(3, *w.shape, dtype=x.dtype)
    for dims in ((0, None), (None, 0), (0, 0)):
        args = (xs if dims[0] == 0 else x, ws if dims[1] == 0 else w)
        pick = lambda i, args=args, dims=dims: [a[i] if d == 0 else a for a, d in zip(args, dims)]
        want = torch.stack([one(*pick(i)) for i in range(3)])
        torch.testing.assert_close(torch.vmap(one, dims)(*args), want)
        got = torch.vmap(torch.func.grad(f, 1), dims)(*args)
        torch.testing.assert_close(got, torch.stack([torch.func.grad(f, 1)(*pick(i)) for i in range(3)]))


def test_compile_and_export():
    torch._dynamo.reset()
    module = nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1)
    compiled = torch.compile(lambda x: module(x * 2).relu(), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 6, 9):
        x = torch.randn(2, 3, size, size, requires_grad=True)
        want = module(x * 2).relu()
        torch.testing.assert_close(compiled(x), want)
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(want.sum(), x))
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.conv_transpose2d.default) in str(exported.graph)
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), module(torch.cat([x, x])))


def test_autocast_casts_to_its_dtype():
    module, x = nn.ConvTranspose2d(3, 5, 3), torch.randn(1, 3, 8, 8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            y = torch.ops.fastcnn.conv_transpose2d(x, module.weight, None, (1, 1), (0, 0), (0, 0), (1, 1), 1)
            assert module(x).dtype == y.dtype == dtype
            assert F.conv_transpose2d(x.double(), module.weight.double()).dtype == torch.float64
        module(x).sum().backward()
        assert module.weight.grad.dtype == torch.float32


def test_flops_equal_stock():
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    counts = []
    for function in (F.conv_transpose2d, torch.nn.functional.conv_transpose2d):
        w = torch.randn(4, 6, 3, 3, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            function(x, w, None, 2, 1).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("disabled", [False, True])
def test_module_equals_torch(disabled):
    torch.manual_seed(0)
    arguments = dict(stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, dilation=(1, 2))
    stock, module = (m.ConvTranspose2d(4, 6, (4, 3), **arguments) for m in (torch.nn, nn))
    module.load_state_dict(stock.state_dict())
    assert repr(module) == repr(stock)
    assert isinstance(module, torch.nn.ConvTranspose2d)
    with _config.disabled() if disabled else torch.enable_grad():
        for x in (torch.randn(2, 4, 9, 8), torch.randn(4, 9, 8), torch.randn(0, 4, 9, 8)):
            torch.testing.assert_close(module(x), stock(x))
        size = (18, 26)
        torch.testing.assert_close(module(torch.ones(2, 4, 9, 8), size), stock(torch.ones(2, 4, 9, 8), size))
        with pytest.raises(ValueError, match="requested an output size"):
            module(torch.ones(2, 4, 9, 8), (40, 40))
    with pytest.raises(ValueError, match="padding mode"):
        nn.ConvTranspose2d(4, 6, 3, padding_mode="reflect")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout):
    x, w = torch.randn(2, 64, 14, 14).to(memory_format=layout).requires_grad_(), torch.randn(64, 48, 3, 3)
    w.requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y = F.conv_transpose2d(x, w, None, 2, 1, 1)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.cpu
def test_explain():
    (row,) = fastcnn.explain(F.conv_transpose2d, (1, 4, 5, 5), (4, 3, 3, 3)).rows
    assert row.op == "conv_transpose2d"
    assert "vectors over output channels" in row.why
