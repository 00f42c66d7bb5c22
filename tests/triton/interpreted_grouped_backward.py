"""Gradients of grouped convolution in Triton's interpreter, against float64."""

import pytest
import torch
from fastcnn.kernels.grouped import backward_input, backward_weight, grouped_conv2d, grouped_conv2d_stats
from fastcnn.kernels.grouped_backward import launch_input, launch_weight
from fastcnn.kernels.tiles_grouped import GroupedTile, GroupedWeightTile, grouped_weight_tile

from fastcnn.ops.conv2d import reference
from tests.triton.grouped_layers import ODD, RESNEXT, Layer, assert_within, sum_of_products

SMALL = Layer(5, 4, 4, size=(4, 5), stride=(2, 2))
WIDE = [layer for layer in RESNEXT if layer.groups == 5]  # of all channels the interpreter would take minutes


def gradients(g, x, weight, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the input and the weight, float64, by torch's autograd of the reference."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    return torch.autograd.grad(sum_of_products(x, weight, layer), (x, weight), g.double())


def check(layer: Layer, dtype: torch.dtype, masked: bool = False, tiles=(None, None)) -> None:
    x, weight = layer.operands(dtype)
    shape = sum_of_products(x, weight, layer).shape
    g = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    y = torch.randn(shape).relu().to(dtype) if masked else None
    dx = launch_input(g, weight, x.shape, *layer.geometry, y, False, tiles[0])
    dw = launch_weight(g, x, weight.shape, *layer.geometry, y, False, tiles[1])
    kept = g if y is None else g * (y > 0)
    wanted = gradients(kept, x, weight, layer)
    absolute = gradients(kept.abs(), x.abs(), weight.abs(), layer)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert_within(dx, wanted[0], absolute[0], layer.outputs * weight[0, 0].numel(), f"{layer}, input", truncated=True)
    assert_within(dw, wanted[1], absolute[1], g[:, 0].numel(), f"{layer}, weight", truncated=True)


@pytest.mark.parametrize("layer", WIDE, ids=str)
def test_resnext(layer):
    check(layer, torch.float16)


@pytest.mark.parametrize("layer", ODD, ids=str)
def test_odd_sizes(layer):
    check(layer, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_relu_mask(dtype):
    check(SMALL, dtype, masked=True)


def test_relu_mask_passes_nan():
    """As threshold_backward: 0 where the output is not positive, also of a NaN, but a NaN lets pass."""
    layer = Layer(1, 1, 1, size=(1, 3), kernel_size=(1, 1), padding=(0, 0))
    g, y = torch.tensor([torch.nan, 2.0, 3.0]), torch.tensor([0.0, torch.nan, 1.0])
    dx = backward_input(
        g.view(1, 1, 1, 3), torch.ones(1, 1, 1, 1), (1, 1, 1, 3), *layer.geometry, y.view(1, 1, 1, 3), False
    )
    assert dx.flatten().tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_group(value):
    """Groups of one pack are multiplied together, but not what is no number in them."""
    layer = Layer(5, 4, 3, size=(3, 4))
    x, weight = layer.operands(torch.float32)
    g = torch.randn(1, 15, 3, 4)
    g[0, 4, 1, 1] = value
    wanted = gradients(g, x, weight, layer)
    dx = backward_input(g, weight, x.shape, *layer.geometry, None, False)
    dw = backward_weight(g, x, weight.shape, *layer.geometry, None, False)
    for a, w in zip((dx, dw), wanted):
        assert torch.equal(a.isfinite(), w.isfinite())
        # 27 products below 20, 12 pixels' below 10: as many roundings of their sum.
        torch.testing.assert_close(a.double(), w, rtol=1e-5, atol=1e-4, equal_nan=True)
    assert not dx[:, 4:8].isfinite().all()
    assert dx[:, :4].isfinite().all()
    assert dx[:, 8:].isfinite().all()


def test_pixels_that_no_output_reads():
    """A stride beyond the kernel: their gradient is zero, not what the memory held."""
    layer = Layer(3, 6, 6, size=(9, 8), kernel_size=(1, 2), padding=(0, 1), stride=(4, 3))
    x, weight = layer.operands(torch.float32)
    g = torch.ones(sum_of_products(x, weight, layer).shape)
    dx = backward_input(g, weight, x.shape, *layer.geometry, None, False)
    assert (dx[:, :, 1:4] == 0).all()
    assert (dx[:, :, ::4, ::3] != 0).all()


@pytest.mark.parametrize(
    "tiles",
    [
        (GroupedTile(1, 16, 16, 16, 4, 2), GroupedWeightTile(1, 16, 16, 16, 1, 4, 2)),
        (GroupedTile(2, 32, 16, 16, 4, 2), GroupedWeightTile(2, 16, 32, 16, 3, 4, 2)),
        (GroupedTile(4, 16, 16, 32, 4, 2), GroupedWeightTile(4, 32, 64, 16, 7, 4, 2)),
    ],
    ids=["one_group", "two_groups", "four_groups"],
)
def test_tiles(tiles):
    """Packs that the groups do not fill, several tiles and steps a pack, splits of which the last have no pixels."""
    check(Layer(5, 9, 11, size=(5, 6), stride=(2, 1)), torch.float32, tiles=tiles)


def test_int64_addresses(monkeypatch):
    monkeypatch.setattr("fastcnn.kernels.grouped_forward.needs_int64", lambda *tensors: True)
    check(SMALL, torch.float32, masked=True)


def test_epilogue():
    """Gradients of everything that the op takes, with a ReLU."""
    layer = SMALL
    x, weight = layer.operands(torch.float32)
    shape = sum_of_products(x, weight, layer).shape
    operands = [x, weight, torch.rand(20) + 0.5, torch.randn(20), torch.randn(shape)]
    for t in operands:
        t.requires_grad_()
    y = grouped_conv2d(*operands, *layer.geometry, True, False)
    g = torch.randn(shape)
    actual = torch.autograd.grad(y, operands, g)
    double = [t.detach().double().requires_grad_() for t in operands]
    z = reference(*double[:2], None, None, *layer.geometry, False)
    pre = z * double[2].view(-1, 1, 1) + double[3].view(-1, 1, 1) + double[4]
    assert pre.abs().min() > 1e-5  # no sign that float32's rounding could turn
    wanted = torch.autograd.grad(pre.relu(), double, g.double())
    for name, a, w in zip(("x", "weight", "scale", "shift", "residual"), actual, wanted):
        # Sums of at most 36 products of three values near 1, or of 24 pixels, each off by a few roundings.
        torch.testing.assert_close(a.double(), w, rtol=1e-5, atol=4e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_gradient_of_statistics():
    layer = Layer(3, 4, 4, size=(4, 5), batch=2)
    x, weight = layer.operands(torch.float32)
    x.requires_grad_()
    weight.requires_grad_()
    z, mean, variance = grouped_conv2d_stats(x, weight, *layer.geometry, False)
    g = torch.randn_like(z)
    normalized = (z - mean.view(-1, 1, 1)) * (variance + 1e-5).rsqrt().view(-1, 1, 1)
    actual = torch.autograd.grad(normalized, (x, weight), g)
    double = [t.detach().double().requires_grad_() for t in (x, weight)]
    wanted = torch.autograd.grad(
        torch.nn.functional.batch_norm(sum_of_products(*double, layer), None, None, training=True), double, g.double()
    )
    for a, w in zip(actual, wanted):
        # Batch normalization's gradient cancels in part: 40 pixels, 36 products, values below 30.
        torch.testing.assert_close(a.double(), w, rtol=1e-5, atol=1e-4)


def test_second_derivatives():
    layer = Layer(2, 2, 3, size=(3, 4), stride=(2, 1))
    x, weight = layer.operands(torch.float32)

    def penalty(x, weight, convolve):
        y = convolve(x, weight)
        dx, dw = torch.autograd.grad((y * y).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad((dx * dx).sum() + (dw * dw).sum(), (x, weight))

    def ours(x, w):
        return grouped_conv2d(x, w, None, None, None, *layer.geometry, False, False)

    actual = penalty(x.requires_grad_(), weight.requires_grad_(), ours)
    double = [t.detach().double().requires_grad_() for t in (x, weight)]
    wanted = penalty(*double, lambda x, w: reference(x, w, None, None, *layer.geometry, False))
    for a, w in zip(actual, wanted):
        # Five convolutions in a row of at most 24 products each: 120 roundings of the largest value.
        torch.testing.assert_close(a.double(), w, rtol=0, atol=120 * 2**-24 * float(w.abs().max()))


def test_vmap():
    """vmap over inputs folds into the batch, over weights it loops."""
    layer = Layer(2, 2, 2, size=(2, 3))
    x = torch.stack([layer.operands(torch.float32, seed)[0] for seed in range(2)])
    weight = torch.stack([layer.operands(torch.float32, seed)[1] for seed in range(2)])

    def convolve(x, w):
        return grouped_conv2d(x, w, None, None, None, *layer.geometry, False, False)

    each = torch.stack([convolve(x[i], weight[0]) for i in range(2)])
    # Close only: numpy's product, which the interpreter takes, may round a row by where it stands in its block.
    torch.testing.assert_close(torch.vmap(convolve, (0, None))(x, weight[0]), each)
    each = torch.stack([convolve(x[i], weight[i]) for i in range(2)])
    torch.testing.assert_close(torch.vmap(convolve)(x, weight), each, rtol=0, atol=0)


@pytest.mark.parametrize("op", [backward_input, backward_weight], ids=["input", "weight"])
def test_refused(op):
    x, weight = SMALL.operands(torch.float32)
    other, size = (weight, x.shape) if op is backward_input else (x, weight.shape)
    with pytest.raises(RuntimeError, match=r"expected grad to be torch.float32 of size \[1, 20, 2, 3\] on cpu"):
        op(torch.ones(1, 20, 3, 3), other, size, *SMALL.geometry, None, False)
    g = torch.ones(1, 20, 2, 3)
    with pytest.raises(RuntimeError, match=r"expected y to be torch.float32 of size .* but got torch.float16"):
        op(g, other, size, *SMALL.geometry, g.half(), False)


def test_schema():
    x, weight = Layer(4, 4, 4, size=(2, 3)).operands(torch.float32)
    how = ((1, 1), (1, 1), (1, 1), 4, x.relu(), False)
    ops = torch.ops.fastcnn
    for op, operands in (
        (ops.grouped_conv2d_backward_input, (x, weight, x.shape)),
        (ops.grouped_conv2d_backward_weight, (x.clone(), x, weight.shape)),
    ):
        torch.library.opcheck(op.default, (*operands, *how), test_utils="test_schema")


def test_split_rule():
    """Enough splits to fill the processors, none with less than eight steps."""
    tile = grouped_weight_tile(128 * 56 * 56, 32, 4, 4, 9, torch.float16)
    blocks = 8 * -(-9 * 16 // tile.block_c)
    assert 4 * 108 <= blocks * tile.splits < 4 * 108 + blocks
    assert grouped_weight_tile(8 * 64 - 1, 1, 4, 4, 9, torch.float16).splits == 1
