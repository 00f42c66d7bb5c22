"""Tiles of pointwise convolution's backward kernels and of its siblings: pure functions of sizes, dtype and chip."""

from dataclasses import dataclass

import torch


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


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def block(size: int, largest: int) -> int:
    """The power of two that holds `size`, at least tl.dot's 16."""
    power = 16
    while power < size and power < largest:
        power *= 2
    return power


def shrink(rows: int, columns: int, block_rows: int, block_columns: int, processors: int) -> tuple[int, int]:
    """Halves the longer side of a tile while so few tiles leave processors idle: a 7x7 map at batch 1 is one block of
    pixels. Not below 32: from there on every halving doubles the bytes that come for each product."""
    while ceil_div(rows, block_rows) * ceil_div(columns, block_columns) < processors:
        if max(block_rows, block_columns) <= 32:
            break
        if block_rows >= block_columns:
            block_rows //= 2
        else:
            block_columns //= 2
    return block_rows, block_columns


def depth(dtype: torch.dtype, tf32: bool, masked: bool) -> tuple[int, int]:
    """(elements of one step along the sum, stages) beside two blocks of 128: 48 KiB to 96 KiB of shared memory for the
    operands in flight, which leaves sm_120's 99 KiB enough for one block and an A100's 163 KiB for two of them.

    A ReLU's mask brings a third tile of that size, y's, into flight: half the depth for it.
    """
    if dtype == torch.float32:
        # Without TF32 the sums are FFMAs, of which a step of 16 has thousands: no third stage has latency to hide.
        return (16, 2) if not tf32 else (16 if masked else 32, 2)
    return (32 if masked else 64, 3)


def warps(block_rows: int, block_columns: int) -> int:
    """64 sums a thread, 128 in a tile of 128x128 by eight warps would leave no registers for operands: 8 from 8192."""
    return 8 if block_rows * block_columns > 64 * 128 else 4


def input_gradient(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, masked: bool, processors: int
) -> InputGradientTile:
    """128x128, the smallest square that needs fewer bytes of L2 than an A100 brings while it multiplies; 64x64 where
    FFMA multiplies, whose operands come from registers."""
    largest = 64 if dtype == torch.float32 and not tf32 else 128
    m, c = shrink(pixels, inputs, block(pixels, largest), block(inputs, largest), processors)
    step, stages = depth(dtype, tf32, masked)
    # Eight blocks of pixels read each block of weights together while it lies in L2.
    return InputGradientTile(m, c, block(outputs, step), 8, warps(m, c), stages)


def weight_gradient(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, masked: bool, processors: int
) -> WeightGradientTile:
    """Tiles of dw are few (ResNet-50's 64x256 has one of 64x128 for each 128 inputs) and pixels are many: they are cut
    until two blocks fall on each processor, but into no pieces of fewer than 8 steps, since each piece writes and reads
    a float32 for each weight."""
    largest = 64 if dtype == torch.float32 and not tf32 else 128
    o, c = block(outputs, largest), block(inputs, largest)
    step, stages = depth(dtype, tf32, masked)
    step = block(pixels, step)
    tiles, steps = ceil_div(outputs, o) * ceil_div(inputs, c), ceil_div(pixels, step)
    splits = max(1, min(ceil_div(2 * processors, tiles), steps // 8))
    per_split = ceil_div(steps, splits)
    return WeightGradientTile(o, c, step, ceil_div(steps, per_split), per_split * step, warps(o, c), stages)


def channel_sums(pixels: int, channels: int, processors: int) -> ChannelSumsTile:
    """32 pixels x 64 channels: rows of a whole cache line in 16 bits, two in float32, 16 elements a thread in flight.
    Memory alone bounds it: eight blocks of four warps on each processor, and at least four steps each."""
    m, c = 32, block(channels, 64)
    steps = ceil_div(pixels, m)
    splits = max(1, min(ceil_div(8 * processors, ceil_div(channels, c)), steps // 4))
    per_split = ceil_div(steps, splits)
    return ChannelSumsTile(m, c, ceil_div(steps, per_split), per_split * m, 4)


def siblings(
    pixels: int, inputs: int, outputs: list[int], dtype: torch.dtype, tf32: bool, processors: int
) -> SiblingsTile:
    """One width for all branches: the widest block that makes at most half of the narrowest's columns more.

    GoogLeNet 3a's 64, 96 and 16 are 192 columns in blocks of 32, 256 in blocks of 64, 384 in blocks of 128: 64.
    """
    largest = 64 if dtype == torch.float32 and not tf32 else 128

    def columns(width: int) -> int:
        return sum(ceil_div(o, width) * width for o in outputs)

    o = max(width for width in (16, 32, 64, 128) if width == 16 or (2 * columns(width) <= 3 * columns(16)))
    m, o = shrink(pixels, columns(min(o, largest)), block(pixels, largest), min(o, largest), processors)
    step, stages = depth(dtype, tf32, False)
    return SiblingsTile(m, o, block(inputs, step), warps(m, o), stages)
