"""Runs each interpreted_*.py of this folder in a process of its own, in Triton's interpreter.

Triton reads TRITON_INTERPRET as a kernel is decorated, so it must be set before anything imports triton.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton"),
]
HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("interpreted_*.py"))


def run_interpreted(path: Path, *options: str) -> subprocess.CompletedProcess:
    """pytest on one file, with the kernels interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: v for name, v in environment.items() if not name.startswith("PYTEST_")}  # xdist's worker
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path), *options]
    return subprocess.run(
        command, cwd=HERE.parents[1], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("name", FILES)
def test_interpreted(name):
    done = run_interpreted(HERE / name)
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-60:])
    assert " passed" in done.stdout, done.stdout


def test_a_failure_is_seen(tmp_path):
    """A kernel that computes something else than it should fails, and its report comes through."""
    path = tmp_path / "interpreted_fault.py"
    path.write_text(
        "import torch, triton\n"
        "import triton.language as tl\n\n"
        "@triton.jit\n"
        "def double_kernel(x):\n"
        "    tl.store(x, 3.0 * tl.load(x))\n\n"
        "def test_double():\n"
        "    x = torch.ones(1)\n"
        "    double_kernel[(1,)](x)\n"
        "    assert x.item() == 2.0\n"
    )
    done = run_interpreted(path)
    assert done.returncode == 1
    assert "assert 3.0 == 2.0" in done.stdout
