"""No CUDA kernel is left out: at the end of a session that runs all of these tests, each has run from its PTX."""

from pathlib import Path

import pytest

from tests.ptx import NVCC
from tests.ptx.replay import kernels, replayed
from tests.simt import library

HERE = Path(__file__).parent


def missing(known: set[str], ran: set[str]) -> str:
    """Empty, or which kernels no test has run."""
    left = sorted(known - ran)
    return f"never run from their PTX: {', '.join(left)}" if left else ""


@pytest.mark.skipif(NVCC is None or library.MISSING is not None, reason="no nvcc or no C++ compiler")
def test_every_kernel_was_replayed(request):
    """tests/ptx/conftest.py has it run last."""
    options, config = request.config.option, request.config
    repeating = {p.name for p in HERE.glob("test_*.py") if "repeated(" in p.read_text() or "check(" in p.read_text()}
    collected = {item.path.name for item in request.session.items}
    chosen = options.keyword or options.markexpr or any("::" in str(a) for a in config.args)
    if chosen or not repeating <= collected:
        pytest.skip("of a session with all tests of tests/ptx")
    assert missing(set(kernels()), replayed) == ""


def test_a_kernel_that_is_left_out_is_named():
    known = kernels()
    assert len(known) > 30
    assert {"conv2d_mma_kernel", "upload_part", "normalize_walk"} <= set(known)
    assert missing(set(known), set(known) - {"pad_kernel"}) == "never run from their PTX: pad_kernel"
