"""Faults planted in the kernels of csrc/cuda, and the report of the checker that must find each."""

import re
import shutil

import numpy as np
import pytest

from tests.simt import ground, mutants
from tests.simt.ground import Ground
from tests.simt.mutants import MUTANTS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def finding(simt: Ground, kernel: str) -> str:
    """Empty, or what is wrong with a run: the ground's report, or how the result differs from the exact one."""
    simt.register = True  # outside of the arrays nothing may be touched
    simt.set("FASTCNN_SIMT_CHECK_BLOCKS", "1")
    try:
        y = mutants.convolved(simt, kernel)
    except RuntimeError as error:
        return str(error)
    finally:
        simt.reset()
    wrong = ~(y == mutants.expected(kernel))
    if not wrong.any():
        return ""
    kind = "NaN" if np.isnan(y[wrong]).any() else "another value"
    return f"{kind} in {wrong.sum()} of {y.size} elements"


@pytest.fixture(scope="session")
def machinery(tmp_path_factory):
    """By the sanitizer's flags."""
    built: dict[tuple[str, ...], list[str]] = {}

    def objects(*flags: str) -> list[str]:
        if flags not in built:
            built[flags] = mutants.machinery(tmp_path_factory.mktemp("machinery"), *flags)
        return built[flags]

    return objects


@pytest.mark.parametrize("kernel", mutants.CASES)
def test_nothing_is_found_in_the_kernel_as_it_is(machinery, tmp_path, kernel):
    simt = Ground(mutants.build(mutants.planted(None, tmp_path), kernel, machinery()))
    assert finding(simt, kernel) == ""


COPIES, EPILOGUE = (rf" at conv2d_mma_{part}.cuh:\d+" for part in ("copies", "epilogue"))
REPORTS = {
    "missing barrier": r"NaN in \d+ of \d+ elements",  # of another warp's copies, which are late
    "wrong wait count": r"simt: thread ended with \d+ cp.async in flight",
    "swapped fragment registers": r"another value in \d+ of \d+ elements",
    "off-by-one halo": r"simt: global load of 16 bytes out of bounds at conv2d_grouped.cu:\d+",
    "global access out of bounds": rf"simt: global load of 16 bytes out of bounds{COPIES}: .* range of",
    "shared access out of bounds": rf"simt: cp.async to shared memory of 16 bytes out of bounds{COPIES}",
    "misaligned 16-byte copy": rf"simt: misaligned cp.async from global memory of 16 bytes{COPIES}",
    "missing mask": rf"simt: global store of 16 bytes out of bounds{EPILOGUE}",
    "divergent barrier": rf"simt: divergent barrier: reached{EPILOGUE} while other threads wait{EPILOGUE}",
    "race between blocks": rf"simt: race between blocks{EPILOGUE}: block \d+ writes what block \d+ wrote",
    "uninitialised shared read": r"NaN in \d+ of \d+ elements",
    "wrong stride": r"another value in \d+ of \d+ elements",
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_planted_fault(machinery, tmp_path, fault):
    mutant = MUTANTS[fault]
    simt = Ground(mutants.build(mutants.planted(mutant, tmp_path), mutant.kernel, machinery()))
    assert re.match(REPORTS[fault], finding(simt, mutant.kernel))


@pytest.fixture
def sanitized(machinery, tmp_path):
    def run(fault: str | None, sanitizer: str) -> str:
        kernel = MUTANTS[fault].kernel if fault else "conv2d_mma"
        sources = mutants.planted(MUTANTS[fault] if fault else None, tmp_path)
        flags = f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"
        library = mutants.build(sources, kernel, machinery(*flags), *flags)
        return ground.run_sanitized(sanitizer, "-m", "tests.simt.mutants", str(library), kernel)

    return run


@pytest.mark.parametrize("sanitizer", ground.RUNTIMES)
def test_sanitizers_find_nothing_in_the_kernel_as_it_is(sanitized, sanitizer):
    output = sanitized(None, sanitizer)
    assert "Sanitizer" not in output
    assert "runtime error" not in output
    assert output.endswith("conv2d_mma: done\n")


@pytest.mark.parametrize(
    ("fault", "sanitizer", "report"),
    [
        ("missing barrier", "thread", r"WARNING: ThreadSanitizer: data race"),
        ("wrong wait count", "thread", r"WARNING: ThreadSanitizer: data race"),
        ("global access out of bounds", "address,undefined", r"ERROR: AddressSanitizer: (heap-buffer-overflow|SEGV)"),
    ],
)
def test_a_sanitizer_finds_the_fault(sanitized, fault, sanitizer, report):
    output = sanitized(fault, sanitizer)
    assert re.search(report, output)
    assert "conv2d_mma" in output


def test_normalization_of_the_padding_is_seen(simt, order):
    """A convolution that normalizes its input as it loads it must leave the padding zero. Where it does not, its border
    is wrong, and nothing else."""
    error = ground.normalized_conv3x3(simt, "normalized_conv3x3", 3, 13, 37, 5)
    assert error.max() < 1e-5
    error = ground.normalized_conv3x3(simt, "normalized_conv3x3_padded_first", 3, 13, 37, 5)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert error[inner].max() < 1e-5
    error[inner] = np.inf
    assert error.min() > 1e-4
