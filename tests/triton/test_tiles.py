"""The rules of kernels/tiles.py: what every tile must fulfil, and that sizes change them as they say."""

import pytest
import torch

pytest.importorskip("triton")
from fastcnn.kernels.rows import needs_int64, pixel_stride
from fastcnn.kernels.tiles import cdiv, pointwise_candidates, pointwise_tile

from tests.cases import DENSENET121, GOOGLENET, RESNET50, SQUEEZENET

pytestmark = pytest.mark.cpu
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAYERS = [case for case in (*RESNET50, *GOOGLENET, *SQUEEZENET, *DENSENET121) if case.kernel_size == 1]
SM120_SHARED = 99 * 1024  # bytes of a block, the least of the chips


def tile_of(case, batch, dtype=F16, tf32=False, processors=108):
    pixels = batch * case.output_size[0] * case.output_size[1]
    return pointwise_tile(pixels, case.in_channels, case.out_channels, dtype, tf32, processors)


@pytest.mark.parametrize(("dtype", "tf32"), [(F16, False), (BF16, False), (F32, True), (F32, False)])
@pytest.mark.parametrize("batch", [1, 32, 128])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layers_tile_is_legal(case, batch, dtype, tf32):
    rule = tile_of(case, batch, dtype, tf32)
    pixels = batch * case.output_size[0] * case.output_size[1]
    others = pointwise_candidates(pixels, case.in_channels, case.out_channels, dtype, tf32, 108)
    assert rule not in others.values()
    assert 0 < len(others) <= 14
    for t in (rule, *others.values()):
        assert_legal(t, case, dtype)
    assert rule.split == 1 or cdiv(case.in_channels, rule.inputs) >= 4 * rule.split


def assert_legal(t, case, dtype):
    assert all(n >= 16 and n & (n - 1) == 0 for n in (t.pixels, t.outputs, t.inputs))  # tl.dot's demands
    assert t.stages * (t.pixels + t.outputs) * t.inputs * dtype.itemsize <= SM120_SHARED
    assert t.pixels * t.outputs <= t.warps * 32 * 64  # sums in registers of a thread
    assert t.split == 1 or cdiv(case.in_channels, t.inputs) >= 2 * t.split
    assert not (t.persistent and t.split > 1)


def test_small_maps_are_split_and_large_ones_are_not():
    small, large = (next(c for c in LAYERS if c.name.endswith(name)) for name in ("layer4.1.conv1", "layer1.0.conv3"))
    assert tile_of(small, 1).split == 4  # 16 tiles
    assert tile_of(small, 128).split == 1
    assert tile_of(large, 128).persistent
    assert not tile_of(large, 1).persistent


def test_outputs_that_waste_less():
    assert pointwise_tile(10**5, 64, 192, F16, False, 108).outputs == 64
    assert pointwise_tile(10**5, 64, 256, F16, False, 108).outputs == 128
    assert pointwise_tile(10**5, 64, 16, F16, False, 108).outputs == 16


def test_offsets_of_64_bits_where_they_are_needed():
    """On tensors without memory: the last element's offset decides, not the number of elements."""
    empty = lambda *size: torch.empty(size, device="meta", dtype=F16).contiguous(memory_format=torch.channels_last)
    assert not needs_int64(empty(64, 256, 112, 112))
    assert needs_int64(empty(1024, 256, 112, 112))
    assert needs_int64(empty(8, 8, 8, 8), empty(1024, 256, 112, 112)[:, :8])


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 8, 3, 5), (2, 8, 1, 5), (2, 8, 3, 1), (2, 8, 1, 1), (1, 8, 1, 1)])
def test_pixel_stride(shape):
    x = torch.empty(shape).contiguous(memory_format=torch.channels_last)
    assert pixel_stride(x) == 8
    wide = torch.empty(shape[0], 20, *shape[2:]).contiguous(memory_format=torch.channels_last)
    assert pixel_stride(wide[:, 3:11]) in (20, 8)  # 8: of the only pixel
    if min(shape[2:]) > 1:
        assert pixel_stride(x.contiguous()) is None
        assert pixel_stride(x[:, :, :, :-1]) is None
