"""Random calls of every function, at every instruction set; and that a planted fault is found and found again."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fastcnn.functional
from fastcnn import _library

from .harness import fuzz
from .ops import OPS, RANDOM

LEVELS = ("baseline", "avx2", "avx512")


@pytest.fixture
def options(request):
    return {name: request.config.getoption(f"--fuzz-{name}") for name in ("seed", "cases")}


@pytest.mark.parametrize("name", OPS)
def test_op(name, options):
    """A third of the cases, shared out among the functions: the other two levels have the rest."""
    seed, cases = options.values()
    repeat = (
        f"FASTCNN_CPU_CAPABILITY={_library.cpu_capability()} "
        f"pytest tests/fuzz -k 'test_op and {name}' --fuzz-seed {seed} --fuzz-cases {cases}"
    )
    fuzz(name, OPS[name], seed, max(1, cases // len(LEVELS) // len(OPS)), repeat)


@pytest.mark.parametrize("level", LEVELS)
def test_lower_levels(level, options):
    seed, cases = options.values()
    if LEVELS.index(level) >= LEVELS.index(_library.cpu_capability()):
        pytest.skip("test_op runs at the level of this process")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_op",
         "--fuzz-seed", str(seed + 1 + LEVELS.index(level)), "--fuzz-cases", str(cases)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "FASTCNN_CPU_CAPABILITY": level},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert f"{len(OPS)} passed" in run.stdout


def test_every_function_is_here():
    assert set(OPS) | RANDOM == set(fastcnn.functional.__all__)
    assert not set(OPS) & RANDOM


def planted(draw):
    """max_pool2d, wrong in the last column of maps of more than one where stride and padding meet."""
    call = OPS["max_pool2d"](draw)

    def function(x):
        y = call.function(x)
        if y.shape[3] > 1 and "padding=(0, 1)" in call.what:
            y = y.clone()
            y[..., -1] *= 1 + 2e-2
        return y

    return replace(call, function=function)


def found(seed):
    with pytest.raises(AssertionError) as error:
        fuzz("planted", planted, seed, 100, f"--fuzz-seed {seed}")
    return str(error.value)


def test_planted_fault_is_found_and_repeated():
    message = found(3)
    assert re.search(r"planted\(.*padding=\(0, 1\).*output is off by .* times the bound", message)
    assert message.endswith("Repeat: --fuzz-seed 3")
    assert found(3) == message
