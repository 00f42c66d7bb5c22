"""Arithmetic on integers and on floating-point numbers: add to fma, division, minima and the approximate functions."""

import numpy as np

from tests.ptx import floats
from tests.ptx.decode import Modifiers, operation
from tests.ptx.operands import SIGNED, UNSIGNED, integer, number, raw, value, write, write_number
from tests.ptx.parse import Instruction, bits

FLOATS = tuple(floats.LOAD)


class Rounding:
    """The modifiers of a floating-point instruction: how its exact result becomes a number of the type."""

    def __init__(self, modifiers: Modifiers, kind: str):
        self.kind = kind
        self.mode = modifiers.one_of("rn", "rz", "rm", "rp", default="rn")
        self.saturate, self.relu, self.flush = (modifiers.flag(name) for name in ("sat", "relu", "ftz"))
        if self.mode != "rn" and kind != "f32":
            raise modifiers.instruction.error(f"rounding .{self.mode} of .{kind}")
        if self.flush and kind != "f32":
            raise modifiers.instruction.error(f".ftz of .{kind}")

    def operand(self, x: np.ndarray) -> np.ndarray:
        return floats.flush(x) if self.flush else x

    def result(self, x: np.ndarray) -> np.ndarray:
        if self.flush:
            x = floats.flush(x)
        if self.saturate:
            x = np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))
        return np.maximum(x, x.dtype.type(0)) if self.relu else x


def float_binary(instruction: Instruction, modifiers: Modifiers, kind: str):
    rounding, opcode = Rounding(modifiers, kind), instruction.opcode
    d, a, b = instruction.operands
    a, b, store = number(a, kind, instruction), number(b, kind, instruction), write_number(d, kind, instruction)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[opcode]

    def run(frame, lanes):
        x, y = rounding.operand(a(frame, lanes)), rounding.operand(b(frame, lanes))
        if rounding.mode != "rn":
            x, y = x.astype(np.float64), y.astype(np.float64)
            exact = x * y if opcode == "mul" else floats.to_odd(*floats.two_sum(x, -y if opcode == "sub" else y))
            result = floats.narrow(exact, kind, rounding.mode)
        elif kind.startswith("bf16"):
            # float32 would round subnormal products twice; float64 holds them, and sums to far beyond 8 bits.
            result = function(x.astype(np.float64), y.astype(np.float64))
        else:
            result = function(x, y)
        store(frame, lanes, rounding.result(result))

    return run


def integer_binary(instruction: Instruction, modifiers: Modifiers, kind: str):
    d, a, b = instruction.operands
    saturate = kind == "s32" and instruction.opcode != "mul" and modifiers.flag("sat")
    read_a, read_b = integer(a, kind, instruction), integer(b, kind, instruction)
    store = write(d, instruction, signed=kind[0] == "s")
    function = {"add": np.add, "sub": np.subtract}[instruction.opcode]

    def run(frame, lanes):
        x, y = read_a(frame, lanes), read_b(frame, lanes)
        if saturate:
            total = function(x.astype(np.int64), y.astype(np.int64))
            store(frame, lanes, np.clip(total, -(2**31), 2**31 - 1).astype(np.int32))
        else:
            store(frame, lanes, function(x, y))

    return run


def with_carry(instruction: Instruction, modifiers: Modifiers, kind: str):
    """add.cc, addc, sub.cc, subc: 32-bit links of a chain through the condition code."""
    if bits(kind) != 32:
        raise instruction.error("a carry of other than 32 bits")
    d, a, b = instruction.operands
    a, b, store = raw(a, 32, instruction), raw(b, 32, instruction), write(d, instruction)
    keep, take = modifiers.flag("cc"), instruction.opcode.endswith("c")
    subtract = instruction.opcode.startswith("sub")

    def run(frame, lanes):
        x, y = a(frame, lanes).astype(np.int64), b(frame, lanes).astype(np.int64)
        carry = frame.carry[lanes].astype(np.int64) if take else 0
        total = x - y - carry if subtract else x + y + carry
        if keep:
            frame.carry[lanes] = (total < 0) | (total > 0xFFFFFFFF)
        store(frame, lanes, (total & 0xFFFFFFFF).astype(np.uint32))

    return run


@operation("add", "sub", "addc", "subc")
def add(instruction, modifiers):
    kind = modifiers.kind()
    if instruction.opcode.endswith("c") or "cc" in modifiers.left:
        return with_carry(instruction, modifiers, kind)
    return (float_binary if kind in FLOATS else integer_binary)(instruction, modifiers, kind)


