"""1x1 convolution in Triton's interpreter: named layers on small maps and odd sizes, against float64."""

import dataclasses
import itertools

import pytest
import torch
from fastcnn.kernels import pointwise_forward
from fastcnn.kernels.tiles import PointwiseTile, pointwise_candidates, pointwise_tile
from torch.library import opcheck

import fastcnn.ops.conv2d as convolution
from fastcnn._config import road
from tests.cases import DENSENET121, GOOGLENET, RESNET50, SQUEEZENET

ops = torch.ops.fastcnn
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAST = torch.channels_last
LAYERS = [case for case in (*RESNET50, *GOOGLENET, *SQUEEZENET, *DENSENET121) if case.kernel_size == 1]
# Maps of 3 x 5 outputs and real input channels, which make the sums; of outputs the first 80, for time.
SIZES = [
    pytest.param(2, case.in_channels, (3 * case.stride, 5 * case.stride), min(case.out_channels, 80), case.stride,
                 id=case.name)
    for case in LAYERS
]  # fmt: skip
ODD = [
    (1, 1, (1, 1), 1, 1),
    (3, 7, (5, 3), 13, 1),
    (1, 17, (7, 9), 33, 2),
    (2, 131, (4, 4), 67, 3),
    (5, 64, (1, 1), 16, 1),
]
SMALL = PointwiseTile(32, 32, 16, 2, 1, False, 4, 2)


def tensors(n, inputs, size, outputs, dtype):
    x = torch.randn(n, inputs, *size).to(dtype).contiguous(memory_format=LAST)
    return x, (torch.randn(outputs, inputs, 1, 1) / inputs**0.5).to(dtype)


def expected(x, weight, scale=None, shift=None, residual=None, stride=1, relu=False):
    """float64, and the bound of the kernel's error.

    Sums of C products, rounded to float32 at each addition, are off by some sqrt(C) half units of the sum of
    magnitudes; four times that is never seen. Then the output is rounded once. Products of 16 bits are exact. To
    bfloat16 Triton's interpreter truncates: a unit instead of half a one (compiled kernels round).
    """
    wide = weight.double() if scale is None else weight.double() * scale.double().view(-1, 1, 1, 1)
    geometry = ((stride, stride), (0, 0), (1, 1), 1)
    y = convolution.reference(x, wide, shift, residual, *geometry, relu)
    magnitude = convolution.reference(
        x.abs(), wide.abs(), None if shift is None else shift.abs(), None if residual is None else residual.abs(),
        *geometry, False,
    )  # fmt: skip
    steps, info = 4 * (x.shape[1] ** 0.5 + 3), torch.finfo(x.dtype)
    return y, steps * 2**-24 * magnitude + y.abs() * info.eps / (1 if x.dtype is BF16 else 2) + info.tiny


def assert_within(actual, wanted):
    y, bound = wanted
    assert actual.shape == y.shape
    error = (actual.double() - y).abs()
    assert bool((error <= bound).all()), f"{(error / bound).max():.3g} times the bound"


@pytest.mark.parametrize(("n", "inputs", "size", "outputs", "stride"), [*SIZES, *ODD])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_values(n, inputs, size, outputs, stride, dtype):
    x, weight = tensors(n, inputs, size, outputs, dtype)
    y = ops.pointwise_conv2d(x, weight, None, None, None, None, None, (stride, stride), False, False)
    assert y.is_contiguous(memory_format=LAST)
    assert_within(y, expected(x, weight, stride=stride))


PARTS = list(itertools.product([False, True], repeat=4))


@pytest.mark.parametrize(
    ("dtype", "scaled", "shifted", "added", "relu"),
    [*((F32, *parts) for parts in PARTS), *((dtype, *parts) for dtype in (F16, BF16) for parts in PARTS[-2:])],
)
def test_epilogue(dtype, scaled, shifted, added, relu):
    x, weight = tensors(2, 24, (5, 6), 37, dtype)
    scale, shift = torch.rand(37) + 0.5 if scaled else None, torch.randn(37) if shifted else None
    residual = torch.randn(2, 37, 3, 3).to(dtype) if added else None  # NCHW: copied
    y = ops.pointwise_conv2d(x, weight, scale, shift, residual, None, None, (2, 2), relu, False)
    assert_within(y, expected(x, weight, scale, shift, residual, 2, relu))


