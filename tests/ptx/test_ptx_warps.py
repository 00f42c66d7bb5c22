"""What lanes do together: collectives, divergence and the order of shared-memory accesses."""

import numpy as np
import pytest

from tests.ptx import Memory, Module, PtxError
from tests.ptx.exact import run

RANDOM = np.random.default_rng(2)
UNDEFINED = 0xFFFFFFFF


def shuffled(mode: str, lane: int, amount: int, control: int) -> tuple[int, bool]:
    """The lane to read and the predicate, as the PTX manual writes shfl."""
    segment, clamp = control >> 8 & 31, control & 31
    highest = (lane & segment) | (clamp & ~segment & 31)
    lowest = lane & segment
    amount &= 31
    if mode == "up":
        source, inside = lane - amount, lane - amount >= highest
    elif mode == "down":
        source, inside = lane + amount, lane + amount <= highest
    elif mode == "bfly":
        source, inside = lane ^ amount, lane ^ amount <= highest
    else:
        source = lowest | (amount & ~segment & 31)
        inside = source <= highest
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8])
def test_shuffles(mode, width):
    a = np.arange(64, dtype=np.uint32) * 3
    amount = RANDOM.integers(0, 32, 64).astype(np.uint32)
    control = (32 - width) << 8 | (0 if mode == "up" else 31)
    text = f"shfl.sync.{mode}.b32 %d|%p, %a, %b, {control}, -1;"
    actual = run(text, {"d": 32, "p": 1}, a=a, b=amount)
    for i in range(64):
        source, inside = shuffled(mode, i % 32, int(amount[i]), control)
        assert (actual["d"][i], actual["p"][i]) == (a[i // 32 * 32 + source], inside)


SPLIT = """
.reg .pred %half; .reg .b32 %t;
mov.u32 %t, %laneid;
setp.lt.u32 %half, %t, 16;
@%half bra lower;
{TEXT_UPPER}
bra.uni end;
lower:
{TEXT_LOWER}
end:
"""


def split(text: str, upper: str = "0xffff0000", lower: str = "0x0000ffff") -> str:
    """The instruction in both branches of a warp, each with its half of the mask."""
    return SPLIT.replace("{TEXT_UPPER}", text.replace("MASK", upper)).replace(
        "{TEXT_LOWER}", text.replace("MASK", lower)
    )


def test_shuffle_in_both_branches():
    a = np.arange(32, dtype=np.uint32)
    actual = run(split("shfl.sync.bfly.b32 %d, %a, 1, 31, MASK;"), {"d": 32}, a=a)["d"]
    np.testing.assert_array_equal(actual, a ^ 1)


def test_shuffle_from_a_lane_outside_the_mask():
    a = np.arange(32, dtype=np.uint32)
    actual = run(split("shfl.sync.bfly.b32 %d, %a, 16, 31, MASK;"), {"d": 32}, a=a)["d"]
    np.testing.assert_array_equal(actual, np.full(32, UNDEFINED, np.uint32))


def test_mask_of_lanes_in_the_other_branch():
    a = np.arange(32, dtype=np.uint32)
    with pytest.raises(PtxError, match=r"divergent warp collective: of the 32 .* 16 at line \d+ .* 16 at line"):
        run(split("shfl.sync.bfly.b32 %d, %a, 1, 31, MASK;", "-1", "-1"), {"d": 32}, a=a)


def test_mask_without_its_own_lane():
    with pytest.raises(PtxError, match=r"a mask without its own lane, block \(0, 0, 0\) thread \(0, 0, 0\): vote"):
        run("vote.sync.ballot.b32 %d, 1, 0xfffffffe;", {"d": 32}, a=np.zeros(32, np.uint32))


def test_votes():
    a = RANDOM.integers(0, 2, 96).astype(np.uint32)
    a[32:64], a[64:] = 1, 0
    for mode, wanted in [("any", lambda w: w.any()), ("all", lambda w: w.all()), ("uni", lambda w: len(set(w)) == 1)]:
        text = f".reg .pred %q; setp.ne.u32 %q, %a, 0; vote.sync.{mode}.pred %d, %q, -1;"
        actual = run(text, {"d": 1}, a=a)["d"].reshape(3, 32)
        assert [row.tolist() for row in actual] == [[wanted(w)] * 32 for w in a.reshape(3, 32)]
    actual = run(".reg .pred %q; setp.ne.u32 %q, %a, 0; vote.sync.ballot.b32 %d, %q, -1;", {"d": 32}, a=a)["d"]
    wanted = [sum(int(bit) << lane for lane, bit in enumerate(w)) for w in a.reshape(3, 32)]
    np.testing.assert_array_equal(actual.reshape(3, 32), np.repeat(wanted, 32).reshape(3, 32))
    both = run(split(".reg .pred %q; setp.ne.u32 %q, %a, 0; vote.sync.ballot.b32 %d, %q, MASK;"), {"d": 32}, a=a)["d"]
    np.testing.assert_array_equal(both[:16], wanted[0] & 0xFFFF)
    np.testing.assert_array_equal(both[16:32], wanted[0] & 0xFFFF0000)


def test_active_mask():
    actual = run(split("activemask.b32 %d;"), {"d": 32}, a=np.zeros(32, np.uint32))["d"]
    np.testing.assert_array_equal(actual, [0xFFFF] * 16 + [0xFFFF0000] * 16)


@pytest.mark.parametrize("name", ["add", "min", "max", "and", "or", "xor"])
def test_reductions(name):
    a = RANDOM.integers(0, 1 << 32, 64).astype(np.uint32)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}
    function |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    kinds = {"u32": np.uint32, "s32": np.int32} if name in ("add", "min", "max") else {"b32": np.uint32}
    for kind, dtype in kinds.items():
        actual = run(split(f"redux.sync.{name}.{kind} %d, %a, MASK;"), {"d": 32}, a=a)["d"].view(dtype)
        wanted = function[name].reduce(a.view(dtype).reshape(4, 16), axis=1, dtype=dtype)
        np.testing.assert_array_equal(actual, np.repeat(wanted, 16))


def test_matches():
    a = RANDOM.integers(0, 4, 32).astype(np.uint32)
    actual = run("match.any.sync.b32 %d, %a, -1;", {"d": 32}, a=a)["d"]
    np.testing.assert_array_equal(actual, [sum(int(a[j] == x) << j for j in range(32)) for x in a])
    actual = run("match.all.sync.b32 %d|%p, %a, -1;", {"d": 32, "p": 1}, a=a)
    assert not actual["d"].any()
    assert not actual["p"].any()
    actual = run("match.all.sync.b32 %d|%p, %a, -1;", {"d": 32, "p": 1}, a=np.full(32, 7, np.uint32))
    assert (actual["d"] == 0xFFFFFFFF).all()
    assert actual["p"].all()


def test_collective_on_part_of_a_warp():
    report = r"a warp that is not whole, with block \(0, 0, 0\) thread \(32, 0, 0\): ldmatrix"
    with pytest.raises(PtxError, match=report):
        launch("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v}, [%s];", threads=48)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(count, trans):
    """Each lane of the warp stores one row of eight halves; rows are then fetched in a scrambled order."""
    halves = RANDOM.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    words = np.ascontiguousarray(halves).view(np.uint32)
    order = RANDOM.permutation(32).astype(np.uint32)
    names = [f"d{j}" for j in range(count)]
    text = f"""
    .shared .align 16 .b8 tile[512];
    .reg .b32 %base, %row;
    mov.u32 %base, tile;
    mov.u32 %row, %tid.x;
    mad.lo.u32 %row, %row, 16, %base;
    st.shared.v4.b32 [%row], {{%w0, %w1, %w2, %w3}};
    bar.sync 0;
    mad.lo.u32 %row, %order, 16, %base;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join("%" + name for name in names)}}}, [%row];
    """
    inputs = {f"w{j}": words[:, j].copy() for j in range(4)}
    actual = run(text, dict.fromkeys(names, 32), **inputs, order=order)
    for j, name in enumerate(names):
        matrix = halves[order[8 * j : 8 * j + 8]]
        matrix = matrix.T if trans else matrix
        wanted = [int(matrix[l // 4, l % 4 * 2]) | int(matrix[l // 4, l % 4 * 2 + 1]) << 16 for l in range(32)]  # noqa: E741
        np.testing.assert_array_equal(actual[name], wanted)


def bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


SHAPES = [
    (16, 8, 16, "f16", "f32"),
    (16, 8, 16, "bf16", "f32"),
    (16, 8, 16, "f16", "f16"),
    (16, 8, 8, "f16", "f32"),
    (16, 8, 8, "bf16", "f32"),
    (16, 8, 8, "tf32", "f32"),
    (16, 8, 4, "tf32", "f32"),
    (8, 8, 4, "f64", "f64"),
]


@pytest.mark.parametrize(("m", "n", "k", "kind", "out"), SHAPES)
def test_mma(m, n, k, kind, out):
    """Small whole numbers, so that every sum is exact; the fragments as the PTX manual's tables give them."""
    a, b = RANDOM.integers(-8, 9, (m, k)).astype(float), RANDOM.integers(-8, 9, (k, n)).astype(float)
    c = RANDOM.integers(-8, 9, (m, n)).astype(float)
    lanes = np.arange(32)
    group, thread = lanes // 4, lanes % 4
    inputs, halves = {}, kind in ("f16", "bf16")

    def registers(name, matrix, rows, columns, kind):
        """One register per element, or per two of 16 bits."""
        elements = [matrix[r, col] for r, col in zip(rows, columns)]
        if kind in ("f16", "bf16"):
            bits = [bf16(e) if kind == "bf16" else e.astype(np.float16).view(np.uint16) for e in elements]
            words = [bits[i].astype(np.uint32) | bits[i + 1].astype(np.uint32) << 16 for i in range(0, len(bits), 2)]
        else:
            words = [e.astype(np.float64 if kind == "f64" else np.float32) for e in elements]
        inputs.update({f"{name}{i}": word for i, word in enumerate(words)})
        return ", ".join(f"%{name}{i}" for i in range(len(words)))

    if kind == "f64":
        at = [(group, thread)], [(thread, group)], [(group, 2 * thread + i) for i in range(2)]
    elif halves:
        a_at = [(group + (8 if i % 4 >= 2 else 0), 2 * thread + i % 2 + (8 if i >= 4 else 0)) for i in range(k // 2)]
        b_at = [(2 * thread + i % 2 + (8 if i >= 2 else 0), group) for i in range(k // 4)]
        at = a_at, b_at, [(group + (8 if i >= 2 else 0), 2 * thread + i % 2) for i in range(4)]
    else:
        a_at = [(group + (8 if i % 2 else 0), thread + (4 if i >= 2 else 0)) for i in range(k // 2)]
        b_at = [(thread + 4 * i, group) for i in range(k // 4)]
        at = a_at, b_at, [(group + (8 if i >= 2 else 0), 2 * thread + i % 2) for i in range(4)]
    operands = [
        registers(name, matrix, *zip(*places), each)
        for name, matrix, places, each in zip("abc", (a, b, c), at, (kind, kind, out))
    ]
    count = len(operands[2].split(","))
    width = 64 if out == "f64" else 32
    results = {f"d{i}": width for i in range(count)}
    shape = f"m{m}n{n}k{k}.row.col.{out}.{kind}.{kind}.{out}"
    braces = ", ".join(f"{{{each}}}" for each in [", ".join(f"%{name}" for name in results), *operands])
    actual = run(f"mma.sync.aligned.{shape} {braces};", results, **inputs)
    found = np.full((m, n), np.nan)
    for i, bits in enumerate(actual.values()):
        if out == "f16":
            for half in range(2):
                found[at[2][2 * i + half]] = (bits >> 16 * half).astype(np.uint16).view(np.float16)
        else:
            found[at[2][i]] = bits.view(np.float64 if out == "f64" else np.float32)
    np.testing.assert_array_equal(found, a @ b + c)


def test_divergent_loop_comes_together():
    """Each lane counts to its own number; afterwards the warp votes as a whole."""
    text = """
    .reg .pred %more; .reg .b32 %i;
    mov.u32 %i, 0;
    again:
    add.u32 %i, %i, 1;
    setp.lt.u32 %more, %i, %a;
    @%more bra again;
    redux.sync.add.u32 %d, %i, -1;
    """
    a = RANDOM.integers(1, 50, 64).astype(np.uint32)
    np.testing.assert_array_equal(run(text, {"d": 32}, a=a)["d"].reshape(2, 32)[:, 0], a.reshape(2, 32).sum(1))


THREADS = """
.visible .entry k(.param .u64 out) {
  .reg .pred %p; .reg .b32 %t, %v, %s; .reg .b64 %o, %g;
  .shared .align 4 .b8 tile[256];
  ld.param.u64 %o, [out];
  mov.u32 %t, %tid.x;
  mov.u32 %s, tile;
  mad.lo.u32 %s, %t, 4, %s;
  BODY
  ret;
}
"""


def launch(body: str, threads: int = 64, block_count: int = 1) -> np.ndarray:
    memory = Memory()
    out = memory.add(np.zeros(64, np.uint32))
    Module(THREADS.replace("BODY", body)).launch("k", (block_count,), (threads,), [out], memory)
    return memory.read(out)


def test_barrier_counts_threads_that_have_left():
    assert launch("setp.gt.u32 %p, %t, 40; @%p exit; bar.sync 0; st.global.b32 [%o], 7;")[0] == 7


def test_same_value_by_two_threads_is_no_race():
    launch("mov.u32 %s, tile; st.shared.b32 [%s], 5;")
    with pytest.raises(PtxError, match="race on shared memory: two threads of this instruction write one place"):
        launch("mov.u32 %s, tile; st.shared.b32 [%s], %t;")


def test_write_after_write():
    two = """setp.eq.u32 %p, %t, 0; @%p st.shared.b32 [tile], 1; BETWEEN
    setp.eq.u32 %p, %t, 1; @%p st.shared.b32 [tile], 2;"""
    launch(two.replace("BETWEEN", "bar.sync 0;"))
    launch(two.replace("BETWEEN", "bar.warp.sync -1;"))
    with pytest.raises(PtxError, match=r"race on shared memory: write by thread 0 at line \d+, .*thread \(1, 0, 0\)"):
        launch(two.replace("BETWEEN", ""))


def test_write_after_read():
    body = """st.shared.b32 [%s], %t; bar.sync 0; ld.shared.b32 %v, [tile]; BETWEEN
    setp.eq.u32 %p, %t, 3; @%p st.shared.b32 [tile], %t;"""
    launch(body.replace("BETWEEN", "bar.sync 0;"))
    report = r"race on shared memory: read by several threads at line \d+"
    with pytest.raises(PtxError, match=report):
        launch(body.replace("BETWEEN", ""))
    launch(body.replace("BETWEEN", "bar.warp.sync -1;"), threads=32)
    with pytest.raises(PtxError, match=report):  # the other warp has read it, too
        launch(body.replace("BETWEEN", "bar.warp.sync -1;"), threads=64)


def test_bytes_of_one_word_are_places_of_their_own():
    launch("mov.u32 %v, tile; add.u32 %s, %t, %v; st.shared.u8 [%s], %t; ld.shared.u8 %v, [%s];")


def test_generic_addresses_reach_shared_memory():
    body = """mov.u64 %g, tile; cvta.shared.u64 %g, %g; .reg .b64 %w; mul.wide.u32 %w, %t, 4; add.u64 %g, %g, %w;
    add.u64 %w, %o, %w; st.b32 [%g], %t; ld.b32 %v, [%g]; st.b32 [%w], %v; MORE"""
    np.testing.assert_array_equal(launch(body.replace("MORE", "")), np.arange(64))
    with pytest.raises(PtxError, match=r"shared read of 4 bytes out of bounds: byte 256 of tile"):
        launch(body.replace("MORE", "ld.b32 %v, [%g+4];"))


def test_arrays_have_gaps_and_no_more_alignment_than_declared():
    with pytest.raises(PtxError, match="misaligned shared access of 16 bytes"):
        launch("mov.u32 %s, tile; st.shared.v4.b32 [%s], {%t, %t, %t, %t};", threads=1)
    with pytest.raises(PtxError, match=r"out of bounds: byte 8 of first \(8 bytes\)"):
        launch(".shared .align 4 .b8 first[8]; .shared .align 4 .b8 second[8]; st.shared.b32 [first+8], %t;", threads=1)


COPY = """
.visible .entry copy(.param .u64 from, .param .u64 to, .param .u32 size) {
  .reg .b64 %from, %to; .reg .b32 %w<4>, %size; .reg .pred %none;
  .shared .align 16 .b8 tile[16];
  ld.param.u64 %from, [from]; ld.param.u64 %to, [to]; ld.param.u32 %size, [size];
  INSTRUCTION
  cp.async.wait_all;
  ld.shared.v4.b32 {%w0, %w1, %w2, %w3}, [tile];
  st.global.v4.b32 [%to], {%w0, %w1, %w2, %w3};
  ret;
}
"""


def copy(instruction: str, size: int, source: np.ndarray, offset: int = 0) -> bytes:
    memory = Memory()
    start, to = memory.add(source), memory.add(np.full(16, 0xAA, np.uint8))
    Module(COPY.replace("INSTRUCTION", instruction)).launch("copy", (1,), (1,), [start + offset, to, size], memory)
    return memory.read(to).tobytes()


@pytest.mark.parametrize("size", [0, 2, 4, 10, 16])
def test_zero_fill(size):
    """Only `size` bytes need to exist."""
    source = np.arange(1, 17, dtype=np.uint8)
    instruction = "cp.async.cg.shared.global.L2::128B [tile], [%from], 16, %size;"
    assert copy(instruction, size, source[: max(size, 1)]) == source[:size].tobytes().ljust(16, b"\0")
    if size:
        with pytest.raises(PtxError, match=f"global read of {size} bytes out of bounds"):
            copy(instruction, size, source[: size - 1])


def test_ignored_source():
    instruction = "setp.ne.u32 %none, %size, 0; cp.async.ca.shared.global [tile], [%from], 16, %none;"
    source = np.arange(16, dtype=np.uint8)
    assert copy(instruction, 0, source) == source.tobytes()
    assert copy(instruction, 1, source[:1]) == bytes(16)


def test_copies_must_be_aligned():
    with pytest.raises(PtxError, match="misaligned global access of 16 bytes"):
        copy("cp.async.cg.shared.global [tile], [%from], 16;", 16, np.zeros(64, np.uint8), offset=8)


def test_small_copies():
    source = np.arange(16, dtype=np.uint8)
    instruction = " ".join(f"cp.async.ca.shared.global [tile+{i}], [%from+{i}], 4;" for i in range(0, 16, 4))
    assert copy(instruction, 0, source) == source.tobytes()


def test_write_under_a_pending_copy():
    with pytest.raises(PtxError, match=r"write to shared memory with a cp\.async pending"):
        copy("cp.async.ca.shared.global [tile], [%from], 16; st.shared.b32 [tile], 1;", 0, np.zeros(16, np.uint8))


def test_atomics():
    memory = Memory()
    total, largest, old = (
        memory.add(np.zeros(1, np.float32)),
        memory.add(np.zeros(1, np.int32)),
        memory.add(np.zeros(64, np.uint32)),
    )
    text = """
    .visible .entry k(.param .u64 total, .param .u64 largest, .param .u64 old) {
      .reg .b64 %p, %q; .reg .b32 %t, %f, %o;
      mov.u32 %t, %tid.x; cvt.rn.f32.u32 %f, %t;
      ld.param.u64 %p, [total]; red.global.add.f32 [%p], %f;
      ld.param.u64 %p, [largest]; atom.global.max.s32 %o, [%p], %t;
      ld.param.u64 %p, [old]; mul.wide.u32 %q, %t, 4; add.u64 %p, %p, %q; st.global.b32 [%p], %o;
      ret;
    }"""
    Module(text).launch("k", (1,), (64,), [total, largest, old], memory)
    assert memory.read(total)[0] == 64 * 63 / 2
    assert memory.read(largest)[0] == 63
    np.testing.assert_array_equal(memory.read(old), np.maximum(np.arange(64) - 1, 0))


def test_blocks_that_write_one_place():
    launch("st.global.b32 [%o], 5;", block_count=2)
    with pytest.raises(PtxError, match="race on global memory: two threads of this instruction write one place"):
        launch("mov.u32 %v, %ctaid.x; st.global.b32 [%o], %v;", threads=1, block_count=2)
    one_each = "mov.u32 %v, %ctaid.x; setp.eq.u32 %p, %v, 0; @%p st.global.b32 [%o], 6; @!%p st.global.b32 [%o], 7;"
    with pytest.raises(PtxError, match=r"race on global memory: write by block number 0 of byte 0 of buffer 0"):
        launch(one_each, threads=1, block_count=2)


def test_block_that_reads_what_another_one_wrote():
    offset = "mov.u32 %v, %ctaid.x; mul.wide.u32 %g, %v, 4; add.u64 %g, %g, %o;"
    own = f"{offset} st.global.b32 [%g], 1; ld.global.b32 %v, [%g];"
    assert launch(own, threads=1, block_count=3).sum() == 3
    with pytest.raises(
        PtxError, match=r"race on global memory: write by block number 1 of byte 4 of buffer 0 .*block \(0, 0"
    ):
        launch(f"{offset} st.global.b32 [%g], 1; ld.global.b32 %v, [%g+4];", threads=1, block_count=3)
    with pytest.raises(PtxError, match=r"race on global memory: read by (block number \d|several blocks) of byte"):
        launch(f"{offset} ld.global.b32 %v, [%g+4]; st.global.b32 [%g], 1;", threads=1, block_count=3)


def test_blocks_may_add_atomically():
    assert launch("red.global.add.u32 [%o], 2;", threads=8, block_count=3)[0] == 48
