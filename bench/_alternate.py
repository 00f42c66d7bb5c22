"""Timing two callables against each other in one run."""

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcnn._timing import cpu_block

# A block lasts at least this long, so that reading the clock (50 ns) and waking a thread are lost in it.
_BLOCK_SECONDS = 5e-4
_MIN_ROUNDS, _MAX_ROUNDS = 5, 101


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one side, one number a round."""

    seconds: tuple[float, ...]
    calls: int  # in one round

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high


class _Pool:
    """A parallel region just large enough to wake every thread of torch's pool."""

    def __init__(self):
        # at::parallel_for gives a thread at least 32768 elements.
        self._data = torch.zeros(32768 * torch.get_num_threads())

    def wake(self) -> None:
        self._data.add_(1.0)


Clock = Callable[[Callable[[], object], int], float]  # the seconds that so many calls take


def _calls_per_block(call: Callable[[], object], block: Clock) -> int:
    call()
    calls = 1
    # The best of three: one try that a busy machine interrupts would look long enough.
    while (seconds := min(block(call, calls) for _ in range(3))) < _BLOCK_SECONDS:
        calls = max(2 * calls, min(100 * calls, int(calls * 1.2 * _BLOCK_SECONDS / max(seconds, 1e-9))))
    return calls


def alternate(
    first: Callable[[], object],
    second: Callable[[], object],
    seconds: float,
    rounds: int | None = None,
    block: Clock = cpu_block,
) -> tuple[Timing, Timing]:
    """Times blocks of calls of both in turn, the order swapped every round, for about `seconds` or exactly `rounds`.

    The thread pool is woken before every block, for both alike: a pool that slept costs the next call up to
    milliseconds, and only a side that left it idle would pay.
    """
    sides, calls = (first, second), (_calls_per_block(first, block), _calls_per_block(second, block))
    pool = _Pool()
    if rounds is None:
        one_round = sum(block(side, n) for side, n in zip(sides, calls))
        rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(seconds / one_round)))
    taken: tuple[list[float], list[float]] = ([], [])
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            for side in (0, 1) if i % 2 == 0 else (1, 0):
                pool.wake()
                taken[side].append(block(sides[side], calls[side]) / calls[side])
    finally:
        if was_enabled:
            gc.enable()
    return Timing(tuple(taken[0]), calls[0]), Timing(tuple(taken[1]), calls[1])