def normalized(x, scale, shift):
    return (x.float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu().to(x.dtype)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("inputs", [16, 37])
def test_prologue(inputs, dtype):
    """The normalization and ReLU in front, as DenseNet and pre-activation ResNets have them."""
    x, weight = tensors(2, inputs, (5, 7), 21, dtype)
    scale, shift = torch.randn(inputs), torch.randn(inputs)
    y = ops.pointwise_conv2d(x, weight, None, None, None, scale, shift, (1, 1), False, False)
    v = normalized(x, scale, shift)
    wanted, bound = expected(v, weight)
    if dtype is BF16:  # what is multiplied is truncated, too
        bound += torch.finfo(BF16).eps * torch.nn.functional.conv2d(v.double(), weight.double().abs())
    assert_within(y, (wanted, bound))


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("tile", [None, SMALL, dataclasses.replace(SMALL, split=3)], ids=["own", "small", "split"])
def test_stats(tile, dtype):
    """Statistics are those of the values as stored, and survive a mean that is large beside the deviations."""
    x, weight = tensors(3, 50, (5, 7), 37, dtype)
    y = torch.full((3, 37, 5, 7), torch.nan, dtype=dtype).contiguous(memory_format=LAST)
    mean, var = pointwise_forward.launch(x, weight, y, shift=torch.full((37,), 50.0), stats=True, tile=tile)
    assert_within(y, expected(x, weight, shift=torch.full((37,), 50.0)))
    wide = y.double()
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=0)
    # A tile's mean is off by a few 2^-24 * 50; times twice its deviation from the common mean that enters.
    torch.testing.assert_close(var.double(), wide.var((0, 2, 3), correction=0), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "tile",
    [
        dataclasses.replace(SMALL, split=2),
        dataclasses.replace(SMALL, split=4),  # the last has nothing to add where there are 5 steps
        dataclasses.replace(SMALL, persistent=True),
        dataclasses.replace(SMALL, group=1),
        PointwiseTile(16, 16, 32, 8, 1, False, 4, 2),
    ],
    ids=lambda t: f"split{t.split}-persistent{t.persistent}-group{t.group}-{t.pixels}",
)
@pytest.mark.parametrize("inputs", [80, 75])
def test_tiles_agree(tile, inputs, monkeypatch):
    """However the product is cut, persistent programs take more than one tile here."""
    monkeypatch.setattr(pointwise_forward, "processors", lambda x: 2)
    x, weight = tensors(2, inputs, (5, 8), 50, F32)
    residual, shift = torch.randn(2, 50, 5, 8).contiguous(memory_format=LAST), torch.randn(50)
    y = torch.full_like(residual, torch.nan)
    pointwise_forward.launch(x, weight, y, shift=shift, residual=residual, relu=True, tile=tile)
    assert_within(y, expected(x, weight, None, shift, residual, 1, True))


def test_what_policy_fastest_times_computes_the_same(monkeypatch):
    x, weight = tensors(1, 96, (5, 7), 40, F16)
    wanted = expected(x, weight)
    candidates = pointwise_candidates(35, 96, 40, F16, False, 108)
    for name in list(candidates)[::3]:
        monkeypatch.setattr(road, "candidate", name)
        assert pointwise_forward.tile_of(35, 96, 40, F16, False, 108) == candidates[name]
        assert_within(ops.pointwise_conv2d(x, weight, None, None, None, None, None, (1, 1), False, False), wanted)


def test_a_channel_slice_is_written_alone():
    x, weight = tensors(2, 20, (4, 5), 18, F16)
    wide = torch.full((2, 40, 4, 5), 7.0, dtype=F16).contiguous(memory_format=LAST)
    ops.pointwise_conv2d_into(x, weight, None, None, None, None, None, (1, 1), True, False, wide[:, 9:27])
    assert_within(wide[:, 9:27], expected(x, weight, relu=True))
    assert bool((wide[:, :9] == 7).all())
    assert bool((wide[:, 27:] == 7).all())


@pytest.mark.parametrize("layout", ["slice", "nchw", "crop", "expanded"])
def test_layouts_of_the_input(layout):
    x, weight = tensors(2, 12, (6, 8), 10, F32)
    if layout == "slice":
        x = tensors(2, 30, (6, 8), 10, F32)[0][:, 5:17]
    elif layout == "nchw":
        x = x.contiguous()
    elif layout == "crop":
        x = x[:, :, 1:5, 2:7]
    else:
        x = x[:1].expand(3, -1, -1, -1)
    y = ops.pointwise_conv2d(x, weight, None, None, None, None, None, (1, 1), False, False)
    assert_within(y, expected(x, weight))


