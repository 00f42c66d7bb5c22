"""Which layers a benchmark runs, and how."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DIRECTIONS = ("forward", "backward", "input_gradient", "weight_gradient", "training")

# FASTCNN_BENCH_SMOKE=1: a few rows an op and three rounds, for CI; every correctness gate stays on.
SMOKE = os.environ.get("FASTCNN_BENCH_SMOKE", "") not in ("", "0")
SMOKE_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a named layer and how it is run."""

    case: Any  # one of tests.cases
    batch: int = 1
    layout: str = "channels_last"
    direction: str = "forward"
    dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.case.name}-b{self.batch}-{self.layout}-{self.dtype_name}-{self.direction}"


def rows(
    cases: Iterable,
    batches: Iterable[int] = (1,),
    layouts: Iterable[str] = ("channels_last",),
    directions: Iterable[str] = ("forward",),
    dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """Every combination, layer by layer."""
    return [Row(case, b, lay, d, dtype) for case in cases for b in batches for lay in layouts for d in directions]


def parametrize(full: Iterable[Row], smoke: Iterable[Row]) -> pytest.MarkDecorator:
    """Parametrizes a test by `row`, with ids like alexnet.conv2-b1-channels_last-float32-forward; marks: directions."""
    chosen = smoke if SMOKE else full
    return pytest.mark.parametrize(
        "row", [pytest.param(r, id=str(r), marks=getattr(pytest.mark, r.direction)) for r in chosen]
    )
