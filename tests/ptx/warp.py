"""What the lanes of a warp do together: shuffles, votes, reductions and ldmatrix.

A lane that reads another one which takes no part gets all bits set, a NaN: the hardware's result is undefined.
"""

import numpy as np

from tests.ptx.decode import Collective, operation
from tests.ptx.machine import bits_per_warp
from tests.ptx.operands import address, integer, items, predicate, raw, write
from tests.ptx.parse import Pair, bits

UNDEFINED = np.uint32(0xFFFFFFFF)


def flags_of(machine, index: np.ndarray, values) -> np.ndarray:
    """One flag per lane of the machine, false for the lanes that are not in `index`."""
    flags = np.zeros(machine.lanes, bool)
    flags[index] = values
    return flags


@operation("shfl")
def shuffle(instruction, modifiers):
    modifiers.first_of("sync")
    mode = modifiers.one_of("up", "down", "bfly", "idx")
    modifiers.first_of("b32")
    d, a, b, c, mask = instruction.operands
    a, b, c, mask = (raw(each, 32, instruction) for each in (a, b, c, mask))
    d, inside = (d.first, d.second) if isinstance(d, Pair) else (d, None)
    d, inside = write(d, instruction), write(inside, instruction) if inside else None

    def run(frame, lanes):
        machine = frame.machine
        index = machine.index(lanes)
        lane = index & 31
        amount, control = b(frame, lanes).astype(np.int64) & 31, c(frame, lanes).astype(np.int64)
        segment, clamp = control >> 8 & 31, control & 31
        lowest = lane & segment
        highest = lowest | (clamp & ~segment & 31)
        source = {
            "up": lane - amount,
            "down": lane + amount,
            "bfly": lane ^ amount,
            "idx": lowest | (amount & ~segment & 31),
        }[mode]
        # With .up the clamp is the lowest lane of the segment to read from.
        valid = source >= highest if mode == "up" else source <= highest
        source = (index & ~31) + np.where(valid, source, lane)
        everyone = np.full(machine.lanes, UNDEFINED)
        everyone[lanes] = a(frame, lanes)
        named = mask(frame, lanes) >> (source & 31).astype(np.uint32) & np.uint32(1) != 0
        d(frame, lanes, np.where(named, everyone[source], UNDEFINED))
        if inside:
            inside(frame, lanes, valid)

    return Collective(run, mask)


@operation("vote")
def vote(instruction, modifiers):
    modifiers.first_of("sync")
    mode = modifiers.one_of("ballot", "any", "all", "uni")
    modifiers.first_of("b32" if mode == "ballot" else "pred")
    d, a, mask = instruction.operands
    a, mask, store = predicate(a, instruction), raw(mask, 32, instruction), write(d, instruction)

    def run(frame, lanes):
        machine = frame.machine
        index = machine.index(lanes)
        warp = index >> 5
        named = mask(frame, lanes)
        yes = bits_per_warp(flags_of(machine, index, a(frame, lanes)))[warp] & named
        present = bits_per_warp(flags_of(machine, index, True))[warp] & named
        result = {"ballot": yes, "any": yes != 0, "all": yes == present, "uni": (yes == 0) | (yes == present)}[mode]
        store(frame, lanes, result)

    return Collective(run, mask)


@operation("activemask")
def active_mask(instruction, modifiers):
    modifiers.first_of("b32")
    (d,) = instruction.operands
    store = write(d, instruction)

    def run(frame, lanes):
        index = frame.machine.index(lanes)
        store(frame, lanes, bits_per_warp(flags_of(frame.machine, index, True))[index >> 5])

    return run


def square(machine, index, values, mask) -> tuple[np.ndarray, np.ndarray]:
    """For each lane of `index` the 32 values of its warp, and which of them its mask names."""
    everyone = np.zeros(machine.lanes, values.dtype)
    everyone[index] = values
    present = bits_per_warp(flags_of(machine, index, True))[index >> 5] & mask
    named = present[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1) != 0
    return everyone.reshape(-1, 32)[index >> 5], named


