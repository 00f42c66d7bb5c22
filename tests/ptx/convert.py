"""cvt: between integers, floating-point formats and packed pairs."""

import numpy as np

from tests.ptx import floats
from tests.ptx.decode import operation
from tests.ptx.operands import integer, integer_type, number, write, write_number, write_value
from tests.ptx.parse import bits

TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@operation("cvt")
def convert(instruction, modifiers):
    source = modifiers.kind()
    target = modifiers.kind()
    integral = modifiers.one_of(*TO_INTEGRAL, default="")
    mode = modifiers.one_of("rn", "rz", "rm", "rp", "rna", default="")
    saturate, flush, relu = (modifiers.flag(name) for name in ("sat", "ftz", "relu"))
    real = source in floats.LOAD, target in floats.LOAD or target == "tf32"
    if flush and "f32" not in (source, target):
        raise instruction.error(".ftz without .f32")
    if (relu and not all(real)) or (integral and not real[0]):
        raise instruction.error("modifiers that this conversion does not have")
    if target == "tf32":
        return to_tf32(instruction, mode)
    if target.endswith("x2"):
        return to_pair(instruction, source, target, mode, relu)
    if not real[0]:
        return (from_integer if real[1] else between_integers)(instruction, source, target, mode, saturate)
    if not real[1]:
        return to_integer(instruction, source, target, integral or mode, flush)
    d, a = instruction.operands
    a, store = number(a, source, instruction), write_number(d, target, instruction)
    narrows = bits(target) < bits(source) or (target, source) in (("bf16", "f16"), ("f16", "bf16"))
    if narrows and mode not in ("rn", "rz", "rm", "rp"):
        raise instruction.error("a narrowing conversion without a rounding")

    def run(frame, lanes):
        x = a(frame, lanes)
        x = floats.flush(x) if flush and source == "f32" else x
        x = TO_INTEGRAL[integral](x) if integral else x
        if narrows:
            x = floats.narrow(x.astype(np.float64), target, mode)
        elif target == "f64":
            x = x.astype(np.float64)
        else:
            x = x.astype(floats.working_type(target))
        if saturate:
            x = np.where(np.isnan(x), x.dtype.type(0), np.clip(x, x.dtype.type(0), x.dtype.type(1)))
        x = floats.flush(x) if flush and target == "f32" else x
        store(frame, lanes, np.maximum(x, x.dtype.type(0)) if relu else x)

    return run


def to_pair(instruction, source, target, mode, relu):
    """Two float32 into one register, the first one into its upper half."""
    if source != "f32" or mode not in ("rn", "rz"):
        raise instruction.error("a conversion to a pair from other than .rn or .rz of two .f32")
    d, upper, lower = instruction.operands
    upper, lower = number(upper, "f32", instruction), number(lower, "f32", instruction)
    store = write_number(d, target, instruction)

    def run(frame, lanes):
        x = np.stack(np.broadcast_arrays(lower(frame, lanes), upper(frame, lanes)), axis=-1)
        x = floats.narrow(x.astype(np.float64), target, mode)
        store(frame, lanes, np.maximum(x, x.dtype.type(0)) if relu else x)

    return run


def to_tf32(instruction, mode):
    """Nearest 10-bit mantissa, ties away from zero (.rna) or to even (.rn)."""
    if mode not in ("rna", "rn"):
        raise instruction.error(f"rounding .{mode} to .tf32")
    d, a = instruction.operands
    a, store = number(a, "f32", instruction), write(d, instruction)

    def run(frame, lanes):
        x = np.ascontiguousarray(a(frame, lanes)).view(np.uint32)
        half = np.uint32(0x1000) if mode == "rna" else np.uint32(0xFFF) + (x >> np.uint32(13) & np.uint32(1))
        rounded = (x + half) & np.uint32(0xFFFFE000)
        special = x & np.uint32(0x7F800000) == np.uint32(0x7F800000)
        store(frame, lanes, np.where(special, x, rounded))

    return run


def between_integers(instruction, source, target, mode, saturate):
    d, a = instruction.operands
    if mode:
        raise instruction.error("a rounding of integers")
    a, store = integer(a, source, instruction), write(d, instruction, signed=target[0] == "s")
    out = integer_type(target)
    limits = np.iinfo(out)

    def run(frame, lanes):
        x = a(frame, lanes)
        if saturate:
            own = np.iinfo(x.dtype)
            x = np.clip(x, x.dtype.type(max(limits.min, own.min)), x.dtype.type(min(limits.max, own.max)))
        store(frame, lanes, x.astype(out))

    return run


def from_integer(instruction, source, target, mode, saturate):
    if mode not in ("rn", "rz", "rm", "rp") or saturate or (target == "f64" and mode != "rn"):
        raise instruction.error("a conversion from integers without a known rounding")
    d, a = instruction.operands
    a, store = integer(a, source, instruction), write_number(d, target, instruction)

    def run(frame, lanes):
        x = a(frame, lanes)
        if target == "f64":
            return store(frame, lanes, x.astype(np.float64))
        # Both halves are exact in float64, and their sum is rounded once, to the target.
        high = (x >> x.dtype.type(x.dtype.itemsize * 4)).astype(np.float64) * 2.0 ** (x.dtype.itemsize * 4)
        low = (x & x.dtype.type((1 << x.dtype.itemsize * 4) - 1)).astype(np.float64)
        store(frame, lanes, floats.narrow(floats.to_odd(*floats.two_sum(high, low)), target, mode))

    return run


def to_integer(instruction, source, target, mode, flush):
    """Clamps to the target's range. NaN becomes 0, with 64 bits on either side its top bit alone."""
    if mode not in TO_INTEGRAL:
        raise instruction.error("a conversion to integers without a rounding")
    d, a = instruction.operands
    a, store = number(a, source, instruction), write_value(d, target, instruction)
    out, width = integer_type(target), bits(target)
    limits = np.iinfo(out)
    of_nan = 1 << (width - 1) if width == 64 or source == "f64" else 0
    nan = np.array(of_nan, f"u{width // 8}").view(out)

    def run(frame, lanes):
        x = a(frame, lanes)
        x = TO_INTEGRAL[mode]((floats.flush(x) if flush else x).astype(np.float64))
        above, below = x >= 2.0 ** (width - (target[0] == "s")), x < float(limits.min)
        whole = np.where(above | below | np.isnan(x), 0, x).astype(out)
        whole = np.where(above, out.type(limits.max), np.where(below, out.type(limits.min), whole))
        store(frame, lanes, np.where(np.isnan(x), nan, whole))

    return run
