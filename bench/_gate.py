"""The correctness gate: a result is compared with float64 before anything is timed."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Half the spacing of the subnormals: what rounding costs where the relative bound does not hold.
_UNDERFLOW = {torch.float16: 2.0**-25}
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


class WrongResult(AssertionError):
    """A result that may not be timed."""


def output_rounding(expected: Tensor, bound: Tensor, dtype: torch.dtype) -> Tensor:
    """`bound`, which holds in float32, and one rounding to `dtype`."""
    if dtype not in (torch.float16, torch.bfloat16):
        return bound
    return bound + UNIT_ROUNDOFF[dtype] * (expected.abs() + bound) + _UNDERFLOW.get(dtype, 0.0)


def sum_bound(terms: int, absolute: Tensor, squared: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Elementwise bound on the error of sums of `terms` products, added up in float32 and rounded once to `dtype`.

    `absolute` and `squared` hold the same sums over the products' absolute values and squares. In any order the error
    is at most terms*u*absolute (Higham 2002, section 3.1). The products here are random with mean zero, so partial sums
    stay within 4*sqrt(squared), and their independent roundings add up to 8*sqrt(terms)*u times that at most (8
    standard deviations; Higham and Mary 2019). The smaller bound counts: it notices one missing product of thousands.
    """
    u, steps = UNIT_ROUNDOFF[torch.float32], terms + 2  # the bias, and the last rounding of a float32 result
    walk = 8 * math.sqrt(steps) * 4 * squared.double().sqrt()
    return output_rounding(expected, u * torch.minimum(steps * absolute.double(), walk), dtype)


def poison(like: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Fills free memory of the outputs' sizes with NaN, so that an output element nobody wrote shows.

    Three rounds: glibc hands a large block back to the system on its first release and keeps it from then on.
    """
    for _ in range(3):
        blocks = [torch.full(t.shape, math.nan, dtype=dtype, device=t.device) for t in like]
        del blocks


def check(
    call: Callable[[], Sequence[Tensor]],
    expected: Sequence[Tensor],
    bounds: Sequence[Tensor],
    dtype: torch.dtype,
    repeatable: bool = True,
) -> tuple[Sequence[Tensor], float]:
    """Calls twice over poisoned memory; returns the outputs and the largest error as a fraction of its bound.

    Raises WrongResult for another shape or dtype, an error above its bound or, if the result is promised to be
    `repeatable`, two calls that differ in any bit.
    """
    poison(expected, dtype)
    first = [t.clone() for t in call()]
    poison(expected, dtype)
    outputs = call()
    if repeatable:
        require_equal(outputs, first)
    worst = 0.0
    for i, (got, want, bound) in enumerate(zip(outputs, expected, bounds, strict=True)):
        if got.shape != want.shape or got.dtype != dtype:
            raise WrongResult(f"output {i}: got {got.dtype} {list(got.shape)}, expected {dtype} {list(want.shape)}")
        error = (got.detach().double() - want).abs()
        wrong = ~(error <= bound)  # true for NaN too
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise WrongResult(
                f"output {i}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {at}: "
                f"got {got[at]:.9g}, expected {want[at]:.9g} +- {bound.expand_as(want)[at]:.3g}"
            )
        worst = max(worst, float((error / bound.clamp_min(1e-300)).max()))
    return outputs, worst


def require_equal(outputs: Sequence[Tensor], first: Sequence[Tensor]) -> None:
    """Raises WrongResult unless both hold the same bits (NaN included)."""
    for i, (a, b) in enumerate(zip(outputs, first, strict=True)):
        bits = _BITS[a.dtype]
        if a.dtype != b.dtype or not torch.equal(a.view(bits), b.view(bits)):
            raise WrongResult(f"output {i}: two calls on the same input gave different bits")
