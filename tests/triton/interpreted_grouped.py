"""Grouped convolution's kernel in Triton's interpreter, against float64."""

from dataclasses import replace

import pytest
import torch
from fastcnn.kernels.grouped import grouped_conv2d, grouped_conv2d_stats
from fastcnn.kernels.grouped_forward import flags, launch
from fastcnn.kernels.tiles_grouped import GroupedTile, grouped_tile

from tests.triton.grouped_layers import ODD, RESNEXT, Layer, assert_within, sum_of_products

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Layer(6, 4, 4, batch=2)


def convolve(x, weight, layer, scale=None, shift=None, residual=None, relu=False):
    return grouped_conv2d(x, weight, scale, shift, residual, *layer.geometry, relu, False)


def check(layer: Layer, dtype: torch.dtype, run=convolve) -> None:
    x, weight = layer.operands(dtype)
    y = run(x, weight, layer)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == dtype
    terms = layer.inputs * layer.kernel_size[0] * layer.kernel_size[1]
    absolute = sum_of_products(x.abs(), weight.abs(), layer)
    assert_within(y, sum_of_products(x, weight, layer), absolute, terms, str(layer), truncated=dtype is torch.bfloat16)


@pytest.mark.parametrize("layer", RESNEXT, ids=str)
def test_resnext(layer):
    check(layer, torch.float16)


