"""The ops' tests on a library built with AddressSanitizer and UndefinedBehaviorSanitizer (tests/sanitize/build.py)."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.sanitize import build as sanitized
from tests.test_isa import LEVELS, require

FINDINGS = ("ERROR: AddressSanitizer", "runtime error:")
FILES = (
    "test_arena.py",
    "test_conv2d.py",
    "test_conv2d_bn_relu.py",
    "test_conv2d_winograd.py",
    "test_conv_transpose2d.py",
    "test_max_pool2d.py",
    "test_max_unpool2d.py",
    "test_avg_pool2d.py",
    "test_adaptive_avg_pool2d.py",
    "test_batch_norm_relu.py",
    "test_local_conv2d.py",
    "test_local_response_norm.py",
    "test_lrn_max_pool2d.py",
    "test_sparse_conv2d.py",
    "test_subsample2d.py",
    "test_hostile.py",
    "test_hostile_pooling.py",
    "test_hostile_conv.py",
    "test_packed_weights.py",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(sanitized.CXX) is None, reason=f"no C++ compiler ('{sanitized.CXX}')"),
]


@pytest.fixture(scope="module", autouse=True)
def library():
    sanitized.build()


def run(*command: str, **environment: str) -> str:
    """What Python prints, with the sanitizers' runtime in front of every other library.

    It does not look for leaks, of which the interpreter has its own, and gives no memory by returning null: the tests
    ask for more than there is.
    """
    run = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=sanitized.PACKAGE,
        env={
            **os.environ,
            "PYTHONPATH": str(sanitized.PACKAGE),
            "LD_PRELOAD": f"{sanitized.runtime('libasan.so')} {sanitized.runtime('libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            **environment,
        },
    )
    return run.stdout


def found(output: str) -> list[str]:
    return [line for line in output.splitlines() if any(finding in line for finding in FINDINGS)]


@pytest.mark.parametrize(("call", "finding"), [
    ("read_behind(ctypes.c_int64(100))", "ERROR: AddressSanitizer: heap-buffer-overflow"),
    ("overflow(ctypes.c_int32(2))", "runtime error: signed integer overflow"),
])  # fmt: skip
def test_planted_faults_are_found(call, finding):
    output = run("-c", f"import ctypes; ctypes.CDLL({str(sanitized.PLANTED)!r}).{call}")
    assert finding in output, output


def test_lowered_masks_are_watched():
    """Of the AVX-512 kernels on AVX2 (avx512.h): lanes that a mask leaves out are not touched, others are checked."""
    if not sanitized.lowered():
        pytest.skip("the AVX-512 kernels run as they are, or not at all")
    call = f"import ctypes; ctypes.CDLL({str(sanitized.PLANTED)!r}).read_masked"
    assert run("-c", f"{call}(ctypes.c_int64(8)); print('passed')").strip() == "passed"
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in run("-c", f"{call}(ctypes.c_int64(9))")


def test_sanitized_library_is_the_one_tested():
    code = "import fastcnn; print(fastcnn.__file__, 'libasan' in open('/proc/self/maps').read())"
    assert run("-c", code).split() == [str(sanitized.PACKAGE / "fastcnn" / "__init__.py"), "True"]


def require_kernels(level: str) -> None:
    if not (level == "avx512" and sanitized.lowered()):
        require(level)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_run(level):
    require_kernels(level)
    assert run("-c", "import fastcnn; print(fastcnn.cpu_capability())", FASTCNN_CPU_CAPABILITY=level).strip() == level


def passes(level: str, *arguments: str) -> None:
    require_kernels(level)
    command = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments)
    output = run(*command, FASTCNN_CPU_CAPABILITY=level)
    assert not found(output), "\n".join(found(output)) + output[-8000:]
    assert re.search(r"\d+ passed", output), output[-8000:]
    # AddressSanitizer says that it "failed to allocate" what the tests ask for.
    assert not re.search(r"\d+ (failed|errors?)\b", output), output[-8000:]


# Compiled graphs run the same kernels, and would have g++ itself run under the sanitizer.
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("file", FILES)
def test_nothing_is_found(file, level):
    passes(level, "-k", "not compile and not export", f"tests/{file}")


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_found_in_random_calls(level):
    """2,000 calls, a third at each level."""
    passes(level, "-k", "test_op", "--fuzz-seed", "20261123", "--fuzz-cases", "2000", "tests/fuzz")
