"""Seconds that calls take, measured in turn."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROUNDS, LEAST_ROUNDS = 9, 3
SECONDS = 1.0  # after which no round beyond the least number begins
BLOCK_SECONDS = 1e-3  # so that reading a clock, or starting an idle GPU, is lost in a block of calls


def cpu_block(call: Callable[[], object], calls: int) -> float:
    """The seconds that so many calls took."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def cuda_block(call: Callable[[], object], calls: int) -> float:
    """The same by the clock of the current GPU, without what the CPU does before the first kernel."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def medians(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """The median seconds of each call, over rounds in which each has a turn. Every call has run before."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _in_turn(calls, cuda_block)
    return _in_turn(calls, cpu_block)


def _in_turn(calls: Sequence[Callable[[], object]], block: Callable[[Callable[[], object], int], float]) -> list[float]:
    counts = [max(1, round(BLOCK_SECONDS / max(block(call, 1), 1e-9))) for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            taken[i].append(block(calls[i], counts[i]) / counts[i])
    return [statistics.median(seconds) for seconds in taken]