def high_half(x: np.ndarray, y: np.ndarray, width: int, signed: bool) -> np.ndarray:
    """The upper half of the product of two integers."""
    if width < 64:
        wide = (SIGNED if signed else UNSIGNED)[2 * width]
        return (x.astype(wide) * y.astype(wide) >> wide.type(width)).astype((SIGNED if signed else UNSIGNED)[width])
    x, y = np.broadcast_arrays(x, y)
    u, v = x.astype(np.uint64), y.astype(np.uint64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    low, left = (u & mask) * (v & mask), (u >> half) * (v & mask)
    right = (u & mask) * (v >> half)
    middle = (low >> half) + (left & mask) + (right & mask)
    high = (u >> half) * (v >> half) + (left >> half) + (right >> half) + (middle >> half)
    if signed:
        high = high - np.where(x < 0, v, np.uint64(0)) - np.where(y < 0, u, np.uint64(0))
    return high


@operation("mul", "mad", "madc", "mul24", "mad24")
def multiply(instruction, modifiers):
    kind = modifiers.kind()
    if kind in FLOATS:
        if instruction.opcode == "mul":
            return float_binary(instruction, modifiers, kind)
        return fused_multiply_add(instruction, modifiers, kind)
    part = modifiers.one_of("lo", "hi", "wide")
    keep, take = modifiers.flag("cc"), instruction.opcode == "madc"
    width, signed = bits(kind), kind[0] == "s"
    short = instruction.opcode.endswith("24")
    if (short and (width != 32 or part == "wide")) or ((keep or take) and (width != 32 or part == "wide")):
        raise instruction.error(f".{part} of .{kind}")
    adds = not instruction.opcode.startswith("mul")
    d, a, b, *c = instruction.operands
    if len(c) != adds:
        raise ValueError
    a, b, store = integer(a, kind, instruction), integer(b, kind, instruction), write(d, instruction)
    out = 2 * width if part == "wide" else width
    wide = (SIGNED if signed else UNSIGNED)[out]
    addend = raw(c[0], out, instruction) if adds else None

    def run(frame, lanes):
        x, y = a(frame, lanes), b(frame, lanes)
        if short:  # 24 bits of each, sign-extended; the product's low 32 bits or its bits 16 to 47
            x, y = ((v << v.dtype.type(8)) >> v.dtype.type(8) for v in (x, y))
            product = x.astype(np.int64) * y.astype(np.int64)
            product = (product >> 16 if part == "hi" else product).astype(np.uint32)
        elif part == "hi":
            product = high_half(x, y, width, signed).astype(UNSIGNED[width])
        else:
            product = (x.astype(wide) * y.astype(wide)).view(UNSIGNED[out])
        if keep or take:
            total = product.astype(np.uint64) + addend(frame, lanes) + (frame.carry[lanes] if take else np.uint64(0))
            if keep:
                frame.carry[lanes] = total > 0xFFFFFFFF
            product = total.astype(np.uint32)
        elif adds:
            product = product + addend(frame, lanes)
        store(frame, lanes, product)

    return run


@operation("fma")
def fma(instruction, modifiers):
    return fused_multiply_add(instruction, modifiers, modifiers.kind())


def fused_multiply_add(instruction: Instruction, modifiers: Modifiers, kind: str):
    rounding = Rounding(modifiers, kind)
    d, a, b, c = instruction.operands
    a, b, c = (number(each, kind, instruction) for each in (a, b, c))
    store = write_number(d, kind, instruction)

    def run(frame, lanes):
        x, y, z = (rounding.operand(each(frame, lanes)) for each in (a, b, c))
        store(frame, lanes, rounding.result(floats.fused(x, y, z, kind.removesuffix("x2"), rounding.mode)))

    return run


@operation("div")
def divide(instruction, modifiers):
    kind = modifiers.kind()
    d, a, b = instruction.operands
    if kind in FLOATS:
        # .approx and .full may err by 2 ulp; what they give here is the nearest number.
        modifiers.one_of("rn", "approx", "full", default="rn")
        flush = modifiers.flag("ftz")
        a, b, store = number(a, kind, instruction), number(b, kind, instruction), write_number(d, kind, instruction)
        clean = floats.flush if flush else lambda x: x
        return lambda frame, lanes: store(
            frame, lanes, clean(np.divide(clean(a(frame, lanes)), clean(b(frame, lanes))))
        )
    a, b = integer(a, kind, instruction), integer(b, kind, instruction)
    store = write(d, instruction, signed=kind[0] == "s")
    return lambda frame, lanes: store(frame, lanes, quotient(a(frame, lanes), b(frame, lanes)))


@operation("rem")
def remainder(instruction, modifiers):
    kind = modifiers.kind()
    d, a, b = instruction.operands
    a, b = integer(a, kind, instruction), integer(b, kind, instruction)
    store = write(d, instruction, signed=kind[0] == "s")

    def run(frame, lanes):
        x, y = a(frame, lanes), b(frame, lanes)
        store(frame, lanes, x - quotient(x, y) * y)

    return run


def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """C's division, towards zero; all bits set where the hardware divides by zero."""
    zero = y == 0
    whole = np.floor_divide(x, np.where(zero, y.dtype.type(1), y))
    if x.dtype.kind == "i":
        whole = whole + ((x - whole * y != 0) & ((x < 0) != (y < 0)) & ~zero).astype(x.dtype)
    return np.where(zero, x.dtype.type(-1) if x.dtype.kind == "i" else np.iinfo(x.dtype).max, whole)


@operation("neg", "abs")
def sign(instruction, modifiers):
    kind = modifiers.kind()
    d, a = instruction.operands
    flush = kind in FLOATS and modifiers.flag("ftz")
    function = np.negative if instruction.opcode == "neg" else np.abs
    a = value(a, kind, instruction)
    store = write_number(d, kind, instruction) if kind in FLOATS else write(d, instruction, signed=True)

    def run(frame, lanes):
        x = a(frame, lanes)
        store(frame, lanes, function(floats.flush(x) if flush else x))

    return run


@operation("min", "max")
def extreme(instruction, modifiers):
    kind = modifiers.kind()
    d, a, b = instruction.operands
    largest = instruction.opcode == "max"
    if kind not in FLOATS:
        a, b = integer(a, kind, instruction), integer(b, kind, instruction)
        store = write(d, instruction, signed=kind[0] == "s")
        function = np.maximum if largest else np.minimum
        return lambda frame, lanes: store(frame, lanes, function(a(frame, lanes), b(frame, lanes)))
    rounding, keep_nan = Rounding(modifiers, kind), modifiers.flag("NaN")
    a, b, store = number(a, kind, instruction), number(b, kind, instruction), write_number(d, kind, instruction)
    if keep_nan:
        function = np.maximum if largest else np.minimum
    else:
        function = np.fmax if largest else np.fmin

    def run(frame, lanes):
        x, y = rounding.operand(a(frame, lanes)), rounding.operand(b(frame, lanes))
        result = function(x, y)
        # Equal numbers differ at most in a zero's sign, and -0 is the smaller one.
        negative = np.signbit(x) & np.signbit(y) if largest else np.signbit(x) | np.signbit(y)
        zero = np.copysign(result.dtype.type(0), np.where(negative, -1, 1).astype(result.dtype))
        result = np.where((x == 0) & (y == 0), zero, result)
        store(frame, lanes, rounding.result(result))

    return run


APPROXIMATE = {
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@operation(*APPROXIMATE)
def approximate(instruction, modifiers):
    """.rn is exact to the last bit. What .approx gives here is the nearest number, not the hardware's."""
    kind = modifiers.kind()
    function, flush = APPROXIMATE[instruction.opcode], modifiers.flag("ftz")
    mode = modifiers.one_of("rn", "approx")
    if mode == "rn" and instruction.opcode not in ("rcp", "sqrt"):
        raise instruction.error("no such rounding")
    d, a = instruction.operands
    a, store = number(a, kind, instruction), write_number(d, kind, instruction)

    def run(frame, lanes):
        x = a(frame, lanes)
        if kind == "f64" and mode == "approx":
            # Only the upper halves are read and written: a first guess for Newton's iteration.
            result = function((x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64))
            result = (result.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        elif mode == "rn":
            result = function(x)
        else:
            x = floats.flush(x) if flush and kind == "f32" else x
            result = function(x.astype(np.float64)).astype(np.float32)
            result = floats.flush(result) if flush and kind == "f32" else result
        store(frame, lanes, result)

    return run


@operation("copysign")
def copy_sign(instruction, modifiers):
    kind = modifiers.kind()
    d, a, b = instruction.operands
    a, b, store = number(a, kind, instruction), number(b, kind, instruction), write_number(d, kind, instruction)
    return lambda frame, lanes: store(frame, lanes, np.copysign(b(frame, lanes), a(frame, lanes)))
