"""What pointwise and grouped convolution do to a tile besides multiplying: prologue, epilogue, batch statistics.

Tiles of sums are (pixels, output channels) in float32. Nothing is added by atomics: equal bits every run.
"""

import torch
import triton
import triton.language as tl

from .register import wrap_triton


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """sums + a @ b. PRECISION: of float32 operands, "tf32" or "ieee". WIDEN: only in Triton's interpreter, which keeps
    bfloat16 as raw bits and multiplies those; products of two bfloat16 are exact in float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def relu(v):
    """max(v, 0) that keeps NaN, as torch's."""
    return tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def prologue(x, scale, shift, mask):
    """relu(x * scale + shift), rounded to x's type; 0 where mask is false: padding is added to what the convolution
    reads, that is after the ReLU. x: a tile as loaded; scale, shift: float32, of a shape that broadcasts."""
    v = relu(x.to(tl.float32) * scale + shift)
    return tl.where(mask, v, 0.0).to(x.dtype)


@triton.jit
def epilogue(
    sums,
    scale,
    shift,
    residual,
    channels,
    in_channels,
    mask,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """act(sums * scale[channels] + shift[channels] + residual) in float32.

    scale, shift: pointers to (O,), a folded normalization's, or shift alone a bias; residual: a tile of pointers.
    channels: (BLOCK_O,) with its mask in_channels; mask: the tile's.
    """
    if HAS_SCALE:
        sums *= tl.load(scale + channels, mask=in_channels, other=0.0).to(tl.float32)[None, :]
    if HAS_SHIFT:
        sums += tl.load(shift + channels, mask=in_channels, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        sums += tl.load(residual, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        sums = relu(sums)
    return sums


@triton.jit
def store_moments(values, workspace, counts, tile, channels, in_channels, in_pixels, outputs):
    """Writes mean and sum of squared deviations of a tile's valid pixels, for each channel.

    values: what the convolution stores, as rounded, (BLOCK_P, BLOCK_O); in_pixels: (BLOCK_P,), which are valid.
    workspace: (tiles, 2, outputs) float32; counts: (tiles,) float32. tile: this one's number, int64 where it can
    exceed 2**31 / (2 * outputs).
    """
    valid = in_pixels[:, None]
    values = values.to(tl.float32)
    count = tl.sum(in_pixels.to(tl.float32), 0)
    mean = tl.sum(tl.where(valid, values, 0.0), 0) / tl.maximum(count, 1.0)
    deviation = tl.where(valid, values - mean[None, :], 0.0)
    at = workspace + tile * 2 * outputs + channels
    tl.store(at, mean, mask=in_channels)
    tl.store(at + outputs, tl.sum(deviation * deviation, 0), mask=in_channels)
    # Each block of channels of this tile writes the same number.
    tl.store(counts + tile, count)


@triton.jit
def merge_moments_kernel(
    workspace, counts, merged, merged_counts, tiles, outputs, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr
):
    """Merges BLOCK_T tiles' moments into one's, by Chan's formula: squared deviations from a common mean are those from
    each tile's own and count * (the tile's mean - the common one)^2. A tile of no pixels counts for nothing."""
    tile = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channels = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_channels = channels < outputs
    mask = (tile < tiles)[:, None] & in_channels[None, :]
    at = workspace + tile[:, None] * 2 * outputs + channels[None, :]
    means = tl.load(at, mask=mask, other=0.0)
    squares = tl.load(at + outputs, mask=mask, other=0.0)
    count = tl.load(counts + tile, mask=tile < tiles, other=0.0)
    total = tl.sum(count, 0)
    mean = tl.sum(means * count[:, None], 0) / tl.maximum(total, 1.0)
    deviation = means - mean[None, :]
    square = tl.sum(squares + count[:, None] * deviation * deviation, 0)
    to = merged + tl.program_id(0).to(tl.int64) * 2 * outputs + channels
    tl.store(to, mean, mask=in_channels)
    tl.store(to + outputs, square, mask=in_channels)
    tl.store(merged_counts + tl.program_id(0), total)


MERGED_TILES, MERGED_CHANNELS = 64, 32  # 2 x 8 KiB a program, in rows of 128 bytes


def merge_moments(workspace: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, biased variance), each (O,) float32, from what store_moments wrote to (tiles, 2, O) and (tiles,).

    In rounds of 64 tiles to one, so that many programs share the first: 3136 tiles (ResNet-50's 56x56 at batch 128)
    take two launches and end in the same order every run.
    """
    outputs = workspace.shape[2]
    while True:
        tiles = workspace.shape[0]
        merged = -(-tiles // MERGED_TILES)
        to, to_counts = workspace.new_empty((merged, 2, outputs)), counts.new_empty(merged)
        grid = (merged, -(-outputs // MERGED_CHANNELS))
        wrap_triton(merge_moments_kernel)[grid](
            workspace, counts, to, to_counts, tiles, outputs, BLOCK_T=MERGED_TILES, BLOCK_O=MERGED_CHANNELS
        )
        if merged == 1:
            return to[0, 0].clone(), to[0, 1] / to_counts
        workspace, counts = to, to_counts
