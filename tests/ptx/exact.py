"""Instructions run alone, and what they should give in exact arithmetic: written apart from the interpreter."""

import math
from fractions import Fraction

import numpy as np

from tests.ptx import Memory, Module

FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
WIDTH = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}


def run(text: str, result: dict[str, int], **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Runs instructions on registers %name of these arrays' bits; returns the bits of the results' registers.

    result gives the width of each result in bits, 1 for predicates. All arrays have one element per thread.
    """
    n = len(next(iter(inputs.values())))
    padded = -(-n // 32) * 32
    sizes = {name: max(width // 8, 4 if width == 1 else 1) for name, width in result.items()}
    code = [f".reg .b{8 * array.itemsize} %{name};" for name, array in inputs.items()]
    code += [f".reg .{'pred' if width == 1 else f'b{width}'} %{name};" for name, width in result.items()]
    code += [".reg .b64 %index, %place;", ".reg .b32 %thread, %word;", "mov.u32 %thread, %tid.x;"]
    code += ["mov.u32 %word, %ctaid.x;", "mad.lo.u32 %thread, %word, 32, %thread;"]
    for name, array in inputs.items():
        code += [*element(name, array.itemsize), f"ld.global.b{8 * array.itemsize} %{name}, [%place];"]
    code.append(text)
    for name, width in result.items():
        code += element(name, sizes[name])
        if width == 1:
            code += [f"selp.b32 %word, 1, 0, %{name};", "st.global.b32 [%place], %word;"]
        else:
            code.append(f"st.global.b{width} [%place], %{name};")
    params = ", ".join(f".param .u64 at_{name}" for name in [*inputs, *result])
    memory, addresses = Memory(), []
    for array in inputs.values():
        bits = array.view(f"u{array.itemsize}")
        addresses.append(memory.add(np.concatenate([bits, np.repeat(bits[:1], padded - n)])))
    addresses += [memory.add(np.zeros(padded, f"u{size}")) for size in sizes.values()]
    module = Module("\n".join([f".visible .entry one({params}) {{", *code, "ret;", "}"]))
    module.launch("one", (padded // 32,), (32,), addresses, memory)
    return {name: memory.read(address)[:n] for name, address in zip(result, addresses[len(inputs) :])}


def element(name: str, size: int) -> list[str]:
    """%place becomes the address of this thread's element of an array."""
    return [
        f"ld.param.u64 %place, [at_{name}];",
        f"mul.wide.u32 %index, %thread, {size};",
        "add.u64 %place, %place, %index;",
    ]


def value(bits: int, kind: str) -> Fraction | float:
    """The number of a format that these bits stand for; infinities and NaN as floats."""
    precision, lowest, _ = FORMATS[kind]
    sign = -1 if bits >> (WIDTH[kind] - 1) else 1
    stored = bits & ((1 << (precision - 1)) - 1)
    exponent = bits >> (precision - 1) & ((1 << (WIDTH[kind] - precision)) - 1)
    if exponent == (1 << (WIDTH[kind] - precision)) - 1:
        return math.nan if stored else sign * math.inf
    if exponent:
        stored, exponent = stored + (1 << (precision - 1)), exponent - 1
    return sign * Fraction(stored) * Fraction(2) ** (exponent + lowest - precision + 1)


def rounded(exact: Fraction, kind: str, mode: str = "rn") -> Fraction | float:
    """The number of the format that `exact` rounds to."""
    precision, lowest, highest = FORMATS[kind]
    if exact == 0:
        return Fraction(0)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += (Fraction(2) ** exponent <= size) - 1
    exponent += Fraction(2) ** (exponent + 1) <= size
    step = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    units = exact / step
    whole = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode](units)  # round() ties to even
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest
    result = whole * step
    if abs(result) > largest:
        inward = {"rz": True, "rm": exact > 0, "rp": exact < 0, "rn": False}[mode]
        return (1 if exact > 0 else -1) * (largest if inward else math.inf)
    return result


def bits_of(number: Fraction, kind: str) -> int:
    """The bits of a number that the format has."""
    precision, lowest, _ = FORMATS[kind]
    sign = (number < 0) << WIDTH[kind] - 1
    units = abs(number) / Fraction(2) ** (lowest - precision + 1)
    shift = max(math.floor(units).bit_length() - precision, 0)
    return sign | (math.floor(units) >> shift) + (shift << precision - 1)
