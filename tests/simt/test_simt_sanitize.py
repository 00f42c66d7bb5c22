"""The CUDA ops under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer, which sees two
threads of a block that touch one place without a barrier between them. Planted faults: test_simt_ground.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simt import library
from tests.simt.ground import RUNTIMES

ROOT = Path(__file__).parents[2]
FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]


def run(sanitizer: str, *arguments: str) -> str:
    names = [*RUNTIMES[sanitizer], "libstdc++.so.6"]
    command = [library.CXX, "-print-file-name="]
    runtimes = [
        subprocess.run([command[0], command[1] + name], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    environment = {
        **os.environ,
        "FASTCNN_SIMT_SANITIZE": sanitizer,
        "LD_PRELOAD": " ".join(runtimes),
        "OMP_NUM_THREADS": "1",  # OpenMP's barriers are unknown to ThreadSanitizer
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "TSAN_OPTIONS": "suppress_equal_addresses=0:report_signal_unsafe=0",
    }
    fixed_addresses = [str(shutil.which("setarch")), "-R"] if sanitizer == "thread" else []
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        [*fixed_addresses, *pytest_command], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_nothing_is_found(sanitizer):
    library.build(sanitizer)  # g++ itself runs without the sanitizer's runtime
    output = run(sanitizer, "tests/simt/test_simt_ops.py", "-k", "odd or resnet")
    findings = [line for line in output.splitlines() if any(finding in line for finding in FINDINGS)]
    assert not findings, "\n".join(findings) + output[-8000:]
    assert " passed" in output, output[-8000:]
    assert " failed" not in output, output[-8000:]
