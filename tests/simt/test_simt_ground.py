"""The ground for CUDA kernels without a GPU: clean kernels compute, and each checker finds the fault planted for it."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.simt import ground
from tests.simt.ground import Ground

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

NVCC = shutil.which("nvcc")
MMA = ("f16", "bf16", "tf32")
GEMM_BOUND = 2e-5  # sums of at most 88 products of about 1, rounded in float32


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return ground.build(tmp_path_factory.mktemp("simt") / "libground.so", "-O2")


@pytest.fixture
def simt(library):
    simt = Ground(library)
    yield simt
    simt.reset()


@pytest.fixture(params=["forward", "reverse", "shuffle"])
def order(request, simt):
    simt.set("FASTCNN_SIMT_ORDER", request.param)
    return request.param


@pytest.fixture(params=["lazy", "eager"])
def copy(request, simt):
    simt.set("FASTCNN_SIMT_COPY", request.param)
    return request.param


# Clean kernels.


@pytest.mark.parametrize("n", [1, 127, 1003])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_vector_add(simt, order, dtype, n):
    assert ground.vector_add(simt, dtype, n)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_block_sum(simt, order, dtype):
    assert ground.block_sum(simt, f"block_sum_{dtype}", np.dtype(dtype.replace("f", "float"))) < 1e-4


@pytest.mark.parametrize("shape", [(1, 8, 16, 4), (3, 13, 37, 5)])
def test_conv3x3(simt, order, shape):
    assert ground.conv3x3(simt, "conv3x3_f32", *shape) < 1e-5


@pytest.mark.parametrize("shape", [(32, 32, 16), (70, 48, 88), (1, 8, 8)])
@pytest.mark.parametrize("dtype", MMA)
def test_gemm(simt, order, copy, dtype, shape):
    assert ground.gemm(simt, f"gemm_{dtype}", dtype, *shape) < GEMM_BOUND


def test_neighbour_exchange(simt, order):
    y = np.full(64, np.nan, np.float32)
    simt.neighbour(y)
    lane = np.arange(64)
    assert (y == lane // 32 * 32 + (lane + 1) % 32).all()


# Instructions, against the tables of the PTX manual.


@pytest.mark.parametrize("dtype", MMA)
def test_mma_fragment_layout(simt, dtype):
    """a (16 x k), b (k x 8) and d (16 x 8), scattered to the registers that the manual names."""
    element = ground.ELEMENTS[dtype]
    depth = 8 if dtype == "tf32" else 16
    rng = np.random.default_rng(1)
    # Small integers: exact in every dtype, so that no rounding excuses a cell in the wrong place.
    a, b = rng.integers(-8, 9, (16, depth)), rng.integers(-8, 9, (depth, 8))
    d = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    lane = np.arange(32)[:, None]
    g, t = lane // 4, lane % 4
    if dtype == "tf32":
        i, j = np.arange(4), np.arange(2)
        a_cells, b_cells = (g + 8 * (i % 2), t + 4 * (i // 2)), (t + 4 * j, g + 0 * j)
    else:
        i, j = np.arange(8), np.arange(4)
        a_cells = (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4))
        b_cells = (2 * t + j % 2 + 8 * (j // 2), g + 0 * j)
    d_cells = (g + 8 * (np.arange(4) // 2), 2 * t + np.arange(4) % 2)
    registers_a, registers_b = element(a[a_cells]).view(np.uint32), element(b[b_cells]).view(np.uint32)
    registers_d = d[d_cells]
    getattr(simt, f"mma_{dtype}")(registers_a, registers_b, registers_d)
    assert (registers_d == (d + a @ b)[d_cells]).all()


def test_mma_truncates_tf32(simt):
    a, b, d = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), np.zeros((32, 4), np.float32)
    a[0, 0] = np.float32(1).view(np.uint32) | 0x1FFF  # a[0][0], with all of the ignored bits set
    b[0, 0] = np.float32(3).view(np.uint32)
    simt.mma_tf32(a, b, d)
    assert d[0, 0] == 3


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix_layout(simt, matrices, transposed):
    rows = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    registers = np.zeros((32, matrices), np.uint32)
    getattr(simt, f"ldmatrix_{matrices}")(rows, registers, transposed)
    for lane in range(32):
        for j in range(matrices):
            matrix = rows[8 * j : 8 * j + 8]
            matrix = matrix.T if transposed else matrix
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert registers[lane, j] == int(low) | int(high) << 16


@pytest.mark.parametrize("by", [0, 1, 5, 31])
@pytest.mark.parametrize(("name", "dtype"), [("shuffle_4", np.float32), ("shuffle_8", np.float64)])
def test_shuffles(simt, order, name, dtype, by):
    x, y = np.arange(32, dtype=dtype) + 0.5, np.full((4, 32), np.nan, dtype)
    getattr(simt, name)(x, y, by)
    lane = np.arange(32)
    below, above = lane - by, lane + by
    sources = [lane * 0 + by, np.where(below < 0, lane, below), np.where(above > 31, lane, above), lane ^ by]
    assert (y == x[np.array(sources)]).all()


@pytest.mark.parametrize(("size", "valid"), [(4, 4), (4, 0), (8, 8), (8, 3), (16, 16), (16, 6), (16, 0)])
def test_cp_async_fills_with_zeros(simt, copy, size, valid):
    x = np.random.default_rng(0).integers(1, 255, (32, size), dtype=np.uint8)
    y = np.full_like(x, 255)
    getattr(simt, f"copy_{size}")(x, y, valid)
    assert (y[:, :valid] == x[:, :valid]).all()
    assert (y[:, valid:] == 0).all()


def test_f16_conversions_are_numpys(simt):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    widened = np.zeros(halves.size, np.float32)
    simt.widen_f16(halves, widened, halves.size)
    np.testing.assert_array_equal(widened, halves.astype(np.float32))
    floats = floats_around(widened)
    narrowed = np.zeros(floats.size, np.float16)
    simt.narrow_f16(floats, narrowed, floats.size)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    np.testing.assert_array_equal(narrowed, expected)
    assert (np.signbit(narrowed) == np.signbit(expected))[~np.isnan(expected)].all()


def test_bf16_conversions_are_torchs(simt):
    torch = pytest.importorskip("torch")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    widened = np.zeros(patterns.size, np.float32)
    simt.widen_bf16(patterns, widened, patterns.size)
    np.testing.assert_array_equal(widened, (patterns.astype(np.uint32) << 16).view(np.float32))
    floats = floats_around(widened)
    narrowed = np.zeros(floats.size, np.uint16)
    simt.narrow_bf16(floats, narrowed, floats.size)
    expected = torch.from_numpy(floats).bfloat16().float().numpy()
    np.testing.assert_array_equal((narrowed.astype(np.uint32) << 16).view(np.float32), expected)


def floats_around(values: np.ndarray) -> np.ndarray:
    """Each value, its neighbours in float32, and the ties between it and the next value with theirs."""
    values = values[~np.isnan(values)]
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    points = np.concatenate([values, ties, np.float32([np.nan, 65519.99, 65520, 3.4e38, 1e-45])])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]).astype(np.float32)


def test_functions(simt):
    x = np.concatenate([np.linspace(0.01, 30, 1000), [1.0, 4.0, 2.0**-20]]).astype(np.float32)
    y = np.zeros((4, x.size), np.float32)
    simt.functions(x, y, x.size)
    exact = x.astype(np.float64)
    for got, expected in zip(y[1:], (exact**-0.5, 2**exact, np.log2(exact))):
        np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-9)
    assert (y[0].view(np.uint32) & 0x1FFF == 0).all()
    assert (abs(y[0] - x) <= 2.0**-11 * x).all()
    tie = np.uint32([0x3F800FFF, 0x3F801000, 0xBF801000, 0x7F800000]).view(np.float32)
    rounded = np.zeros((4, 4), np.float32)
    simt.functions(tie, rounded, 4)
    assert [hex(r) for r in rounded[0].view(np.uint32)] == ["0x3f800000", "0x3f802000", "0xbf802000", "0x7f800000"]


# Planted faults whose report comes through the launch.


def finding(call, *arguments) -> str:
    with pytest.raises(RuntimeError) as error:
        call(*arguments)
    return str(error.value)


def floats(n: int = 256) -> np.ndarray:
    return np.zeros(n, np.float32)


REPORTS = {
    "divergent_barrier": ((), r"divergent barrier: reached at faults.cu:\d+ while other threads wait at faults.cu:\d+"),
    "early_exit": ((), r"thread missing from a barrier: 63 of 64 .*thread \(5,0,0\) has ended"),
    "lane_missing": (
        (floats(),),
        r"lane missing from a warp collective: shuffle_xor at faults.cu:\d+ waits for lane 16",
    ),
    "divergent_warp": ((floats(),), r"divergent warp: lane \d+ reached shuffle_xor at .* wait in shuffle_xor"),
    "partial_warp": ((floats(),), r"sync_warp at faults.cu:\d+ in a block of 40 threads: not whole warps"),
    "misaligned_copy": ((floats(), floats()), r"misaligned cp.async from global memory of 16 bytes at faults.cu:\d+"),
    "misaligned_load": ((floats(), floats()), r"misaligned global load of 16 bytes at faults.cu:\d+"),
    "shared_overrun": ((floats(),), r"shared memory written at byte 132 of 132, block \(0,0,0\)"),
    "copy_in_flight": ((floats(),), r"thread ended with 1 cp.async in flight, thread \(\d+,0,0\) of block \(0,0,0\)"),
    "needs_more_shared": ((floats(),), "kernel needs 4000 bytes of shared memory, launched with 3996"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_planted_fault(simt, order, name):
    arguments, report = REPORTS[name]
    with pytest.raises(RuntimeError, match="^simt: " + report):
        getattr(simt, name)(*arguments)
    assert ground.gemm(simt, "gemm_f16", "f16", 70, 48, 88) < GEMM_BOUND  # the next launch starts afresh


@pytest.mark.parametrize(
    ("configuration", "report"),
    [
        ((1, 1025, 0), "block (1025,1,1)"),
        ((1, 0, 0), "block (0,1,1)"),
        ((1, 1, 227 * 1024 + 1), "232449 bytes of shared memory"),
    ],
)
def test_invalid_configuration(simt, configuration, report):
    assert f"invalid configuration: {report}" in finding(simt.nothing, *configuration)


def test_no_blocks_are_nothing_to_do(simt):
    simt.nothing(0, 0, 0)


def test_spin(simt):
    simt.set("FASTCNN_SIMT_SPIN", "1000")
    assert "thread spins: 1000 accesses without a rendezvous" in finding(simt.spin, floats())


def test_wrong_wait_count_needs_lazy_copies(simt, order):
    simt.set("FASTCNN_SIMT_COPY", "eager")
    assert ground.gemm(simt, "gemm_wrong_wait_count", "f16", 64, 64, 64) < GEMM_BOUND
    simt.set("FASTCNN_SIMT_COPY", "lazy")
    assert np.isnan(ground.gemm(simt, "gemm_wrong_wait_count", "f16", 64, 64, 64))


def test_swapped_registers(simt):
    assert ground.gemm(simt, "gemm_swapped_registers", "f16", 32, 32, 32) > 1


def test_uninitialised_shared_memory_is_nan(simt):
    y = floats()
    simt.uninitialised_shared(y)
    assert np.isnan(y[7])
    assert (y[:7] == 1).all()


@pytest.mark.parametrize("name", ["block_sum_without_barrier", "conv3x3_without_barrier"])
def test_missing_barrier_changes_the_result_in_some_order(simt, name):
    def error(order: str) -> float:
        simt.set("FASTCNN_SIMT_ORDER", order)
        if name.startswith("block_sum"):
            return ground.block_sum(simt, name, np.float32)
        return ground.conv3x3(simt, name, 3, 13, 37, 5)

    assert not max(error("forward"), error("reverse")) < 1e-3


def test_row_too_many_of_shared_memory(simt):
    report = finding(ground.conv3x3, simt, "conv3x3_row_too_many_shared", 3, 13, 37, 5)
    assert "shared store of 4 bytes out of bounds at conv3x3.cu:" in report
    assert "byte 864 of 864 of shared memory" in report


def test_global_access_outside_registered_memory(simt):
    """The row too many of the last channel lies behind x."""
    simt.register = True
    assert ground.conv3x3(simt, "conv3x3_f32", 3, 13, 37, 5) < 1e-5
    report = finding(ground.conv3x3, simt, "conv3x3_row_too_many_global", 3, 13, 37, 5)
    assert "global load of 4 bytes out of bounds at conv3x3.cu:" in report
    assert "bytes into a registered range of 5772" in report


def test_copy_past_registered_memory(simt, copy):
    simt.register = True
    assert "global load of 16 bytes out of bounds at faults.cu:" in finding(ground.copy_past_end, simt)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("read_between_blocks", "block 1 reads what block 0 wrote"),
        ("write_between_blocks", "block 1 writes what block 0 wrote"),
        ("stale_load", "load() may return a stale value of what this launch wrote"),
    ],
)
def test_race_between_blocks(simt, name, report):
    getattr(simt, name)(floats())
    simt.set("FASTCNN_SIMT_CHECK_BLOCKS", "1")
    simt.no_race_between_blocks(floats(), floats())
    text = finding(getattr(simt, name), floats())
    assert "race between blocks at faults.cu:" in text
    assert report in text


def test_block_order(simt):
    """A kernel whose blocks race gives another result in another order."""
    y, results = floats(), set()
    for order in ("forward", "reverse", "shuffle"):
        simt.set("FASTCNN_SIMT_ORDER", order)
        simt.write_between_blocks(y)
        results.add(y[0])
    assert {0, 3} <= results


def test_seed(simt):
    simt.set("FASTCNN_SIMT_ORDER", "shuffle")
    last = {}
    for seed in [*range(10), *range(10)]:
        simt.set("FASTCNN_SIMT_SEED", str(seed))
        y = floats()
        simt.write_between_blocks(y)
        assert last.setdefault(seed, y[0]) == y[0]
    assert len(set(last.values())) > 1


def test_host_threads_take_turns(simt):
    with ThreadPoolExecutor(4) as pool:
        errors = pool.map(lambda dtype: ground.gemm(simt, f"gemm_{dtype}", dtype, 70, 48, 88), MMA * 4)
    assert max(errors) < GEMM_BOUND


def test_ucontext_switches_where_there_is_no_assembly(tmp_path):
    simt = Ground(ground.build(tmp_path / "libground.so", "-O1", "-DFASTCNN_SIMT_UCONTEXT"))
    ground.clean(simt)
    ground.findings(simt)


def test_unknown_setting(simt, monkeypatch):
    monkeypatch.setenv("FASTCNN_SIMT_ORDER", "sideways")
    assert finding(simt.nothing, 1, 1, 0) == (
        "simt: FASTCNN_SIMT_ORDER=sideways: expected one of forward, reverse, shuffle"
    )
    simt.set("FASTCNN_SIMT_ORDER", "reverse")
    simt.nothing(1, 1, 0)


# Counters.


def traffic(t) -> tuple[int, ...]:
    return t.requests, t.bytes, t.units, t.ideal


@pytest.fixture
def counting(simt):
    simt.set("FASTCNN_SIMT_COUNT", "1")
    return simt


@pytest.mark.parametrize(
    ("name", "dtype", "stride", "expected"),
    [
        ("global_stride_4", np.float32, 1, (1, 128, 4, 4)),
        ("global_stride_4", np.float32, 2, (1, 128, 8, 4)),
        ("global_stride_4", np.float32, 32, (1, 128, 32, 4)),  # a column: a sector for each lane
        ("global_stride_4", np.float32, 0, (1, 128, 1, 1)),  # broadcast
        ("global_stride_2", np.float16, 1, (1, 64, 2, 2)),
        ("global_stride_16", np.complex128, 1, (1, 512, 16, 16)),
    ],
)
def test_sectors(counting, order, name, dtype, stride, expected):
    x, y = ground.aligned((32 * max(stride, 1),), dtype), ground.aligned((32,), dtype)
    getattr(counting, name)(x, y, stride)
    counters = counting.counters()
    assert traffic(counters.global_load) == expected
    assert counters.read_bytes == 32 * expected[2]
    assert counters.written_bytes == y.nbytes


@pytest.mark.parametrize(
    ("name", "width", "stride", "wavefronts", "ideal"),
    [
        ("shared_stride_4", 1, 1, 1, 1),
        ("shared_stride_4", 1, 2, 2, 1),  # 2-way
        ("shared_stride_4", 1, 32, 32, 1),
        ("shared_stride_4", 1, 33, 1, 1),
        ("shared_stride_8", 2, 1, 2, 2),
        ("shared_stride_8", 2, 2, 4, 2),
        ("shared_stride_16", 4, 1, 4, 4),
        ("shared_stride_16", 4, 2, 8, 4),
        ("shared_stride_16", 4, 9, 4, 4),
    ],
)
def test_bank_conflicts(counting, order, name, width, stride, wavefronts, ideal):
    getattr(counting, name)(ground.aligned((32, width), np.float32), stride)
    counters = counting.counters()
    expected = (1, 32 * 4 * width, wavefronts, ideal)
    assert traffic(counters.shared_load) == traffic(counters.shared_store) == expected


@pytest.mark.parametrize(("stride", "ways"), [(24, 1), (40, 1), (72, 1), (64, 8), (32, 4), (16, 2)])
def test_ldmatrix_bank_conflicts(counting, stride, ways):
    counting.ldmatrix_stride(np.zeros(32, np.uint32), stride)
    assert traffic(counting.counters().ldmatrix) == (1, 512, 4 * ways, 4)


def test_skipped_loads_keep_their_request(counting):
    counting.masked(ground.aligned((256,), np.float32), floats(), 8)
    load = counting.counters().global_load
    assert load.requests == 8
    assert load.bytes == 4 * sum(32 - i for i in range(8))


def test_gemm_counts(counting, order, copy):
    m = n = k = 64
    ground.gemm(counting, "gemm_f16", "f16", m, n, k)
    counters = counting.counters()
    assert counters.mma == m * n * k // (16 * 8 * 16)
    assert counters.barriers == 4 * k // 16
    assert counters.launches == 1
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    assert counters.global_load.units == counters.global_load.ideal
    assert counters.global_load.bytes == 2 * (m + n) * k * 2  # each operand by two columns or rows of blocks
    assert counters.written_bytes == 4 * m * n
    kinds = {(site.file.decode().rsplit("/", 1)[-1], site.kind) for site in counting.sites()}
    assert ("gemm.cu", 0) in kinds
    assert ("gemm.cu", 4) in kinds


def test_counting_is_off_by_default(simt):
    ground.gemm(simt, "gemm_f16", "f16", 32, 32, 32)
    assert simt.counters().launches == 0


# Sanitizers, each in a process that loads its runtime first.


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    built = {}

    def run(sanitizer: str, case: str) -> str:
        if sanitizer not in built:
            out = tmp_path_factory.mktemp("simt") / f"libground_{sanitizer.split(',')[0]}.so"
            built[sanitizer] = ground.build(out, "-O1", f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer")
        return ground.run_sanitized(built[sanitizer], sanitizer, case)

    return run


RACES = {
    "gemm_without_barrier": "gemm.cu",
    "conv3x3_without_barrier": "conv3x3.cu",
    "block_sum_without_barrier": "block_sum.cu",
    "neighbour_without_sync": "faults.cu",
}


@pytest.mark.parametrize("case", RACES)
def test_thread_sanitizer_finds_the_missing_barrier(sanitized, case):
    output = sanitized("thread", case)
    assert "WARNING: ThreadSanitizer: data race" in output
    assert RACES[case] in output


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing_in_clean_kernels(sanitized, monkeypatch, sanitizer, order):
    monkeypatch.setenv("FASTCNN_SIMT_ORDER", order)
    output = sanitized(sanitizer, "clean")
    assert output.endswith("clean: done\n")
    assert "Sanitizer" not in output
    assert "runtime error" not in output


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_findings_unwind_under_sanitizers(sanitized, sanitizer):
    output = sanitized(sanitizer, "findings")
    assert output.endswith("findings: done\n")
    assert "Sanitizer" not in output
    assert "runtime error" not in output


def test_address_sanitizer_finds_global_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "conv3x3_row_too_many_global")
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in output
    assert "READ of size 4" in output
    assert "conv3x3.cu" in output


def test_address_sanitizer_finds_copy_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "copy_past_end")
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in output
    assert "READ of size 16" in output
    assert "faults.cu" in output


def test_address_sanitizer_finds_shared_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "shared_overrun")
    assert "ERROR: AddressSanitizer" in output
    assert "WRITE of size 4" in output
    assert "faults.cu" in output


# nvcc.


def nvcc(*arguments: str):
    if NVCC is None:
        pytest.skip("no nvcc")
    flags = ["-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", f"-I{ground.ROOT / 'csrc'}"]
    subprocess.run([NVCC, *flags, *arguments], check=True)


@pytest.mark.parametrize("path", ground.KERNELS, ids=lambda path: path.stem)
def test_nvcc_compiles_the_same_source(tmp_path, path):
    nvcc("-cubin", "-o", str(tmp_path / "kernel.cubin"), str(path))


INSTRUCTIONS = {
    "vector_add": ["ld.global.nc.v4.", "st.global.v4.", "cvt.f32.f16", "cvt.rn.f16.f32", "cvt.rn.bf16.f32"],
    "block_sum": ["shfl.sync.down.b32", "ld.shared.", "st.shared.", "bar.sync"],
    "probes": ["ld.global.f32", "shfl.sync.idx", "shfl.sync.up", "shfl.sync.bfly", "cvt.rna.tf32.f32", "bar.warp.sync"]
    + ["rsqrt.approx.f32", "ex2.approx.f32", "lg2.approx.f32", "cp.async.ca.shared.global"]
    + [f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16" for n in (1, 2, 4) for trans in ("", ".trans")],
    "gemm": ["cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group 1;"]
    + [f"mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32" for t in ("f16", "bf16")]
    + ["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"],
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_nvcc_emits(tmp_path, name):
    """No access is a generic one, which would first have to find out which memory it is for."""
    ptx = tmp_path / "kernel.ptx"
    nvcc("-ptx", "-o", str(ptx), str(ground.ROOT / f"tests/simt/kernels/{name}.cu"))
    text = ptx.read_text()
    assert [instruction for instruction in INSTRUCTIONS[name] if instruction not in text] == []
    assert not re.search(r"\b(ld|st)\.(global|shared)(\.nc)?\.[bsu]8\b", text)  # nor byte by byte
    assert not re.search(r"\b(ld|st)\.(v[24]\.)?[bfsu]\d+\b", text)