REDUCTIONS = {
    "add": (np.add, 0),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
    "and": (np.bitwise_and, -1),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}


@operation("redux")
def reduce(instruction, modifiers):
    modifiers.first_of("sync")
    kind = modifiers.kind()
    if bits(kind) != 32 or kind[0] == "f":
        raise instruction.error(f"a reduction of .{kind}")
    name = modifiers.one_of(*REDUCTIONS)
    function, neutral = REDUCTIONS[name]
    d, a, mask = instruction.operands
    a, mask, store = integer(a, kind, instruction), raw(mask, 32, instruction), write(d, instruction)

    def run(frame, lanes):
        machine = frame.machine
        index = machine.index(lanes)
        x = np.broadcast_to(a(frame, lanes), index.shape)
        limits = np.iinfo(x.dtype)
        start = {"min": limits.max, "max": limits.min}.get(name, neutral)
        values, named = square(machine, index, x, mask(frame, lanes))
        fill = np.array(start & 0xFFFFFFFF, np.uint32).view(x.dtype)
        store(frame, lanes, function.reduce(np.where(named, values, fill), axis=1, dtype=x.dtype))

    return Collective(run, mask)


@operation("match")
def match(instruction, modifiers):
    """The lanes of the mask with the same value: .any names them, .all asks whether they are all."""
    mode = modifiers.one_of("any", "all")
    modifiers.first_of("sync")
    width = bits(modifiers.kind())
    d, a, mask = instruction.operands
    d, agreed = (d.first, d.second) if isinstance(d, Pair) else (d, None)
    d, agreed = write(d, instruction), write(agreed, instruction) if agreed else None
    a, mask = raw(a, width, instruction), raw(mask, 32, instruction)

    def run(frame, lanes):
        index = frame.machine.index(lanes)
        x = np.broadcast_to(a(frame, lanes), index.shape)
        values, named = square(frame.machine, index, x, mask(frame, lanes))
        same = (values == x[:, None]) & named
        if mode == "all":
            everyone = (same == named).all(1)
            same = named & everyone[:, None]
            if agreed:
                agreed(frame, lanes, everyone)
        d(frame, lanes, bits_per_warp(same))

    return Collective(run, mask)


@operation("ldmatrix")
def load_matrix(instruction, modifiers):
    """8x8 matrices of 16-bit elements; lane 8j + r gives the address of row r of matrix j.

    Lane l gets elements (l / 4, 2 (l % 4)) and the next one of its row, with .trans of its column. A row's read counts
    as that of the lane which gives its address.
    """
    for name in ("sync", "aligned", "m8n8"):
        modifiers.first_of(name)
    count = int(modifiers.one_of("x1", "x2", "x4")[1:])
    transposed = modifiers.flag("trans")
    modifiers.one_of("shared", "shared::cta")
    modifiers.first_of("b16")
    d, a = instruction.operands
    if len(items(d)) != count:
        raise ValueError
    start, stores, line = address(a, instruction), [write(item, instruction) for item in items(d)], instruction.line
    lane = np.arange(32)
    row, column = lane // 4, 2 * (lane % 4)

    def run(frame, lanes):
        machine = frame.machine
        index = machine.index(lanes)
        place = np.broadcast_to(start(frame, lanes), index.shape).reshape(-1, 32)
        owners = index.reshape(-1, 32)
        machine.shared.line = line
        for matrix, store in enumerate(stores):
            rows = slice(8 * matrix, 8 * matrix + 8)
            words = machine.shared.load(owners[:, rows].ravel(), place[:, rows].ravel(), 4, 4)
            elements = words.view(np.uint16).reshape(-1, 8, 8)
            if transposed:
                elements = elements.transpose(0, 2, 1)
            pair = np.stack([elements[:, row, column], elements[:, row, column + 1]], axis=-1)
            store(frame, lanes, np.ascontiguousarray(pair).view(np.uint32).ravel())

    return Collective(run)
