"""Every check finds the fault planted for it, and says so; test_ptx_kernels runs the clean twins of these kernels."""

import re

import numpy as np
import pytest

from tests.ptx import NVCC, Memory, Module, PtxError, compile_cuda
from tests.ptx.test_ptx_kernels import KERNELS, block_sum, conv3x3, normal, poison, run_gemm, swap_neighbours

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def faults(name: str) -> dict[str, int]:
    """The numbers of a file's enum Fault."""
    names = re.search(r"enum Fault \{(.*?)\}", (KERNELS / name).read_text(), flags=re.S)[1]
    return {each: number for number, each in enumerate(re.findall(r"\bk\w+", re.sub("//.*", "", names)))}


@pytest.fixture(scope="module")
def tiles():
    return Module(compile_cuda(KERNELS / "tiles.cu"))


@pytest.fixture(scope="module")
def gemm():
    return Module(compile_cuda(KERNELS / "gemm.cu"))


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("kGlobalRead", r"line \d+: global read of 4 bytes out of bounds at address .*, byte \d+ of buffer 0 "),
        (
            "kSharedRow",
            r"line \d+: shared write of 4 bytes out of bounds: byte 720 of \S*tile\S* \(720 bytes\) by block",
        ),
        ("kNoBarrierBefore", r"race on shared memory: write by thread \d+ at line \d+, no barrier since; now by block"),
        (
            "kNoBarrierAfter",
            r"race on shared memory: read by .* at line \d+, no barrier since; now by block \(0, 0, 0\)",
        ),
        ("kUnwrittenHalo", r"read of shared memory never written: byte \d+ of \S*tile\S* \(720 bytes\) by block"),
    ],
)
def test_convolution(tiles, fault, report):
    with pytest.raises(PtxError, match=report):
        conv3x3(tiles, faults("tiles.cu")[fault], normal(2, 8, 16), normal(2, 2, 3, 3))


def test_misaligned_vector(tiles):
    memory = Memory()
    x, y = memory.add(normal(64)), memory.add(poison(64))
    with pytest.raises(PtxError, match=r"misaligned global access of 16 bytes .* thread \(0, 0, 0\)"):
        tiles.launch("vector_copy", (1,), (8,), [x + 4, y, 8], memory)


def test_global_write_behind_the_end(tiles):
    memory = Memory()
    addresses = [memory.add(normal(65)), memory.add(normal(65)), memory.add(poison(64))]
    report = (
        r"global write of 4 bytes out of bounds .* byte 256 of buffer 2 \(float32\[64\], 256 bytes\) by .* \(31, 0, 0\)"
    )
    with pytest.raises(PtxError, match=report):
        tiles.launch("vector_add", (2,), (33,), [*addresses, 65], memory)


def test_address_of_nobody(tiles):
    with pytest.raises(PtxError, match="global read of 4 bytes out of bounds at address 0x0"):
        tiles.launch("vector_add", (1,), (32,), [0, 0, 0, 32], Memory())


def test_divergent_barrier(tiles):
    report = (
        r"divergent barrier: of the 64 live threads of block \(0, 0, 0\), 32 at line \d+ \(bar.sync 0\), 32 at line"
    )
    with pytest.raises(PtxError, match=report):
        block_sum(tiles, faults("tiles.cu")["kDivergent"], 1000, 64)


def test_shuffle_that_a_lane_never_reaches(tiles):
    report = r"divergent warp collective: .* 30 at line \d+ \(shfl.sync.down.*1 at line \d+ \(bar.sync"
    with pytest.raises(PtxError, match=report):
        block_sum(tiles, faults("tiles.cu")["kPartialMask"], 1000, 32)


def test_missing_warp_barrier(tiles):
    with pytest.raises(PtxError, match=r"race on shared memory: write by thread \d+ at line \d+"):
        swap_neighbours(tiles, faults("tiles.cu")["kNoWarpBarrier"])


def test_end_of_dynamic_shared_memory(tiles):
    with pytest.raises(PtxError, match=r"shared write of 4 bytes out of bounds: byte 256 of values \(256 bytes\)"):
        swap_neighbours(tiles, faults("tiles.cu")["kSharedTail"])
    with pytest.raises(PtxError, match=r"shared write of 4 bytes out of bounds: byte 252 of values \(252 bytes\)"):
        swap_neighbours(tiles, 0, dynamic=252)


def test_kernel_that_does_not_end(tiles, monkeypatch):
    monkeypatch.setattr("tests.ptx.machine.STEP_LIMIT", 1000)
    memory = Memory()
    with pytest.raises(PtxError, match="the kernel does not end"):
        tiles.launch("spin", (1,), (1,), [memory.add(np.zeros(1, np.int32))], memory)


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("kNoWait", r"read of shared memory with a cp.async pending: byte \d+ of \S*_shared.*: ldmatrix"),
        ("kWaitOneLess", r"read of shared memory with a cp.async pending: byte \d+ of \S*_shared.*: ldmatrix"),
        ("kNoBarrier", r"read of shared memory with a cp.async pending|race on shared memory: write by thread \d+"),
        ("kNoBarrierBeforeRefill", r"race on shared memory: read by .* at line \d+.*: cp.async"),
        ("kWaitAfterBarrier", r"race on shared memory: write by thread \d+ at line \d+.*: ldmatrix"),
    ],
)
def test_pipelined_gemm(gemm, fault, report):
    with pytest.raises(PtxError, match=report):
        run_gemm(gemm, "13__nv_bfloat16", faults("gemm.cu")[fault], 32, 16, 64)


WITHOUT_WAIT = """
.visible .entry copies(.param .u64 from) {
  .reg .b64 %a;
  .shared .align 16 .b8 tile[16];
  ld.param.u64 %a, [from];
  cp.async.ca.shared.global [tile], [%a], 16;
  cp.async.commit_group;
  WAIT
  ret;
}
"""


@pytest.mark.parametrize(
    ("wait", "clean"), [("", False), ("cp.async.wait_group 1;", False), ("cp.async.wait_all;", True)]
)
def test_copy_in_flight_at_the_end(wait, clean):
    memory = Memory()
    module, address = Module(WITHOUT_WAIT.replace("WAIT", wait)), memory.add(normal(4))
    if clean:
        module.launch("copies", (1,), (1,), [address], memory)
    else:
        with pytest.raises(
            PtxError, match=r"copies ends with a cp.async in flight, block \(0, 0, 0\) thread \(0, 0, 0\)"
        ):
            module.launch("copies", (1,), (1,), [address], memory)
