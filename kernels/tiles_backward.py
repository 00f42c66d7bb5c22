"""Tiles of pointwise convolution's backward kernels and of its siblings: pure functions of sizes, dtype and chip."""

from dataclasses import dataclass

import torch

from .tiles import MMA_K, cdiv, covering


@dataclass(frozen=True)
class InputGradientTile:
    """dx (pixels, C) = g (pixels, O) @ w (O, C)."""

    pixels: int
    inputs: int
    outputs: int  # of one step along the sum
    group: int  # of pixel blocks that pass over all blocks of channels together
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class WeightGradientTile:
    """dw (O, C) = g (pixels, O)^T @ x (pixels, C), the pixels cut into `splits` pieces of `per_split`."""

    outputs: int
    inputs: int
    pixels: int  # of one step along the sum
    splits: int
    per_split: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ChannelSumsTile:
    """Sums over pixels for each channel, the pixels cut into `splits` pieces of `per_split`."""

    pixels: int
    channels: int
    splits: int
    per_split: int
    num_warps: int


@dataclass(frozen=True)
class SiblingsTile:
    """y_i (pixels, O_i) = x (pixels, C) @ w_i^T for all branches."""

    pixels: int
    outputs: int
    inputs: int  # of one step along the sum
    num_warps: int
    num_stages: int


def shrink(rows: int, columns: int, block_rows: int, block_columns: int, processors: int) -> tuple[int, int]:
    """Halves the longer side of a tile while so few tiles leave processors idle: a 7x7 map at batch 1 is one block of
    pixels. Not below 32: from there on every halving doubles the bytes that come for each product."""
    while cdiv(rows, block_rows) * cdiv(columns, block_columns) < processors:
        if max(block_rows, block_columns) <= 32:
            break
        if block_rows >= block_columns:
            block_rows //= 2
        else:
            block_columns //= 2
    return block_rows, block_columns


STAGES = 3  # two steps of operands are copied, asynchronously, while a third is multiplied


def depth(dtype: torch.dtype, tf32: bool, masked: bool) -> int:
    """Elements of one step along the sum: beside two blocks of 128, 64 to 96 KiB of shared memory for the operands in
    flight (Triton keeps as many buffers as stages where wgmma reads them, else one less): sm_120 has 99 KiB.

    masked: a ReLU's mask brings a third tile of 128 pixels or channels, y's, into flight, for half the depth.
    """
    if dtype == torch.float32:
        return 16 if masked or not tf32 else 32
    return 32 if masked else 64


def warps(block_rows: int, block_columns: int, masked: bool = False) -> int:
    """At most 64 sums a thread, so that operands have registers, too; with a mask's y to hold as well, 32."""
    return 8 if block_rows * block_columns > (64 * 64 if masked else 64 * 128) else 4


def input_gradient(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, masked: bool, processors: int
) -> InputGradientTile:
    """128x128, the smallest square that needs fewer bytes of L2 than an A100 brings while it multiplies; 64x64 where
    FFMA multiplies, whose operands come from registers."""
    largest = 64 if dtype == torch.float32 and not tf32 else 128
    m, c = shrink(pixels, inputs, covering(pixels, MMA_K, largest), covering(inputs, MMA_K, largest), processors)
    step = depth(dtype, tf32, masked and max(m, c) > 64)
    # Eight blocks of pixels read each block of weights together while it lies in L2.
    return InputGradientTile(m, c, covering(outputs, MMA_K, step), 8, warps(m, c, masked and largest == 128), STAGES)


def weight_gradient(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, masked: bool, processors: int
) -> WeightGradientTile:
    """Tiles of dw are few (ResNet-50's 64x256 has one of 64x128 for each 128 inputs) and pixels are many: they are cut
    until two blocks fall on each processor, but into no pieces of fewer than 8 steps, since each piece writes and reads
    a float32 for each weight."""
    largest = 64 if dtype == torch.float32 and not tf32 else 128
    o, c = covering(outputs, MMA_K, largest), covering(inputs, MMA_K, largest)
    step = depth(dtype, tf32, masked and max(o, c) > 64)
    step = covering(pixels, MMA_K, step)
    tiles, steps = cdiv(outputs, o) * cdiv(inputs, c), cdiv(pixels, step)
    splits = max(1, min(cdiv(2 * processors, tiles), steps // 8))
    per_split = cdiv(steps, splits)
    return WeightGradientTile(
        o, c, step, cdiv(steps, per_split), per_split * step, warps(o, c, masked and largest == 128), STAGES
    )


def channel_sums(pixels: int, channels: int, processors: int) -> ChannelSumsTile:
    """32 pixels x 64 channels: rows of a whole cache line in 16 bits, two in float32, 16 elements a thread in flight.
    Memory alone bounds it: eight blocks of four warps on each processor, and at least four steps each."""
    m, c = 32, covering(channels, MMA_K, 64)
    steps = cdiv(pixels, m)
    splits = max(1, min(cdiv(8 * processors, cdiv(channels, c)), steps // 4))
    per_split = cdiv(steps, splits)
    return ChannelSumsTile(m, c, cdiv(steps, per_split), per_split * m, 4)


def siblings(
    pixels: int, inputs: int, outputs: list[int], dtype: torch.dtype, tf32: bool, processors: int
) -> SiblingsTile:
    """One width for all branches: the widest block that makes at most half of the narrowest's columns more. FFMA takes
    32, since four branches' loops leave its 64x64 sums no registers.

    GoogLeNet 3a's 64, 96 and 16 are 192 columns in blocks of 32, 256 in blocks of 64, 384 in blocks of 128: 64.
    """
    largest = 64 if dtype == torch.float32 and not tf32 else 128

    def columns(width: int) -> int:
        return sum(cdiv(o, width) * width for o in outputs)

    o = max(width for width in (16, 32, 64, 128) if width == 16 or (2 * columns(width) <= 3 * columns(16)))
    o = min(o, 32 if largest == 64 else 128)
    m, o = shrink(pixels, columns(o), covering(pixels, MMA_K, largest), o, processors)
    step = depth(dtype, tf32, False)
    return SiblingsTile(m, o, covering(inputs, MMA_K, step), warps(m, o), STAGES)
