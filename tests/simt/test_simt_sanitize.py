"""The CUDA ops under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer, which sees two
threads of a block that touch one place without a barrier between them: each op by itself, so that none takes more than
some minutes. Planted faults: test_simt_mutants.py."""

import re

import pytest

from tests.simt import library, sanitized_ops
from tests.simt.ground import RUNTIMES, run_sanitized

FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer")
# Types change what is computed, but not what threads do to each other: that takes one of each size.
DTYPES = {"thread": ("f32", "bf16"), "address,undefined": ("f32", "bf16", "f64")}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]


@pytest.fixture(scope="module", params=RUNTIMES)
def sanitizer(request):
    library.build(request.param)  # g++ itself runs without the sanitizer's runtime
    return request.param


@pytest.mark.parametrize("part", sanitized_ops.PARTS)
def test_nothing_is_found(sanitizer, part):
    output = run_sanitized(
        sanitizer, "-m", "tests.simt.sanitized_ops", part, *DTYPES[sanitizer],
        timeout=1800,
        FASTCNN_SIMT_SANITIZE=sanitizer,
        OMP_NUM_THREADS="1",  # OpenMP's barriers are unknown to ThreadSanitizer
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
        TSAN_OPTIONS="suppress_equal_addresses=0:report_signal_unsafe=0",
    )  # fmt: skip
    findings = [line for line in output.splitlines() if any(finding in line for finding in FINDINGS)]
    assert not findings, "\n".join(findings) + output[-8000:]
    assert re.search(rf"{part}: [1-9]\d* calls done\n$", output), output[-8000:]
