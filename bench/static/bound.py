"""How fast a loop, a kernel and a layer can run at best. Predicted, not timed.

A loop's bound is the busiest of a processor's units on the shortest way through it: no cache misses, no latency, no
throttled clock.
"""

import re
from dataclasses import dataclass

from .chips import MMA_SYNC_OF_HOPPER, Chip
from .sass import Loop, counted

WARP = 32


def cycles(chip: Chip, loop: Loop, conflicts: float = 1.0) -> dict[str, float]:
    """By unit, what a warp's turn of the loop takes of a quarter of a processor. conflicts: cycles of shared memory per
    ideal cycle."""

    def results(n: float, per_clock: float) -> float:
        return n * WARP / (per_clock / 4)

    used, mix = [i for i in loop.path if not i.never], counted(loop.path)
    tensor = 0.0
    for i in used:
        if i.group == "HMMA":
            tensor += products(i.name) / (tensor_rate(chip, i.name) / 4)
    multiply = sum(i.base == "IMAD" for i in used)
    uniform = sum(i.base.startswith("U") for i in used if i.group == "integer")
    # Shared memory and the first-level cache hand out 128 bytes a clock to all four quarters; a request takes at least
    # one.
    moved = sum(
        max(1.0, i.bytes * WARP / 128) * (conflicts if i.group in ("LDS", "LDSM", "STS") else 1)
        for i in used
        if i.group in ("LDG", "LDGSTS", "STG", "LDS", "LDSM", "STS")
    )
    return {
        "issue": float(len(loop.path)),
        "tensor": tensor,
        "fp32": results(mix["FFMA"], chip.fp32) + results(multiply, 64),
        "integer": results(mix["integer"] - multiply - uniform, chip.integer),
        "special": results(mix["special"], chip.special),
        "fp64": results(mix["double"], chip.fp64),
        "L1": 4 * moved,
    }


def products(name: str) -> int:
    """Multiply-adds of one HMMA, or of a warp's quarter of one HGMMA: 64 rows are a group of four warps'."""
    if shape := re.search(r"^HGMMA\.64x(\d+)x(\d+)\.", name):
        return 16 * int(shape[1]) * int(shape[2])
    for shape, depth in ((".16816.", 16), (".1688.", 8)):
        if shape in name:
            return 16 * 8 * depth
    raise ValueError(f"unknown shape of {name}")


def tensor_rate(chip: Chip, name: str) -> float:
    """How many multiply-adds a processor does a clock by such instructions."""
    rate = chip.tensor["1688.F32.TF32" if "TF32" in name else "16816"]
    return rate / MMA_SYNC_OF_HOPPER if name.startswith("HGMMA") else rate


def loop_bound(chip: Chip, loop: Loop, conflicts: float = 1.0) -> float | None:
    """Which share of the time the loop can keep the units busy that do its work: the tensor cores, or those of FFMA.
    None for a loop that has neither as its purpose."""
    by_unit = cycles(chip, loop, conflicts)
    if loop.mix["HMMA"]:
        return by_unit["tensor"] / max(by_unit.values())
    if loop.share("FFMA") >= 0.5:
        return counted(loop.path)["FFMA"] * WARP / (chip.fp32 / 4) / max(by_unit.values())
    return None


@dataclass(frozen=True)
class Split:
    """A matrix product whose last tiles' sums are cut into pieces: what each leaves is written, and read by a second
    launch."""

    tiles: int
    rest: int  # of them in pieces
    pieces: int  # of each
    piece: float  # the largest, as a share of a tile's work
    bytes: int  # that all pieces write
    finish: int  # blocks of the second launch

    def balance(self, chip: Chip) -> float:
        """Which share of the time the processors are all at work until the pieces are done, these after the rest."""
        waves = -(-(self.tiles - self.rest) // chip.processors)
        turns = waves + -(-self.rest * self.pieces // chip.processors) * self.piece
        return self.tiles / (chip.processors * turns)

    def microseconds(self, chip: Chip) -> float:
        """Of the pieces' sums through memory, there and back again, the latter to the processors that have a block:
        nothing else is left to do meanwhile."""
        return self.bytes / chip.memory / 1e3 * (1 + 1 / min(1, self.finish / chip.processors))


@dataclass(frozen=True)
class Work:
    """What a layer has to do."""

    bytes: int  # that must cross the memory bus once
    macs: int = 0
    requests: float = 0  # of warps, to global memory
    shared_requests: float = 0
    conflicts: float = 1.0
    fill: float = 1.0  # of the blocks' tiles, what lies inside the output


@dataclass(frozen=True)
class Bound:
    microseconds: float
    unit: str  # that it is bound by
    roofline: float  # what the memory or the arithmetic alone would take, as a share of it


def balance(chip: Chip, blocks: int) -> float:
    """Which share of the time the processors are all at work, if all blocks take as long."""
    return blocks / (-(-blocks // chip.processors) * chip.processors)


def turns(loop: Loop, work: Work) -> float:
    """How often warps go through the loop, as if all of the layer's requests of the loop's kind were made in it."""
    if loop.mix["HMMA"]:
        return work.macs / work.fill / sum(products(i.name) for i in loop.instructions if i.group == "HMMA")
    if work.macs and not work.requests and not work.shared_requests:  # nobody counted them
        return work.macs / work.fill / (WARP * max(1, loop.mix["FFMA"]))
    global_requests = sum(loop.mix[group] for group in ("LDG", "LDGSTS", "STG"))
    shared_requests = sum(loop.mix[group] for group in ("LDS", "LDSM", "STS"))
    if global_requests:
        return work.requests / global_requests
    if shared_requests:
        return work.shared_requests / shared_requests
    return 0.0


def layer_bound(chip: Chip, loop: Loop, work: Work, balanced: float = 1.0, split: Split | None = None) -> Bound:
    """balanced: as `balance` has it; of a `split` product its own holds."""
    if split:
        balanced = split.balance(chip)
    by_unit = {
        unit: n * turns(loop, work) / (chip.processors * 4) / (chip.clock * 1e3) / balanced
        for unit, n in cycles(chip, loop, work.conflicts).items()
    }
    by_unit["DRAM"] = work.bytes / chip.memory / 1e3
    unit = max(by_unit, key=by_unit.__getitem__)
    least = by_unit["DRAM"]
    if loop.mix["HMMA"]:
        least = max(least, by_unit["tensor"] * balanced * work.fill)
    microseconds = by_unit[unit] + (split.microseconds(chip) if split else 0)
    return Bound(microseconds, unit, least / microseconds)