@pytest.mark.parametrize("split", [1, 2])
def test_offsets_of_64_bits(split, monkeypatch):
    """The switch that tensors of 2^31 elements turn on; that they do, tests/triton/test_tiles.py checks."""
    monkeypatch.setattr(pointwise_forward, "needs_int64", lambda *tensors: True)
    x, weight = tensors(2, 40, (5, 7), 37, F16)
    y = torch.empty(2, 37, 3, 4, dtype=F16, memory_format=LAST)
    stats = pointwise_forward.launch(
        x, weight, y, stride=(2, 2), stats=True, tile=dataclasses.replace(SMALL, split=split)
    )
    assert_within(y, expected(x, weight, stride=2))
    torch.testing.assert_close(stats[0].double(), y.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize(("relu", "stride", "extra"), [(True, 2, True), (False, 1, False), (True, 1, False)])
def test_gradients(relu, stride, extra, dtype):
    """Of everything that the op takes, through the ops of pointwise_backward.py."""
    x, weight = tensors(2, 12, (5, 7), 10, dtype)
    vectors = [torch.rand(10) + 0.5, torch.randn(10), torch.randn(12), torch.randn(12)]
    scale, shift, pre_scale, pre_shift = vectors if extra else [None] * 4
    size = pointwise_forward.output_size(x, weight, (stride, stride))
    residual = torch.randn(size).to(dtype) if extra else None
    given = (x, weight, scale, shift, residual, pre_scale, pre_shift)
    leaves = [None if t is None else t.clone().requires_grad_() for t in given]
    y = ops.pointwise_conv2d(*leaves, (stride, stride), relu, False)
    # Multiples of 1/8 that all types hold: only what the op rounds differs.
    g = torch.randint(-8, 9, y.shape).to(dtype) / 8
    inputs = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(y, inputs, g)

    wide = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    x, weight, scale, shift, residual, pre_scale, pre_shift = wide
    v = x if not extra else (x * pre_scale.view(-1, 1, 1) + pre_shift.view(-1, 1, 1)).relu()
    w = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
    z = torch.nn.functional.conv2d(v, w, shift, stride)
    z = z if residual is None else z + residual
    # The sign is that of the rounded output, as training sees it.
    wanted = torch.autograd.grad(
        z, [t for t in wide if t is not None], g.double() * (y.double() > 0) if relu else g.double()
    )
    # Up to three roundings to the type in a row (what is multiplied, scaled weights, the gradient) of values up to some
    # 20; sums over 70 pixels of float32.
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.shape == want.shape
        error = (grad.double() - want).abs().max() / want.abs().max()
        assert error < 8 * max(torch.finfo(dtype).eps, 2**-22)


def test_equal_bits_every_run():
    x, weight = tensors(2, 300, (5, 7), 37, F32)
    assert pointwise_tile(70, 300, 37, F32, False, 108).split > 1
    runs = [ops.pointwise_conv2d_stats(x, weight, None, None, None, (1, 1), False) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_nan_passes_the_relu():
    x, weight = tensors(1, 4, (2, 2), 3, F32)
    x[0, 0, 0, 0] = torch.nan
    y = ops.pointwise_conv2d(x, weight, None, None, None, None, None, (1, 1), True, False)
    assert bool(y[0, :, 0, 0].isnan().all())
    assert not bool(y[0, :, 0, 1].isnan().any())


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 0, 3, 3)])
def test_empty(shape):
    x, weight = torch.randn(shape), torch.randn(5, shape[1], 1, 1)
    y = ops.pointwise_conv2d(x, weight, None, torch.ones(5), None, None, None, (1, 1), False, False)
    assert torch.equal(y, torch.ones(shape[0], 5, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weight=torch.ones(4, 5, 1, 1)), r"expected x \(N, C, H, W\) and weight \(O, C, 1, 1\)"),
        (dict(weight=torch.ones(4, 6, 3, 3)), "expected a 1x1 weight"),
        (dict(weight=torch.ones(4, 6, 1, 1).half()), "expected weight of x's dtype"),
        (dict(stride=(0, 1)), "expected a stride of two positive numbers"),
        (dict(scale=torch.ones(5)), r"expected scale of size \(4,\)"),
        (dict(pre_scale=torch.ones(6)), "expected pre_scale and pre_shift or none"),
        (dict(residual=torch.ones(1, 4, 3, 2)), r"expected a residual of size \[1, 4, 3, 3\]"),
        (dict(x=torch.ones(1, 6, 3, 3).double(), weight=torch.ones(4, 6, 1, 1).double()), "no Triton kernel for"),
    ],
    ids=["channels", "kernel", "dtype", "stride", "scale", "pre", "residual", "float64"],
)
def test_errors(change, message):
    given = dict(
        x=torch.ones(1, 6, 3, 3), weight=torch.ones(4, 6, 1, 1), scale=None, shift=None, residual=None,
        pre_scale=None, pre_shift=None, stride=(1, 1), relu=False, tf32=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        ops.pointwise_conv2d(**{**given, **change})


def test_schemas():
    x, weight = tensors(2, 8, (3, 4), 5, F32)
    args = (None, None, None, None, None, (1, 1), True, False)
    checks = ("test_schema", "test_faketensor")
    opcheck(ops.pointwise_conv2d.default, (x, weight, *args), test_utils=checks)
    opcheck(ops.pointwise_conv2d_stats.default, (x, weight, None, None, None, (1, 1), False), test_utils=checks)
    out = torch.zeros(2, 9, 3, 4).contiguous(memory_format=LAST)[:, 2:7]
    opcheck(ops.pointwise_conv2d_into.default, (x, weight, *args, out), test_utils=checks)
