"""What this machine can do, measured at the start of a run: the peaks that the results are given as a fraction of."""

import math
import time

import torch

_SIZES = tuple(4**i for i in range(8, 15))  # bytes moved: 64 KiB to 256 MiB


def _best_seconds(call) -> float:
    """The best of eight tries, and of more until a tenth of a second has passed."""
    call()
    best, tries, end = math.inf, 0, time.perf_counter() + 0.1
    while tries < 8 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return best


class Peaks:
    """Best of several tries at the thread count in use.

    `sgemm`: FLOP/s of a 1536x1536x1536 float32 matrix product by torch (MKL), a stand-in for the FMA peak that is
    itself a few per cent below it. `copy(n)`: bytes/s of a copy that moves n bytes in all, half read and half written;
    it depends on n because small layers live in the caches.
    """

    def __init__(self):
        a, b = torch.randn(2, 1536, 1536)
        c = torch.empty(1536, 1536)
        self.sgemm = 2 * 1536**3 / _best_seconds(lambda: torch.mm(a, b, out=c))
        self.copies = {n: self._copy(n) for n in _SIZES}

    @staticmethod
    def _copy(moved: int) -> float:
        source, target = torch.ones(2, moved // 8)
        calls = max(1, 2**22 // moved)  # a clock reading costs as much as a small copy

        def copy():
            for _ in range(calls):
                target.copy_(source)

        return calls * moved / _best_seconds(copy)

    def copy(self, moved: float) -> float:
        return self.copies[min(_SIZES, key=lambda n: abs(math.log(n / moved)))]

    def as_dict(self) -> dict:
        return {"sgemm_flops": self.sgemm, "copy_bytes_per_s": {str(n): rate for n, rate in self.copies.items()}}