@pytest.mark.parametrize("layer", ODD, ids=str)
def test_odd_sizes(layer):
    check(layer, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", [SMALL, Layer(3, 3, 5, stride=(2, 2)), Layer(2, 32, 32, size=(3, 3))], ids=str)
def test_dtypes(layer, dtype):
    check(layer, dtype)


@pytest.mark.parametrize("has", ["", "scale", "shift", "residual", "scale shift", "scale shift residual"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_epilogue(has, relu, dtype):
    layer = Layer(5, 4, 4, stride=(2, 2))
    x, weight = layer.operands(dtype)
    z, absolute = sum_of_products(x, weight, layer), sum_of_products(x.abs(), weight.abs(), layer)
    scale = torch.randn(20) if "scale" in has else None
    shift = torch.randn(20) if "shift" in has else None
    residual = torch.randn(z.shape).to(dtype) if "residual" in has else None  # not channels last
    y = convolve(x, weight, layer, scale, shift, residual, relu)
    if scale is not None:
        z, absolute = z * scale.double().view(-1, 1, 1), absolute * scale.double().abs().view(-1, 1, 1)
    for added in (None if shift is None else shift.view(-1, 1, 1), residual):
        if added is not None:
            z, absolute = z + added.double(), absolute + added.double().abs()
    assert_within(y, z.relu() if relu else z, absolute, 9 * 4 + 3, truncated=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_group(value):
    """Groups of one pack are multiplied together, but not what is no number in them; the ReLU keeps NaN."""
    x, weight = SMALL.operands(torch.float32)
    x[1, 3, 2, 2] = value
    y, wanted = convolve(x, weight, SMALL, relu=True), sum_of_products(x, weight, SMALL).relu()
    # Of 36 products, the sum of whose sizes stays below 100.
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=37 * 2**-24 * 100, equal_nan=True)
    assert y[1, :4, 1:4, 1:4].isfinite().logical_not().any()
    assert y[:, 4:].isfinite().all()


@pytest.mark.parametrize(
    "tile",
    [GroupedTile(1, 16, 16, 16, 4, 2), GroupedTile(3, 32, 16, 16, 4, 2), GroupedTile(4, 64, 16, 32, 4, 2)],
    ids=str,
)
def test_tiles(tile):
    """Packs that the groups do not fill, several tiles and several steps a pack."""
    layer = Layer(7, 9, 11, size=(5, 5))
    check(
        layer,
        torch.float32,
        lambda x, w, _: launch(x, w, None, None, None, *layer.geometry, False, False, False, tile)[0],
    )


def test_int64_addresses(monkeypatch):
    monkeypatch.setattr("fastcnn.kernels.grouped_forward.needs_int64", lambda *tensors: True)
    x, _ = SMALL.operands(torch.float32)
    assert flags(x, False, x)["INT64"]
    check(Layer(5, 4, 4, batch=2), torch.float32)


def test_channel_slice_is_read_in_place():
    x, weight = SMALL.operands(torch.float32)
    wide = torch.full((*x.shape[:1], 40, *x.shape[2:]), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 8:32] = x
    assert torch.equal(convolve(wide[:, 8:32], weight, SMALL), convolve(x, weight, SMALL))


def test_any_layout():
    """NCHW, transposed and expanded inputs, weights channels last."""
    x, weight = SMALL.operands(torch.float32)
    wanted = convolve(x, weight, SMALL)
    assert torch.equal(convolve(x.contiguous(), weight.contiguous(memory_format=torch.channels_last), SMALL), wanted)
    assert torch.equal(convolve(x.transpose(2, 3).contiguous().transpose(2, 3), weight, SMALL), wanted)
    # Close only: numpy's product, which the interpreter takes, may round a row by where it stands in its block.
    one = convolve(x[:1], weight, SMALL)
    torch.testing.assert_close(convolve(x[:1].expand(2, -1, -1, -1), weight, SMALL), one.expand(2, -1, -1, -1))


def test_any_stride_of_scale_and_shift():
    x, weight = SMALL.operands(torch.float32)
    scale, shift = torch.rand(2, 24, 2).unbind(0)
    apart = convolve(x, weight, SMALL, scale[:, 0], shift[:, 1])
    assert torch.equal(apart, convolve(x, weight, SMALL, scale[:, 0].clone(), shift[:, 1].clone()))
    one = torch.tensor([0.5])
    assert torch.equal(
        convolve(x, weight, SMALL, shift=one.expand(24)), convolve(x, weight, SMALL, shift=one.repeat(24))
    )


@pytest.mark.parametrize("size", [(2, 24, 1, 1), (1, 24, 5, 7), (2, 24, 5, 8)], ids=str)
def test_residual_of_another_size_is_refused(size):
    x, weight = SMALL.operands(torch.float32)
    with pytest.raises(RuntimeError, match=r"expected residual of size \[2, 24, 5, 7\] on cpu, but got"):
        convolve(x, weight, SMALL, residual=torch.zeros(size))
    with pytest.raises(RuntimeError, match=r"expected shift of size \[24\] on cpu, but got \[25\]"):
        convolve(x, weight, SMALL, shift=torch.zeros(25))


def test_empty_batch():
    x, weight = replace(SMALL, batch=0).operands(torch.float16)
    assert convolve(x, weight, SMALL).shape == (0, 24, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "layer", [SMALL, Layer(3, 7, 5, size=(9, 7), stride=(2, 2), batch=2), Layer(2, 3, 3, size=(1, 1))], ids=str
)
def test_statistics(layer, dtype):
    """Mean and variance are those of the values as stored."""
    x, weight = layer.operands(dtype)
    z, mean, variance = grouped_conv2d_stats(x, weight, *layer.geometry, False)
    assert torch.equal(z, convolve(x, weight, layer))
    z = z.double()
    # A mean is a float32 sum of m values, at most m roundings of their mean size; the variance's deviations are off by
    # as much, and squared and summed take as many roundings again.
    m = z.numel() // z.shape[1]
    size = z.abs().amax((0, 2, 3))
    assert ((mean.double() - z.mean((0, 2, 3))).abs() <= m * 2**-24 * size).all()
    assert ((variance.double() - z.var((0, 2, 3), correction=0)).abs() <= 4 * (m + 2) * 2**-24 * size**2).all()


def test_statistics_of_nothing_are_refused():
    x, weight = replace(SMALL, batch=0).operands(torch.float16)
    with pytest.raises(RuntimeError, match=r"grouped_conv2d_stats: no pixels in \[0, 24, 5, 7\]"):
        grouped_conv2d_stats(x, weight, *SMALL.geometry, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x[0], w, 6), r"expected 4D input and weight, but got \[24, 5, 7\]"),
        (lambda x, w: (x, w, 5), r"groups=5 does not fit input \[2, 24, 5, 7\], weight \[24, 4, 3, 3\]"),
        (lambda x, w: (x, w[:23], 6), r"groups=6 does not fit"),
        (lambda x, w: (x, w.half(), 6), r"input is torch.float32 on cpu, weight torch.float16"),
        (lambda x, w: (x.double(), w.double(), 6), r"expected float16, bfloat16 or float32, but got torch.float64"),
        (lambda x, w: (x[:, :, :1, :0], w, 6), r"would have size 1x0"),
    ],
)
def test_refused(change, message):
    x, weight, groups = change(*SMALL.operands(torch.float32))
    with pytest.raises(RuntimeError, match=message):
        grouped_conv2d(x, weight, None, None, None, (1, 1), (1, 1), (1, 1), groups, False, False)


def test_schema():
    """No argument is written to or returned."""
    x, weight = Layer(4, 4, 4, size=(2, 3)).operands(torch.float32)
    how = ((1, 1), (1, 1), (1, 1), 4)
    torch.library.opcheck(
        torch.ops.fastcnn.grouped_conv2d.default,
        (x, weight, torch.randn(16), torch.randn(16), x.clone(), *how, True, False),
        test_utils="test_schema",
    )
    torch.library.opcheck(
        torch.ops.fastcnn.grouped_conv2d_stats.default, (x, weight, *how, False), test_utils="test_schema"
    )


def test_tile_rule():
    """Four channels a group share a tile by fours, from sixteen on a group has its own; few pixels take small tiles."""
    assert [grouped_tile(10**6, 32, w, w, torch.float16).pack for w in (1, 3, 4, 8, 9, 16, 64)] == [
        16,
        5,
        4,
        2,
        1,
        1,
        1,
    ]
    assert grouped_tile(10**6, 2, 4, 4, torch.float16).pack == 2  # no more than there are
    assert grouped_tile(49, 32, 32, 32, torch.float16).block_m == 32
    assert grouped_tile(128 * 56 * 56, 32, 4, 4, torch.float16).block_m == 128
