"""Tile sizes: pure functions of sizes, dtype and the number of processors, with the reasons for the numbers.

Nothing here was timed: the reasons are counts of bytes, registers and programs.
"""

from dataclasses import dataclass, replace

import torch

CANDIDATE = "Triton's kernel, "  # how the names of pointwise_candidates begin
MMA_K = 16  # tl.dot's least extent in each direction


def cdiv(a: int, b: int) -> int:
    """ceil(a / b), of sizes that torch.compile does not know yet, too."""
    return -(-a // b)


def covering(size: int, least: int, most: int) -> int:
    """The least power of two that holds size, within [least, most]. By comparisons: size may be symbolic."""
    block = least
    while block < most and block < size:
        block *= 2
    return block


@dataclass(frozen=True)
class PointwiseTile:
    """How a product of (pixels, inputs) and (inputs, outputs) is cut."""

    pixels: int
    outputs: int
    inputs: int  # of one step
    group: int  # pixel tiles whose output tiles run side by side
    split: int  # programs that share the inputs of a tile; above 1, a second launch adds their sums in order
    persistent: bool  # as many programs as can run at once, each taking tile after tile
    warps: int
    stages: int

    def __str__(self) -> str:
        parts = [f"{self.pixels} pixels x {self.outputs} output channels, {self.inputs} input channels a step"]
        parts += [f"{self.split} programs share a sum"] if self.split > 1 else []
        parts += ["persistent"] if self.persistent else []
        return ", ".join([*parts, f"{self.warps} warps, {self.stages} stages"])


def pointwise_tile(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, processors: int
) -> PointwiseTile:
    """The tile of a 1x1 convolution with so many output pixels and channels in and out."""
    if dtype is torch.float32 and not tf32:
        return _ieee_tile(pixels, inputs, outputs, processors)
    # One tile of outputs means that x is read once. 128 x 128 sums are 64 registers of each of 256 threads; twice as
    # many would spill.
    block_o = covering(outputs, MMA_K, 128)
    # With 192 outputs a second tile of 128 would be half empty: three of 64 multiply a quarter less, and find x in L2.
    if block_o == 128 and cdiv(outputs, 128) * 512 > outputs * 5:
        block_o = 64 if outputs > 128 else 128
    # 128 bytes of a pixel's channels a step: whole cache lines, and rows of shared memory as wide as its swizzle.
    block_c = covering(inputs, MMA_K, 128 // dtype.itemsize)
    block_p = 128
    while block_p > 32 and cdiv(pixels, block_p) * cdiv(outputs, block_o) < processors:
        block_p //= 2
    if block_p == 32 and block_o == 128 and cdiv(pixels, 32) * cdiv(outputs, 128) < processors:
        block_o = 64
    tiles = cdiv(pixels, block_p) * cdiv(outputs, block_o)
    split = split_of(tiles, cdiv(inputs, block_c), processors)
    # Few steps: what a program does once (being started, its index arithmetic) is a notable part of its work, and one
    # that takes tile after tile does it once for all. Below four rounds the last, partly empty one costs what is won.
    # Copies for the next tile while this one is stored (flatten=True) would need registers that ptxas spills on sm_100
    # and sm_120.
    persistent = split == 1 and cdiv(inputs, block_c) <= 4 and tiles >= 4 * processors
    # Three stages of 128 x 64 and 64 x 128 values of 16 bits are 96 KiB: sm_120 has 99, sm_80 163.
    warps = 8 if block_p * block_o >= 128 * 128 else 4
    return PointwiseTile(block_p, block_o, block_c, 8, split, persistent, warps, 3)


def beside_sums(tile: PointwiseTile, dtype: torch.dtype, pre: bool, stats: bool) -> PointwiseTile:
    """The tile with room for what normalization on load or statistics hold beside the sums. Of TF32 they would spill:
    the one in 128 x 128 sums on sm_80, the other beside a persistent loop's tile on sm_100."""
    if dtype is torch.float32 and pre and tile.pixels * tile.outputs >= 128 * 128:
        tile = replace(tile, pixels=64)
    if dtype is torch.float32 and stats:
        tile = replace(tile, persistent=False)
    return tile


def pointwise_candidates(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, tf32: bool, processors: int
) -> dict[str, PointwiseTile]:
    """What policy "fastest" times beside pointwise_tile's, by name: tiles that differ from it in one respect each.

    Left out is what cannot run on every chip (99 KiB of shared memory, 64 sums a thread), a tile wider than what there
    is to cover, a split whose programs would have fewer than 2 steps, and persistence without a second round.
    """
    rule = pointwise_tile(pixels, inputs, outputs, dtype, tf32, processors)
    sizes = [dict(pixels=p, outputs=o) for p in (32, 64, 128) for o in (64, 128)]
    splits = [dict(split=s, persistent=False) for s in (1, 2, 4, 8)]
    others = [dict(persistent=not rule.persistent), dict(stages=2), dict(stages=4), dict(warps=4), dict(warps=8)]
    tiles = [replace(rule, **change) for change in (*sizes, *splits, *others)]
    legal = [
        t
        for t in tiles
        if t.stages * (t.pixels + t.outputs) * t.inputs * dtype.itemsize <= 99 * 1024
        and t.pixels * t.outputs <= t.warps * 32 * 64
        and t.outputs <= covering(outputs, MMA_K, 128)
        and (t.split == 1 or cdiv(inputs, t.inputs) >= 2 * t.split)
        and not (t.persistent and (t.split > 1 or cdiv(pixels, t.pixels) * cdiv(outputs, t.outputs) <= 2 * processors))
    ]
    return {f"{CANDIDATE}{t}": t for t in legal if t != rule}


def split_of(tiles: int, steps: int, processors: int) -> int:
    """How many programs share a tile's sum: as many as find a processor, each with 4 steps at least, at most 8. Each
    writes and the second launch reads 4 bytes an output; at 8 that is as much as a 7x7 map's weights."""
    split = 1
    while split < 8 and tiles * split * 2 <= processors and steps >= split * 2 * 4:
        split *= 2
    return split


def _ieee_tile(pixels: int, inputs: int, outputs: int, processors: int) -> PointwiseTile:
    """Without tensor cores: fused multiply-adds of whole threads, 32 sums each, operands from shared memory."""
    block_o = covering(outputs, MMA_K, 64)
    block_p = 128
    while block_p > 32 and cdiv(pixels, block_p) * cdiv(outputs, block_o) < processors:
        block_p //= 2
    block_c = covering(inputs, MMA_K, 32)
    tiles = cdiv(pixels, block_p) * cdiv(outputs, block_o)
    return PointwiseTile(
        block_p, block_o, block_c, 8, split_of(tiles, cdiv(inputs, block_c), processors), False,
        8 if block_p == 128 else 4, 3,
    )  # fmt: skip
