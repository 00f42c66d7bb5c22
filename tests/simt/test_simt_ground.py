"""The ground for CUDA kernels without a GPU: clean kernels compute, and each checker finds the fault planted for it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.simt import ground
from tests.simt.ground import Ground

MMA = ("f16", "bf16", "tf32")
GEMM_BOUND = 2e-5  # sums of at most 88 products of about 1, rounded in float32


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


def test_ucontext_switches_where_there_is_no_assembly(library, tmp_path):
    simt = Ground(ground.build(tmp_path / "libground.so", "-O0", "-DFASTCNN_SIMT_UCONTEXT"))
    ground.clean(simt)
    ground.findings(simt)


def test_unknown_setting(simt, monkeypatch):
    monkeypatch.setenv("FASTCNN_SIMT_ORDER", "sideways")
    assert finding(simt.nothing, 1, 1, 0) == (
        "simt: FASTCNN_SIMT_ORDER=sideways: expected one of forward, reverse, shuffle"
    )
    simt.set("FASTCNN_SIMT_ORDER", "reverse")
    simt.nothing(1, 1, 0)
