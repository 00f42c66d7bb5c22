"""The ops' own tests at every instruction set below this machine's: FASTCNN_CPU_CAPABILITY lowers it at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcnn import _library

TESTS = Path(__file__).parent
LEVELS = ("baseline", "avx2", "avx512")
FILES = (
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
)


def lowered(level: str, *command: str) -> subprocess.CompletedProcess:
    """Python with its kernels held to a level."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "FASTCNN_CPU_CAPABILITY": level},
    )


def supported() -> str:
    return _library._C.supported_capability()


def require(level: str) -> None:
    if LEVELS.index(level) > LEVELS.index(supported()):
        pytest.skip(f"this CPU has {supported()} at most")


@pytest.mark.parametrize("level", LEVELS)
def test_capability_is_lowered(level):
    """And never raised: a level that the CPU lacks gives the best that it has."""
    run = lowered(level, "-c", "import fastcnn; print(fastcnn.cpu_capability())")
    assert run.stdout.strip() == min(level, supported(), key=LEVELS.index), run.stderr


@pytest.mark.parametrize("level", LEVELS[:-1])
@pytest.mark.parametrize("file", FILES)
def test_ops_at(level, file):
    require(level)
    if level == supported():
        pytest.skip(f"{level} is what this CPU has: {file} has run at it")
    run = lowered(level, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / file))
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("file", ["test_conv2d.py", "test_conv2d_bn_relu.py", "test_conv_transpose2d.py"])
def test_bfloat16_by_the_other_road(file):
    """vdpbf16ps is the default on some CPUs only; where the instruction is there, both roads are right."""
    run = subprocess.run(
        [sys.executable, "-c", "import fastcnn; print(fastcnn._library._C.bf16_dot())"],
        capture_output=True, text=True, cwd=TESTS.parent, env={**os.environ, "FASTCNN_BF16_DOT": "1"},
    )  # fmt: skip
    if run.stdout.strip() != "True":
        pytest.skip("this CPU lacks AVX512_BF16")
    other = "0" if _library._C.bf16_dot() else "1"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not compile", str(TESTS / file)],
        capture_output=True, text=True, cwd=TESTS.parent, env={**os.environ, "FASTCNN_BF16_DOT": other},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_every_op_is_here():
    """An op's test file cannot be forgotten."""
    ops = {path.stem for path in (TESTS.parent / "fastcnn" / "ops").glob("[!_]*.py")}
    assert {f"test_{op}.py" for op in ops} <= set(FILES)
    assert all((TESTS / file).exists() for file in FILES)
