"""Single instructions against exact arithmetic: rational numbers, or Python's own integers."""

import inspect
import itertools
import math
import operator
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx import Module, PtxError
from tests.ptx.exact import FORMATS, WIDTH, bits_of, rounded, run, value

RANDOM = np.random.default_rng(1)


def float_bits(kind: str, count: int) -> np.ndarray:
    """Bits of a format: all kinds of exponents, long runs of ones and zeros, and the special numbers."""
    width, precision = WIDTH[kind], FORMATS[kind][0]
    top = ((1 << (width - precision)) - 1) << (precision - 1)  # infinity
    special = [0, 1, 2, 3, (1 << precision - 1) - 1, 1 << precision - 1, top - 1, top, top + (top & -top) // 2]
    special += [each | 1 << width - 1 for each in special]
    bits = RANDOM.integers(0, 1 << width, count, np.uint64)
    near_one = RANDOM.integers(0, 1 << precision + 2, count, np.uint64) + ((top >> 1) & top)  # exponents that meet
    runs = np.uint64(1) << RANDOM.integers(0, width - 1, count).astype(np.uint64)
    bits = np.where(RANDOM.random(count) < 0.6, near_one, bits)
    bits = np.where(RANDOM.random(count) < 0.3, bits & ~(runs - np.uint64(1)), bits)
    bits = np.concatenate([np.array(special, np.uint64), bits])
    return RANDOM.permutation(bits).astype(f"u{width // 8}")


def same(bits: int, wanted, kind: str) -> bool:
    """Whether these bits are the wanted number; the sign of a zero is looked at elsewhere."""
    actual = value(bits, kind)
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(actual, float) and math.isnan(actual)
    return actual == wanted


def apply(function, *numbers):
    """The exact result, or what float arithmetic gives for infinities and NaN."""
    if any(isinstance(each, float) for each in numbers):
        with np.errstate(all="ignore"):
            return float(function(*(np.float64(float(each)) for each in numbers)))
    return function(*numbers)


ARITHMETIC = [
    ("add", 2, lambda a, b: a + b, ["f16", "f32", "f64", "bf16"]),
    ("sub", 2, lambda a, b: a - b, ["f16", "f32", "f64", "bf16"]),
    ("mul", 2, lambda a, b: a * b, ["f16", "f32", "f64", "bf16"]),
    ("fma", 3, lambda a, b, c: a * b + c, ["f16", "f32", "f64", "bf16"]),
]


@pytest.mark.parametrize(
    ("opcode", "count", "function", "kind", "mode"),
    [
        (opcode, count, function, kind, mode)
        for opcode, count, function, kinds in ARITHMETIC
        for kind in kinds
        for mode in (["rn", "rz", "rm", "rp"] if kind == "f32" else ["rn"])
    ],
)
def test_rounds_once(opcode, count, function, kind, mode):
    inputs = {name: float_bits(kind, 1500) for name in "abc"[:count]}
    if count == 3:
        # Every third addend all but cancels the product or ends behind it, where one rounding differs from two.
        for i in range(0, len(inputs["c"]), 3):
            product = apply(lambda a, b: a * b, *(value(inputs[name][i].item(), kind) for name in "ab"))
            if not isinstance(product, float) and not isinstance(near := rounded(-product, kind), float):
                inputs["c"][i] = bits_of(near, kind)
    names = ", ".join(f"%{name}" for name in inputs)
    actual = run(f"{opcode}.{mode}.{kind} %d, {names};", {"d": WIDTH[kind]}, **inputs)["d"]
    for i, bits in enumerate(actual.tolist()):
        numbers = [value(array[i].item(), kind) for array in inputs.values()]
        wanted = apply(function, *numbers)
        wanted = wanted if isinstance(wanted, float) else rounded(wanted, kind, mode)
        assert same(bits, wanted, kind), (numbers, wanted, value(bits, kind))


def test_fma_where_two_roundings_go_wrong():
    """641 * 6700417 = 2^32 + 1, and 2^56 + 2^32 is a middle of two float32; float64 loses the 1 that tips it."""
    a, b, c = (np.array([x], np.float32) for x in (641, 6700417, 2.0**56))
    actual = run("fma.rn.f32 %d, %a, %b, %c;", {"d": 32}, a=a, b=b, c=c)["d"].view(np.float32)[0]
    assert actual == 2.0**56 + 2.0**33
    assert np.float32(641.0 * 6700417.0 + 2.0**56) == 2.0**56


@pytest.mark.parametrize(
    ("source", "target", "mode"),
    [
        *(("f32", target, mode) for target in ("f16", "bf16") for mode in ("rn", "rz")),
        *(("f64", "f32", mode) for mode in ("rn", "rz", "rm", "rp")),
        ("f64", "f16", "rn"),
    ],
)
def test_narrowing(source, target, mode):
    a = float_bits(source, 3000)
    # Numbers that end half a unit of the target behind one, and their neighbours
    cut = np.uint64(FORMATS[source][0] - FORMATS[target][0])
    half = a.astype(np.uint64) >> cut << cut | np.uint64(1) << (cut - np.uint64(1))
    half += RANDOM.integers(0, 3, len(a)).astype(np.uint64) - np.uint64(1)
    a = np.concatenate([a, half.astype(a.dtype)])
    actual = run(f"cvt.{mode}.{target}.{source} %d, %a;", {"d": WIDTH[target]}, a=a)["d"]
    for bits, given in zip(actual.tolist(), a.tolist()):
        exact = value(given, source)
        wanted = exact if isinstance(exact, float) else rounded(exact, target, mode)
        assert same(bits, wanted, target), (float(exact), wanted)


@pytest.mark.parametrize(("source", "target"), [("f16", "f32"), ("bf16", "f32"), ("f32", "f64"), ("f16", "f64")])
def test_widening_is_exact(source, target):
    a = float_bits(source, 500)
    actual = run(f"cvt.{target}.{source} %d, %a;", {"d": WIDTH[target]}, a=a)["d"]
    assert all(same(bits, value(given, source), target) for bits, given in zip(actual.tolist(), a.tolist()))


def test_pairs():
    a, b = float_bits("f32", 500), float_bits("f32", 500)
    for kind in ("f16", "bf16"):
        actual = run(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", {"d": 32}, a=a, b=b)["d"].tolist()
        for word, upper, lower in zip(actual, a.tolist(), b.tolist()):
            for bits, given in ((word >> 16, upper), (word & 0xFFFF, lower)):
                exact = value(given, "f32")
                assert same(bits, exact if isinstance(exact, float) else rounded(exact, kind), kind)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
@pytest.mark.parametrize("target", ["s8", "u8", "s16", "s32", "u32", "s64", "u64"])
def test_to_integer(source, target, mode):
    width, signed = int(target[1:]), target[0] == "s"
    a = float_bits(source, 500)
    out = max(width, 16)
    actual = run(f"cvt.{mode}.{target}.{source} %d, %a;", {"d": out}, a=a)["d"]
    lowest, highest = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    whole = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    for bits, given in zip(actual.tolist(), a.tolist()):
        exact = value(given, source)
        if isinstance(exact, float) and math.isnan(exact):  # the PTX manual's table
            wanted = 0 if source != "f64" and width != 64 else 1 << width - 1
            wanted -= (wanted > highest) << width
        else:
            wanted = min(max(exact if isinstance(exact, float) else whole(exact), lowest), highest)
        assert bits == int(wanted) & ((1 << out) - 1), (float(exact), wanted)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("target", ["f16", "bf16", "f32"])
def test_from_integer(source, target, mode):
    width = int(source[1:])
    a = RANDOM.integers(0, 1 << width, 800, np.uint64) >> RANDOM.integers(0, width, 800).astype(np.uint64)
    edges = np.array([0, (1 << width) - 1, 1 << width - 1, (1 << 24) + 1], np.uint64)
    a = np.concatenate([a, edges]).astype(f"u{width // 8}")
    actual = run(f"cvt.{mode}.{target}.{source} %d, %a;", {"d": WIDTH[target]}, a=a)["d"]
    numbers = a.view(f"i{width // 8}") if source[0] == "s" else a
    for bits, number in zip(actual.tolist(), numbers.tolist()):
        assert same(bits, rounded(Fraction(number), target, mode), target), number


def test_tf32():
    """Ties away from zero, to 11 bits: half a unit added to the size, and the rest cut off."""
    a = float_bits("f32", 2000)
    a[::3] = a[::3] & ~np.uint32(0xFFF) | np.uint32(0x1000)  # ties, and no ties
    actual = run("cvt.rna.tf32.f32 %d, %a;", {"d": 32}, a=a)["d"].tolist()
    for bits, given in zip(actual, a.tolist()):
        exact = value(given, "f32")
        if isinstance(exact, float):
            assert same(bits, exact, "f32")
        elif given >> 23 & 255 < 254:
            unit = Fraction(2) ** (max(given >> 23 & 255, 1) - 127 - 10)
            wanted = math.floor(abs(exact) / unit + Fraction(1, 2)) * unit
            assert abs(value(bits, "f32")) == wanted
            assert bits >> 31 == given >> 31


@pytest.mark.parametrize("opcode", ["min", "max"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_extremes(opcode, kind):
    a, b = float_bits(kind, 300), float_bits(kind, 300)
    zeros = np.array([0, 1 << WIDTH[kind] - 1], a.dtype)
    a, b = np.concatenate([a, zeros, zeros]), np.concatenate([b, zeros, zeros[::-1]])
    for modifier in ("", ".NaN"):
        actual = run(f"{opcode}{modifier}.{kind} %d, %a, %b;", {"d": WIDTH[kind]}, a=a, b=b)["d"].tolist()
        for bits, x, y in zip(actual, a.tolist(), b.tolist()):
            numbers = [value(x, kind), value(y, kind)]
            real = [each for each in numbers if not (isinstance(each, float) and math.isnan(each))]
            if len(real) < 2 and (modifier or not real):
                assert same(bits, math.nan, kind)
                continue
            assert same(bits, {"min": min, "max": max}[opcode](real), kind)
            if numbers == [0, 0]:
                assert bits == (min(x, y) if opcode == "max" else max(x, y))


def test_flush_to_zero():
    a = np.array([1e-40, -1e-40, 1.0, 2.0**-126], np.float32)
    actual = run("add.ftz.f32 %d, %a, 0f80000000;", {"d": 32}, a=a)["d"]
    np.testing.assert_array_equal(actual, np.array([0.0, -0.0, 1.0, 2.0**-126], np.float32).view(np.uint32))
    halved = run("mul.ftz.f32 %d, %a, 0f3F000000;", {"d": 32}, a=a)["d"].view(np.float32)
    np.testing.assert_array_equal(halved, np.array([0, 0, 0.5, 0], np.float32))
    kept = run("mul.f32 %d, %a, 0f3F000000;", {"d": 32}, a=a)["d"].view(np.float32)
    np.testing.assert_array_equal(kept, a / 2)


COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


@pytest.mark.parametrize("name", [*COMPARISONS, *(f"{each}u" for each in COMPARISONS), "num", "nan"])
def test_float_comparisons(name):
    numbers = np.array([1.0, -1.0, 0.0, -0.0, np.inf, np.nan, 2.5], np.float32)
    a, b = (np.array(each, np.float32) for each in zip(*itertools.product(numbers, numbers)))
    actual = run(f"setp.{name}.f32 %d|%e, %a, %b;", {"d": 1, "e": 1}, a=a, b=b)
    for first, second, x, y in zip(actual["d"].tolist(), actual["e"].tolist(), a.tolist(), b.tolist()):
        unordered = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            wanted = unordered == (name == "nan")
        else:
            wanted = name.endswith("u") if unordered else getattr(operator, name[:2])(x, y)
        assert (first, second) == (wanted, not wanted)


def integers(width: int, count: int) -> np.ndarray:
    bits = RANDOM.integers(0, 1 << width, count, np.uint64) >> RANDOM.integers(0, width, count).astype(np.uint64)
    flip = np.where(RANDOM.random(count) < 0.3, np.uint64((1 << width) - 1), np.uint64(0))
    return (bits ^ flip).astype(f"u{width // 8}")


def signed(x: int, width: int) -> int:
    return x - (1 << width) if x >> (width - 1) else x


def extracted(a, start, length, width, sign):
    """bfe as the PTX manual writes it."""
    start, length, top = start & 255, length & 255, width - 1
    fill = 0 if not sign or length == 0 else a >> min(start + length - 1, top) & 1
    return sum((a >> (start + i) & 1 if i < length and start + i <= top else fill) << i for i in range(width))


def inserted(a, b, start, length, width):
    start, length = start & 255, length & 255
    for i in range(length):
        if start + i < width:
            b = b & ~(1 << start + i) | (a >> i & 1) << start + i
    return b


def permuted(a, b, selector):
    octets = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        octet = octets[nibble & 7]
        result |= ((255 if octet >> 7 else 0) if nibble & 8 else octet) << 8 * i
    return result


def funnel(low, high, amount, left, wrap):
    n = amount & 31 if wrap else min(amount, 32)
    both = high << 32 | low
    return both << n >> 32 if left else both >> n


def table(a, b, c, lut):
    return sum((lut >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))


def last_bit(a, width, sign):
    a = a ^ ((1 << width) - 1) if sign and a >> (width - 1) else a
    return a.bit_length() - 1


INTEGER = [
    ("bfe.u32 %d, %a, %i, %j", 32, lambda a, i, j: extracted(a, i, j, 32, False)),
    ("bfe.s32 %d, %a, %i, %j", 32, lambda a, i, j: extracted(a, i, j, 32, True)),
    ("bfe.u64 %d, %p, %i, %j", 64, lambda p, i, j: extracted(p, i, j, 64, False)),
    ("bfe.s64 %d, %p, %i, %j", 64, lambda p, i, j: extracted(p, i, j, 64, True)),
    ("bfi.b32 %d, %a, %b, %i, %j", 32, lambda a, b, i, j: inserted(a, b, i, j, 32)),
    ("bfi.b64 %d, %p, %q, %i, %j", 64, lambda p, q, i, j: inserted(p, q, i, j, 64)),
    ("prmt.b32 %d, %a, %b, %c", 32, lambda a, b, c: permuted(a, b, c)),
    ("lop3.b32 %d, %a, %b, %c, 0x96", 32, lambda a, b, c: table(a, b, c, 0x96)),
    ("lop3.b32 %d, %a, %b, %c, 0xE2", 32, lambda a, b, c: table(a, b, c, 0xE2)),
    ("shf.l.wrap.b32 %d, %a, %b, %i", 32, lambda a, b, i: funnel(a, b, i, True, True)),
    ("shf.l.clamp.b32 %d, %a, %b, %i", 32, lambda a, b, i: funnel(a, b, i, True, False)),
    ("shf.r.wrap.b32 %d, %a, %b, %i", 32, lambda a, b, i: funnel(a, b, i, False, True)),
    ("shf.r.clamp.b32 %d, %a, %b, %i", 32, lambda a, b, i: funnel(a, b, i, False, False)),
    ("shl.b32 %d, %a, %i", 32, lambda a, i: a << i),
    ("shl.b64 %d, %p, %i", 64, lambda p, i: p << i),
    ("shr.u32 %d, %a, %i", 32, lambda a, i: a >> i),
    ("shr.s32 %d, %a, %i", 32, lambda a, i: signed(a, 32) >> i),
    ("shr.s64 %d, %p, %i", 64, lambda p, i: signed(p, 64) >> i),
    ("popc.b32 %d, %a", 32, lambda a: bin(a).count("1")),
    ("popc.b64 %d, %p", 32, lambda p: bin(p).count("1")),
    ("clz.b32 %d, %a", 32, lambda a: 32 - a.bit_length()),
    ("clz.b64 %d, %p", 32, lambda p: 64 - p.bit_length()),
    ("brev.b32 %d, %a", 32, lambda a: int(f"{a:032b}"[::-1], 2)),
    ("brev.b64 %d, %p", 64, lambda p: int(f"{p:064b}"[::-1], 2)),
    ("bfind.u32 %d, %a", 32, lambda a: last_bit(a, 32, False)),
    ("bfind.s64 %d, %p", 32, lambda p: last_bit(p, 64, True)),
    ("mul.lo.s32 %d, %a, %b", 32, lambda a, b: a * b),
    ("mul.hi.u32 %d, %a, %b", 32, lambda a, b: a * b >> 32),
    ("mul.hi.s32 %d, %a, %b", 32, lambda a, b: signed(a, 32) * signed(b, 32) >> 32),
    ("mul.hi.u64 %d, %p, %q", 64, lambda p, q: p * q >> 64),
    ("mul.hi.s64 %d, %p, %q", 64, lambda p, q: signed(p, 64) * signed(q, 64) >> 64),
    ("mul.wide.u32 %d, %a, %b", 64, lambda a, b: a * b),
    ("mul.wide.s32 %d, %a, %b", 64, lambda a, b: signed(a, 32) * signed(b, 32)),
    ("mad.wide.s32 %d, %a, %b, %p", 64, lambda a, b, p: signed(a, 32) * signed(b, 32) + p),
    ("mad.hi.s32 %d, %a, %b, %c", 32, lambda a, b, c: (signed(a, 32) * signed(b, 32) >> 32) + c),
    ("mad.lo.u64 %d, %p, %q, %p", 64, lambda p, q: p * q + p),
    ("mul24.lo.u32 %d, %a, %b", 32, lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    ("mul24.lo.s32 %d, %a, %b", 32, lambda a, b: signed(a & 0xFFFFFF, 24) * signed(b & 0xFFFFFF, 24)),
    ("mul24.hi.s32 %d, %a, %b", 32, lambda a, b: signed(a & 0xFFFFFF, 24) * signed(b & 0xFFFFFF, 24) >> 16),
    ("add.cc.u32 %d, %a, %b; addc.u32 %d, %c, 0", 32, lambda a, b, c: (a + b >> 32) + c),
    ("sub.cc.u32 %d, %a, %b; subc.u32 %d, %c, 0", 32, lambda a, b, c: c - (a < b)),
    ("mad.lo.cc.u32 %d, %a, %b, %c; madc.hi.u32 %d, %a, %b, 5", 32, lambda a, b, c: (a * b + c + (5 << 32)) >> 32),
    ("add.sat.s32 %d, %a, %b", 32, lambda a, b: min(max(signed(a, 32) + signed(b, 32), -(2**31)), 2**31 - 1)),
    ("min.s32 %d, %a, %b", 32, lambda a, b: min(signed(a, 32), signed(b, 32))),
    ("max.u64 %d, %p, %q", 64, lambda p, q: max(p, q)),
    ("abs.s32 %d, %a", 32, lambda a: abs(signed(a, 32))),
    ("neg.s64 %d, %p", 64, lambda p: -p),
    ("cnot.b32 %d, %a", 32, lambda a: a == 0),
    ("div.u32 %d, %a, %j", 32, lambda a, j: a // j if j else 0xFFFFFFFF),
    ("cvt.s64.s32 %d, %a", 64, lambda a: signed(a, 32)),
    ("cvt.u64.u32 %d, %a", 64, lambda a: a),
    ("cvt.s32.s8 %d, %a", 32, lambda a: signed(a & 255, 8)),
    ("cvt.sat.u8.s32 %d, %a", 32, lambda a: min(max(signed(a, 32), 0), 255)),
    ("cvt.sat.s32.u32 %d, %a", 32, lambda a: min(a, 2**31 - 1)),
    ("mov.b64 {%d, _}, %p", 32, lambda p: p),
    ("mov.b64 {_, %d}, %p", 32, lambda p: p >> 32),
    ("mov.b64 %d, {%a, %b}", 64, lambda a, b: b << 32 | a),
    ("set.lt.u32.s32 %d, %a, %b", 32, lambda a, b: -(signed(a, 32) < signed(b, 32))),
    (".reg .pred %t; setp.hi.u32 %t, %a, %b; selp.b32 %d, %a, %b, %t", 32, lambda a, b: max(a, b)),
    (
        ".reg .pred %t; setp.ge.s64 %t, %p, %q; selp.s32 %d, 1, -1, %t",
        32,
        lambda p, q: 1 if signed(p, 64) >= signed(q, 64) else -1,
    ),
    (
        ".reg .pred %t, %u; setp.lt.u32 %u, %a, %c; setp.ne.xor.u32 %t, %a, %b, !%u; selp.u32 %d, 1, 0, %t",
        32,
        lambda a, b, c: (a != b) ^ (a >= c),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "width", "wanted"), INTEGER, ids=lambda each: each if isinstance(each, str) else "")
def test_integers(text, width, wanted):
    inputs = {name: integers(32, 700) for name in "abc"} | {name: integers(64, 700) for name in "pq"}
    inputs |= {name: RANDOM.integers(0, 70, 700).astype(np.uint32) for name in "ij"}
    inputs["b"][::5] = inputs["a"][::5]
    actual = run(text + ";", {"d": width}, **inputs)["d"].tolist()
    names = inspect.signature(wanted).parameters
    for i, bits in enumerate(actual):
        given = [inputs[name][i].item() for name in names]
        assert bits == int(wanted(*given)) & ((1 << width) - 1), given


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("wgmma.fence.sync.aligned", "line 13: unknown instruction: wgmma.fence.sync.aligned"),
        ("add.rn.funny.f32 %d, %a, %a", "line 13: unknown modifier .funny: add.rn.funny.f32"),
        ("add.f32 %d, %a", "line 13: an unexpected number of operands"),
        ("add.s32 %d, %a, %nobody", "line 13: unknown special register %nobody"),
        ("mov.u32 %d, %clock", "line 13: unknown special register %clock"),
        ("fma.rz.f64 %d, %a, %a, %a", "line 13: rounding .rz of .f64"),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 %d, %a, %a, %a", "line 13: not one of m16n8k16"),
        ("bar.sync 1, 64", "line 13: an unexpected number of operands"),
        ("bra nowhere", "line 13: no label nowhere"),
        ("call.uni nobody", "line 13: no function nobody"),
        ("trap", "line 13: trap, reached by block"),
    ],
)
def test_refusals(text, report):
    with pytest.raises(PtxError, match=report):
        run(text + ";", {"d": 32}, a=np.zeros(32, np.uint32))


def test_refused_before_anything_runs():
    """Even where no thread comes by."""
    with pytest.raises(PtxError, match=r"line 1: unknown instruction: tcgen05.wait"):
        Module(".visible .entry k() { bra end; tcgen05.wait; end: ret; }").launch("k", (1,), (32,), [], None)
