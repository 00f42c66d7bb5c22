"""Training steps of whole networks against stock PyTorch: time, and the memory that a step takes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench._rows import parametrize, rows
from bench._training import Step, errors, networks, random_batch

# Where a ReLU's input or two of a window's maxima lie within rounding of each other, a step passes a gradient on that
# the exact one does not: a share of some 1e-5 of all. Stock's is off by as much: 2e-2 in AlexNet's first layer on AVX2.
SAME_STEP = 1e-2


@dataclass(frozen=True)
class TrainingCase:
    """A network and the size of its square RGB images."""

    name: str
    size: int


FULL = rows([TrainingCase("alexnet", 227), TrainingCase("resnet18", 112)], (32,), directions=("training",))
SMOKE = rows([TrainingCase("resnet18", 48)], (2,), directions=("training",))


def step_memory(row, side: str) -> int:
    """Bytes, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "bench._training", row.case.name, side, str(row.batch), str(row.case.size)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    return int(run.stdout)


@pytest.mark.network
@parametrize(FULL, SMOKE)
def test_training_step(row, time_in_turns, benchmark):
    x = random_batch(row.batch, row.case.size)
    fast, stock = (Step(n, x, s) for n, s in zip(networks(row.case.name), (False, True)))
    with torch.enable_grad():
        error, stock_error = errors(fast, stock)
        if not error <= max(SAME_STEP, 2 * stock_error):
            reason = f"fastcnn's step is off by {error:.1e}, stock's by {stock_error:.1e}"
            pytest.fail(f"not timed, {reason}: {row}", pytrace=False)
        time_in_turns(fast, stock, row, "training step", {"error": error, "stock_error": stock_error})
    fast_bytes, stock_bytes = (step_memory(row, side) for side in ("fast", "stock"))
    benchmark.extra_info.update(
        {"fastcnn_step_bytes": fast_bytes, "stock_step_bytes": stock_bytes, "memory_ratio": stock_bytes / fast_bytes}
    )
