"""Tiles of grouped convolution: sizes in, block sizes out, each with its reason. Predicted, not timed."""

import math
from dataclasses import dataclass, replace

import torch

from .tiles import CANDIDATE

A100 = 108  # streaming multiprocessors


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class GroupedTile:
    """A program computes `block_m` pixels of `block_n` output channels, of `pack` neighbouring groups at once, and adds
    `block_k` of the pack's input channels a step, tap by tap. Of the input gradient: inputs and outputs exchanged."""

    pack: int
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        groups = f"{self.pack} groups side by side" if self.pack > 1 else "one group"
        sums = f"{self.block_m} pixels x {self.block_n} output channels"
        return (
            f"{sums}, {groups}, {self.block_k} input channels a step, {self.num_warps} warps, {self.num_stages} stages"
        )


@dataclass(frozen=True)
class GroupedWeightTile:
    """A program computes the gradient of `block_o` output channels of a pack by `block_c` of its (tap, input channel)
    columns over one of `splits` ranges of pixels, `block_p` pixels a step."""

    pack: int
    block_o: int
    block_c: int
    block_p: int
    splits: int
    num_warps: int
    num_stages: int


def groups_in_pack(groups: int, inputs: int, outputs: int) -> int:
    """How many groups of `inputs` -> `outputs` channels multiply as one block-diagonal matrix.

    Up to 16 channels together: that is the depth of one mma.m16n8k16 and, at two bytes, the 32-byte sector in which
    memory is read. 4 channels a group alone would fill a quarter of both. Beyond 16 there is nothing but zeros to
    gain: a pack of p groups multiplies p times what is wanted, four times for ResNeXt-50 32x4d's first stage, which at
    batch 128 is 15 GFLOP beside 206 MB, 47 us of an A100's tensor cores beside 132 us of its memory.
    """
    return min(groups, max(1, 16 // max(inputs, outputs)))


def grouped_tile(
    pixels: int,
    groups: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    processors: int = A100,
    moments: bool = False,
) -> GroupedTile:
    """pixels: of the whole batch that `outputs` channels of each group are computed for; inputs: channels summed.

    block_k, block_n: the pack's channels up to 64, at least tl.dot's 16; wider groups take several steps and tiles.
    block_m: 128, a warp's 32 rows reading each weight twice; in float32 64, since 128 spill registers on sm_80; halved
    down to 32 while fewer than two programs for each processor would run, since latency then costs more than weights
    read again.
    num_stages: a step of a narrow pack moves 128 x 16 values, 4 KiB: four in flight cover a latency that two do not,
    in less than 20 KiB of shared memory. A wide one moves 24 KiB: three.
    num_warps: four, with statistics of TF32 eight, whose sums four would spill on sm_100.
    """
    pack = groups_in_pack(groups, inputs, outputs)
    block_k = min(64, max(16, next_power_of_2(pack * inputs)))
    if dtype == torch.float32:  # the same bytes a step
        block_k = min(32, block_k)
    block_n = min(64, max(16, next_power_of_2(pack * outputs)))
    columns = math.ceil(groups / pack) * math.ceil(pack * outputs / block_n)
    block_m = 64 if dtype == torch.float32 else 128
    while block_m > 32 and math.ceil(pixels / block_m) * columns < 2 * processors:
        block_m //= 2
    warps = 8 if moments and dtype == torch.float32 else 4
    return GroupedTile(pack, block_m, block_n, block_k, num_warps=warps, num_stages=4 if block_k <= 16 else 3)


def grouped_candidates(
    pixels: int, groups: int, inputs: int, outputs: int, dtype: torch.dtype, processors: int
) -> dict[str, GroupedTile]:
    """What policy "fastest" times beside grouped_tile's, by name: tiles that differ from it in one respect each. Left
    out is what needs more than 99 KiB of shared memory, and of float32 128 pixels, which spill."""
    rule = grouped_tile(pixels, groups, inputs, outputs, dtype, processors)
    changes = [dict(block_m=m) for m in (32, 64, 128) if m < 128 or dtype != torch.float32]
    changes += [dict(num_warps=w) for w in (4, 8)] + [dict(num_stages=s) for s in (2, 3, 4)]
    tiles = [replace(rule, **change) for change in changes]
    fit = [t for t in tiles if t.num_stages * (t.block_m + t.block_n) * t.block_k * dtype.itemsize <= 99 * 1024]
    return {f"{CANDIDATE}{t}": t for t in fit if t != rule}


def grouped_weight_tile(
    pixels: int, groups: int, inputs: int, outputs: int, taps: int, dtype: torch.dtype, processors: int = A100
) -> GroupedWeightTile:
    """pixels: of the output gradient, the whole batch.

    block_c: 64 columns, four taps of a narrow pack, so that the output gradient is read for four taps at once, three
    times for 3x3 instead of nine. block_p: 64 pixels are four steps of the matrix unit; float32 takes half as many.
    splits: enough for four programs a processor, since a weight's gradient is small and its sum long; a range has at
    least eight steps, so that the partial sums written stay below an eighth of what is read for them.
    """
    pack = groups_in_pack(groups, inputs, outputs)
    block_o = min(64, max(16, next_power_of_2(pack * outputs)))
    block_c = min(64, max(16, next_power_of_2(taps * pack * inputs)))
    block_p = 32 if dtype == torch.float32 else 64
    programs = (
        math.ceil(groups / pack) * math.ceil(pack * outputs / block_o) * math.ceil(taps * pack * inputs / block_c)
    )
    splits = max(1, min(math.ceil(4 * processors / programs), pixels // (8 * block_p)))
    return GroupedWeightTile(pack, block_o, block_c, block_p, splits, num_warps=4, num_stages=3)
