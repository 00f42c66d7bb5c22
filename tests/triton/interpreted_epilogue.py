"""The helpers of kernels/epilogue.py, in Triton's interpreter."""

import pytest
import torch
from fastcnn.kernels import epilogue

import triton
import triton.language as tl


@triton.jit
def moments_kernel(x, workspace, counts, pixels, outputs, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr):
    tile, channels = tl.program_id(0), tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    in_pixels, in_channels = pixel < pixels, channels < outputs
    mask = in_pixels[:, None] & in_channels[None, :]
    # What lies behind the last pixel must not count.
    values = tl.load(x + pixel[:, None] * outputs + channels[None, :], mask=mask, other=1e6)
    epilogue.store_moments(values, workspace, counts, tile, channels, in_channels, in_pixels, outputs)


@pytest.mark.parametrize(("pixels", "outputs"), [(1, 1), (16, 32), (17, 3), (1021, 37), (16 * 64 * 2 + 5, 33)])
def test_moments(pixels, outputs):
    """Chan's merging does not lose the deviations to a mean that is a thousand times as large."""
    x = torch.randn(pixels, outputs) + 1000
    tiles = -(-pixels // 16)
    workspace, counts = torch.full((tiles, 2, outputs), torch.nan), torch.full((tiles,), torch.nan)
    moments_kernel[(tiles, -(-outputs // 32))](x, workspace, counts, pixels, outputs, BLOCK_P=16, BLOCK_O=32)
    mean, var = epilogue.merge_moments(workspace, counts)
    # A mean is off by some roundings of a number near 1000, 6e-5 each; times twice a tile's deviation from the common
    # mean this enters the variance. E[x^2] - E[x]^2 would be off by 0.1.
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=4e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var(0, correction=0), rtol=1e-5, atol=2e-4)


@triton.jit
def prologue_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = epilogue.prologue(tl.load(x + i, mask=i < n, other=0.0), 2.0, 3.0, i < n)
    tl.store(y + i, v)


def test_prologue_leaves_padding_zero_and_nan_nan():
    x, y = torch.tensor([-4.0, 1.0, torch.nan]), torch.empty(8)
    prologue_kernel[(1,)](x, y, 3, BLOCK=8)
    torch.testing.assert_close(y, torch.tensor([0, 5, torch.nan, 0, 0, 0, 0, 0]), equal_nan=True)
