"""Floating-point formats: bits to numbers and back, and arithmetic that rounds once.

Numbers are held as float16, float32 or float64 arrays, bfloat16 as the float32 that it widens to. A packed pair has
a last axis of 2.

One rounding: a sum of two float64 is taken to its nearest odd neighbour (Boldo and Melquiond's round-to-odd), which
keeps in its last bit that something was cut off; rounding that to a format at least two bits narrower gives what
rounding the exact sum would have given. The product of two numbers of at most 24 bits is exact in float64, so this
makes fma.f32, fma.f16 and fma.bf16 exact in any rounding mode.
"""

import ctypes
import ctypes.util

import numpy as np


def load_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def split_pair(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.uint16).reshape(-1, 2)


def join_pair(halves: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves).view(np.uint32).reshape(-1)


def narrow_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16's bits, ties to even; NaN becomes 0x7fff, the one that the hardware gives."""
    single = x if x.dtype == np.float32 else odd_float32(np.asarray(x, np.float64))
    bits = np.ascontiguousarray(single).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(single), np.uint32(0x7FFF), rounded).astype(np.uint16)


def narrow_f16(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float16).view(np.uint16)


LOAD = {
    "f16": lambda bits: bits.view(np.float16),
    "bf16": load_bf16,
    "f32": lambda bits: bits.view(np.float32),
    "f64": lambda bits: bits.view(np.float64),
    "f16x2": lambda bits: split_pair(bits).view(np.float16),
    "bf16x2": lambda bits: load_bf16(split_pair(bits)),
}
STORE = {
    "f16": narrow_f16,
    "bf16": narrow_bf16,
    "f32": lambda x: np.ascontiguousarray(x, np.float32).view(np.uint32),
    "f64": lambda x: np.ascontiguousarray(x, np.float64).view(np.uint64),
    "f16x2": lambda x: join_pair(narrow_f16(x)),
    "bf16x2": lambda x: join_pair(narrow_bf16(x)),
}


def working_type(kind: str) -> type:
    return {"f16": np.float16, "f16x2": np.float16, "f64": np.float64}.get(kind, np.float32)


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 numbers become zeros of their sign: .ftz."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def to_odd(rounded: np.ndarray, error: np.ndarray) -> np.ndarray:
    """rounded + error, whose float64 `rounded` is, taken to the neighbour with an odd last bit unless it is exact."""
    bits = np.ascontiguousarray(rounded).view(np.int64)
    move = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
    away = (error > 0) == (rounded > 0)  # from zero, where the next number has the next larger bits
    return np.where(move, bits + np.where(away, 1, -1), bits).view(np.float64)


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b and what its rounding cut off (Knuth)."""
    total = a + b
    shifted = total - a
    return total, (a - (total - shifted)) + (b - shifted)


def odd_float32(x: np.ndarray) -> np.ndarray:
    """float64 to float32, rounded to odd, so that a second rounding to fewer bits is as good as one."""
    single = x.astype(np.float32)
    error = x - single.astype(np.float64)
    bits = single.view(np.int32)
    move = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
    away = (error > 0) == (single > 0)
    from_zero = np.where(error > 0, np.int32(1), np.int32(-0x7FFFFFFF))
    moved = np.where(single == 0, from_zero, bits + np.where(away, np.int32(1), np.int32(-1)))
    # A finite number beyond the largest float32: infinity's lower neighbour is odd.
    overflow = np.isinf(single) & np.isfinite(x)
    return np.where(move, moved, np.where(overflow, bits - 1, bits)).astype(np.int32).view(np.float32)


def narrow(x: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """float64, exact or rounded to odd, as a number of the format: the only rounding there is."""
    kind = kind.removesuffix("x2")
    if kind == "f64":
        return x
    if kind == "bf16":
        nearest = load_bf16(narrow_bf16(x))
        step = np.float32(2.0**-133)
    else:
        dtype = np.float16 if kind == "f16" else np.float32
        nearest, step = x.astype(dtype), np.finfo(dtype).smallest_subnormal
    if mode == "rn":
        return nearest
    return directed(x, nearest, kind, mode, step)


def directed(x: np.ndarray, nearest: np.ndarray, kind: str, mode: str, step) -> np.ndarray:
    """Moves the nearest number to the neighbour on the side that the rounding mode asks for."""
    wide = nearest.astype(np.float64)
    down = {"rm": wide > x, "rp": np.zeros(x.shape, bool), "rz": (wide > x) & (x > 0)}[mode]
    up = {"rp": wide < x, "rm": np.zeros(x.shape, bool), "rz": (wide < x) & (x < 0)}[mode]
    if kind != "bf16":
        lower = np.nextafter(nearest, nearest.dtype.type(-np.inf))
        upper = np.nextafter(nearest, nearest.dtype.type(np.inf))
    else:
        bits = nearest.view(np.int32)  # a bfloat16's neighbours differ by one in the upper half
        outward, inward = (bits + 0x10000).view(np.float32), (bits - 0x10000).view(np.float32)
        lower = np.where(nearest > 0, inward, np.where(nearest == 0, -step, outward))
        upper = np.where(nearest < 0, inward, np.where(nearest == 0, step, outward))
    return np.where(down, lower, np.where(up, upper, nearest)).astype(nearest.dtype)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """a * b + c, rounded once."""
    if kind == "f64":
        return fused_float64(a, b, c)
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    if kind == "f32" and mode == "rn":
        total = product + addend
        # Rounding twice goes wrong only where float64 landed on the middle of two float32: 29 bits, the first one set.
        # Subnormal results have their middle elsewhere.
        doubtful = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        doubtful |= (np.abs(total) < 2.0**-126) & (total != 0)
        result = total.astype(np.float32)
        if doubtful.any():
            parts = (np.broadcast_to(each, total.shape)[doubtful] for each in (product, addend))
            result[doubtful] = narrow(to_odd(*two_sum(*parts)), kind)
        return result
    return narrow(to_odd(*two_sum(product, addend)), kind, mode)


LIBM_FMA = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6").fma
LIBM_FMA.restype, LIBM_FMA.argtypes = ctypes.c_double, [ctypes.c_double] * 3


def fused_float64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c, rounded once: Boldo and Melquiond's algorithm, or libm's fma where that could over- or underflow."""
    a, b, c = np.broadcast_arrays(a, b, c)

    def halves(x):  # Dekker's split
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    (ah, al), (bh, bl) = halves(a), halves(b)
    high = a * b
    low = ((ah * bh - high) + ah * bl + al * bh) + al * bl
    tail_high, tail_low = two_sum(c, low)
    sum_high, sum_low = two_sum(high, tail_high)
    result = sum_high + to_odd(*two_sum(tail_low, sum_low))
    size = np.abs(np.stack([a, b, c, high, result]))
    risky = ~((size < 2.0**900) & ((size > 2.0**-800) | (size == 0))).all(0)
    # A product that underflowed to zero from factors that are none.
    risky |= (high == 0) & (a != 0) & (b != 0)
    if risky.any():
        result = result.copy()
        result[risky] = [LIBM_FMA(*each) for each in zip(a[risky], b[risky], c[risky])]
    return result
