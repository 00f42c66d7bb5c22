"""Bits, shifts, comparisons and selection."""

import numpy as np

from tests.ptx import floats
from tests.ptx.decode import operation
from tests.ptx.operands import SIGNED, UNSIGNED, integer, predicate, raw, value, write, write_value
from tests.ptx.parse import Pair, bits


@operation("and", "or", "xor")
def bitwise(instruction, modifiers):
    width = bits(modifiers.kind())
    d, a, b = instruction.operands
    a, b, store = raw(a, width, instruction), raw(b, width, instruction), write(d, instruction)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[instruction.opcode]
    return lambda frame, lanes: store(frame, lanes, function(a(frame, lanes), b(frame, lanes)))


@operation("not", "cnot")
def complement(instruction, modifiers):
    width = bits(modifiers.kind())
    d, a = instruction.operands
    a, store = raw(a, width, instruction), write(d, instruction)
    if instruction.opcode == "not":
        return lambda frame, lanes: store(frame, lanes, ~a(frame, lanes))
    return lambda frame, lanes: store(frame, lanes, (a(frame, lanes) == 0).astype(UNSIGNED[width]))


@operation("lop3")
def three_way(instruction, modifiers):
    """Any function of three bits, as a table indexed by 4a + 2b + c."""
    modifiers.first_of("b32")
    d, a, b, c, table = instruction.operands
    a, b, c = (raw(each, 32, instruction) for each in (a, b, c))
    store, table = write(d, instruction), table.value

    def run(frame, lanes):
        x, y, z = a(frame, lanes), b(frame, lanes), c(frame, lanes)
        result = np.zeros(1, np.uint32)
        for row in range(8):
            if table >> row & 1:
                result = result | (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
        store(frame, lanes, result)

    return run


@operation("shl", "shr")
def shift(instruction, modifiers):
    kind = modifiers.kind()
    width = bits(kind)
    d, a, amount = instruction.operands
    a, amount = integer(a, kind, instruction), raw(amount, 32, instruction)
    store, left = write(d, instruction, signed=kind[0] == "s"), instruction.opcode == "shl"

    def run(frame, lanes):
        x, n = a(frame, lanes), amount(frame, lanes)
        inside = np.minimum(n, width - 1).astype(x.dtype)
        if left:
            store(frame, lanes, np.where(n < width, x << inside, x.dtype.type(0)))
        elif kind[0] == "s":  # the sign fills, however far
            store(frame, lanes, x >> inside)
        else:
            store(frame, lanes, np.where(n < width, x >> inside, x.dtype.type(0)))

    return run


@operation("shf")
def funnel_shift(instruction, modifiers):
    left = modifiers.one_of("l", "r") == "l"
    wrap = modifiers.one_of("wrap", "clamp") == "wrap"
    modifiers.first_of("b32")
    d, low, high, amount = instruction.operands
    low, high, amount = (raw(each, 32, instruction) for each in (low, high, amount))
    store = write(d, instruction)

    def run(frame, lanes):
        n = amount(frame, lanes)
        n = (n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = high(frame, lanes).astype(np.uint64) << np.uint64(32) | low(frame, lanes)
        result = (both << n) >> np.uint64(32) if left else both >> n
        store(frame, lanes, (result & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    return run


def low_bits(count: np.ndarray) -> np.ndarray:
    """Masks of the lowest `count` bits, up to 64."""
    full = ~np.uint64(0)
    return np.where(count >= 64, full, ~(full << np.minimum(count, 63).astype(np.uint64)))


@operation("bfe")
def extract_field(instruction, modifiers):
    kind = modifiers.kind()
    width = bits(kind)
    d, a, start, length = instruction.operands
    a, start, length = raw(a, width, instruction), raw(start, 32, instruction), raw(length, 32, instruction)
    store = write(d, instruction, signed=kind[0] == "s")

    def run(frame, lanes):
        x, position, count = np.broadcast_arrays(a(frame, lanes), start(frame, lanes), length(frame, lanes))
        x, position, count = x.astype(np.uint64), (position & 255).astype(np.int64), (count & 255).astype(np.int64)
        mask = low_bits(np.minimum(count, width))
        field = np.where(position < width, x >> np.minimum(position, 63).astype(np.uint64), np.uint64(0)) & mask
        if kind[0] == "s":
            last = np.clip(position + count - 1, 0, width - 1).astype(np.uint64)
            negative = (x >> last & np.uint64(1)).astype(bool) & (count > 0)
            reach = np.clip(width - position, 0, np.minimum(count, width))  # bits that came from a
            field = np.where(negative, field | ~low_bits(reach), field)
        store(frame, lanes, field.astype(UNSIGNED[width]))

    return run


@operation("bfi")
def insert_field(instruction, modifiers):
    width = bits(modifiers.kind())
    d, a, b, start, length = instruction.operands
    a, b = raw(a, width, instruction), raw(b, width, instruction)
    start, length, store = raw(start, 32, instruction), raw(length, 32, instruction), write(d, instruction)

    def run(frame, lanes):
        x, y = a(frame, lanes).astype(np.uint64), b(frame, lanes).astype(np.uint64)
        position, count = start(frame, lanes) & np.uint32(255), length(frame, lanes) & np.uint32(255)
        offset = np.minimum(position, 63).astype(np.uint64)
        mask = np.where(position < width, low_bits(count) << offset, np.uint64(0))
        store(frame, lanes, ((y & ~mask) | ((x << offset) & mask)).astype(UNSIGNED[width]))

    return run


def bit_length(x: np.ndarray) -> np.ndarray:
    """One more than the highest set bit's position, as int64."""
    length = np.zeros(x.shape, np.int64)
    rest = x.astype(np.uint64)
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >> np.uint64(step) != 0
        length += np.where(large, step, 0)
        rest = np.where(large, rest >> np.uint64(step), rest)
    return length + (rest != 0)


@operation("popc", "clz", "brev", "bfind")
def count_bits(instruction, modifiers):
    kind = modifiers.kind()
    width = bits(kind)
    amount = modifiers.flag("shiftamt")
    d, a = instruction.operands
    a, store, opcode = raw(a, width, instruction), write(d, instruction), instruction.opcode

    def run(frame, lanes):
        x = a(frame, lanes)
        octets = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)
        if opcode == "popc":
            result = np.unpackbits(octets, axis=1).sum(1).astype(np.uint32)
        elif opcode == "brev":
            flipped = np.packbits(np.unpackbits(octets, axis=1, bitorder="little"), axis=1, bitorder="big")
            result = np.ascontiguousarray(flipped[:, ::-1]).view(x.dtype)[:, 0]
        elif opcode == "clz":
            result = (width - bit_length(x)).astype(np.uint32)
        else:  # the most significant bit that is no sign, or -1
            negative = kind[0] == "s" and x.view(SIGNED[width]) < 0
            highest = bit_length(np.where(negative, ~x, x)) - 1
            result = np.where(highest < 0, -1, width - 1 - highest if amount else highest).astype(np.uint32)
        store(frame, lanes, result)

    return run


@operation("prmt")
def permute(instruction, modifiers):
    """Each nibble of the selector names one of the eight bytes of b:a; its top bit asks for that byte's sign."""
    modifiers.first_of("b32")
    d, a, b, selector = instruction.operands
    a, b, selector = (raw(each, 32, instruction) for each in (a, b, selector))
    store = write(d, instruction)

    def run(frame, lanes):
        choice = selector(frame, lanes)
        both = b(frame, lanes).astype(np.uint64) << np.uint64(32) | a(frame, lanes)
        result = np.zeros(1, np.uint32)
        for place in range(4):
            nibble = choice >> np.uint32(4 * place)
            octet = (both >> (np.uint64(8) * (nibble & np.uint32(7)))) & np.uint64(255)
            sign = np.where(octet >= 128, np.uint64(255), np.uint64(0))
            octet = np.where((nibble & np.uint32(8)) != 0, sign, octet)
            result = result | octet.astype(np.uint32) << np.uint32(8 * place)
        store(frame, lanes, result)

    return run


ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def comparison(instruction, modifiers, kind: str, a, b):
    """Reads both operands and compares them; packed pairs with a last axis of 2."""
    real = kind in floats.LOAD
    name = modifiers.one_of(*ORDERED, *UNSIGNED_NAMES, *(f"{each}u" for each in ORDERED), "num", "nan")
    flush = real and modifiers.flag("ftz") and kind == "f32"
    if not real and (name in ("num", "nan") or name.removesuffix("u") != name):
        raise instruction.error(f"comparison .{name} of .{kind}")
    if name in UNSIGNED_NAMES and kind[0] != "u":
        raise instruction.error(f"comparison .{name} of .{kind}")
    name = UNSIGNED_NAMES.get(name, name)
    unordered_too = name.endswith("u")
    a, b = value(a, kind, instruction), value(b, kind, instruction)

    def compare(frame, lanes):
        x, y = a(frame, lanes), b(frame, lanes)
        if flush:
            x, y = floats.flush(x), floats.flush(y)
        if not real:
            return ORDERED[name](x, y)
        unordered = np.isnan(x) | np.isnan(y)
        if name in ("num", "nan"):
            return unordered if name == "nan" else ~unordered
        result = ORDERED[name.removesuffix("u")](x, y)
        return result | unordered if unordered_too else result & ~unordered

    return compare


def combination(instruction, modifiers, third):
    """The .and, .or or .xor of a comparison with a predicate."""
    name = modifiers.one_of("and", "or", "xor", default="")
    if (name != "") != (len(third) == 1):
        raise ValueError
    if not name:
        return lambda frame, lanes, result: result
    other = predicate(third[0], instruction)
    function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    return lambda frame, lanes, result: function(result, other(frame, lanes))


@operation("setp")
def set_predicate(instruction, modifiers):
    kind = modifiers.kind()
    d, a, b, *third = instruction.operands
    compare = comparison(instruction, modifiers, kind, a, b)
    combine = combination(instruction, modifiers, third)
    first, second = (d.first, d.second) if isinstance(d, Pair) else (d, None)
    first, second = write(first, instruction), write(second, instruction) if second else None

    def run(frame, lanes):
        result = compare(frame, lanes)
        if kind.endswith("x2"):
            first(frame, lanes, combine(frame, lanes, result[:, 0]))
            if second:
                second(frame, lanes, combine(frame, lanes, result[:, 1]))
            return
        first(frame, lanes, combine(frame, lanes, result))
        if second:
            second(frame, lanes, combine(frame, lanes, ~result))

    return run


@operation("set")
def set_value(instruction, modifiers):
    """Like setp, but into a register: all bits, or 1.0."""
    kind = modifiers.kind()
    out = modifiers.kind()
    d, a, b, *third = instruction.operands
    compare = comparison(instruction, modifiers, kind, a, b)
    combine = combination(instruction, modifiers, third)
    store = write_value(d, out, instruction)

    def run(frame, lanes):
        result = combine(frame, lanes, compare(frame, lanes))
        if out in floats.LOAD:
            store(frame, lanes, result.astype(floats.working_type(out)))
        elif kind.endswith("x2"):  # a half of the register each
            store(frame, lanes, floats.join_pair(np.where(result, np.uint16(0xFFFF), np.uint16(0))))
        else:
            store(frame, lanes, np.where(result, np.uint32(0xFFFFFFFF), np.uint32(0)).astype(UNSIGNED[bits(out)]))

    return run


@operation("selp")
def select(instruction, modifiers):
    width = bits(modifiers.kind())
    d, a, b, condition = instruction.operands
    a, b, store = raw(a, width, instruction), raw(b, width, instruction), write(d, instruction)
    condition = predicate(condition, instruction)
    return lambda frame, lanes: store(frame, lanes, np.where(condition(frame, lanes), a(frame, lanes), b(frame, lanes)))


@operation("testp")
def test_number(instruction, modifiers):
    kind = modifiers.kind()
    name = modifiers.one_of("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    d, a = instruction.operands
    a, store = value(a, kind, instruction), write(d, instruction)
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).smallest_normal),
        "subnormal": lambda x: (np.abs(x) < np.finfo(x.dtype).smallest_normal) & (x != 0),
    }
    return lambda frame, lanes: store(frame, lanes, tests[name](a(frame, lanes)))
