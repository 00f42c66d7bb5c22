"""The CUDA ops under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer, which sees two
threads of a block that touch one place without a barrier between them. Planted faults: test_simt_ground.py."""

import pytest

from tests.simt import library
from tests.simt.ground import RUNTIMES, run_sanitized

FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]


@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_nothing_is_found(sanitizer):
    library.build(sanitizer)  # g++ itself runs without the sanitizer's runtime
    output = run_sanitized(
        sanitizer, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/simt/test_simt_ops.py",
        "-k", "odd or resnet",
        timeout=None,
        FASTCNN_SIMT_SANITIZE=sanitizer,
        OMP_NUM_THREADS="1",  # OpenMP's barriers are unknown to ThreadSanitizer
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
        TSAN_OPTIONS="suppress_equal_addresses=0:report_signal_unsafe=0",
    )  # fmt: skip
    findings = [line for line in output.splitlines() if any(finding in line for finding in FINDINGS)]
    assert not findings, "\n".join(findings) + output[-8000:]
    assert " passed" in output, output[-8000:]
    assert " failed" not in output, output[-8000:]
