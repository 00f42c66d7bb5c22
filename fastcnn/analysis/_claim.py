"""A claim about a network, what the specification makes of it, and what the code computes."""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Value = bool | int | float | str | tuple
Values = Mapping[str, Value]

EXACT_DIGITS = 1e-9  # relative difference of two floating-point roads to one value


class Verdict(enum.Enum):
    """What becomes of a claim; the value is the mark in the table."""

    EXACT = "✓"
    ROUNDED = "≈"
    WRONG = "✗"
    HISTORICAL = "h"  # an event or a measurement that no code on this machine can repeat


@dataclass(frozen=True)
class Claim:
    """A statement and its quantities by name.

    claimed: what the statement says. specified: what holds; a quantity of which the claim says nothing is only here.
    published: quantities that `compute` looks up in the literature (published.py). tolerance: the relative difference
    that a ROUNDED claim may have. remark: the correction, or under which condition the claim holds.
    """

    number: int
    statement: str
    verdict: Verdict
    claimed: Values = field(default_factory=dict)
    specified: Values = field(default_factory=dict)
    compute: Callable[[], Values] | None = None
    published: tuple[str, ...] = ()
    tolerance: float = 0.01
    remark: str = ""


@dataclass(frozen=True)
class Outcome:
    """A claim, the computed quantities, and in `failures` what is not as specified or not as the verdict says."""

    claim: Claim
    computed: Values
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict:
        return {
            "number": self.claim.number,
            "statement": self.claim.statement,
            "verdict": self.claim.verdict.name.lower(),
            "claimed": dict(self.claim.claimed),
            "specified": dict(self.claim.specified),
            "computed": dict(self.computed),
            "published": list(self.claim.published),
            "remark": self.claim.remark,
            "passed": self.passed,
            "failures": list(self.failures),
        }


def close(a: Value, b: Value, tolerance: float) -> bool:
    """Whether two values are equal, numbers to a relative difference."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        return type(a) is type(b) and a == b
    return a == b or math.isclose(a, b, rel_tol=tolerance)


def _tolerance(expected: Value) -> float:
    return 0.0 if isinstance(expected, int) else EXACT_DIGITS


def _failures(claim: Claim, computed: Values) -> list[str]:
    found = []
    for name in dict.fromkeys((*claim.specified, *computed)):
        if name not in computed or name not in claim.specified:
            found.append(f"{name}: {'specified' if name in claim.specified else 'computed'} only")
        elif not close(computed[name], claim.specified[name], _tolerance(claim.specified[name])):
            found.append(f"{name}: computed {computed[name]}, but specified {claim.specified[name]}")
    shared = [name for name in claim.claimed if name in computed]
    if missing := [name for name in claim.claimed if name not in computed]:
        found.append(f"claimed, but not computed: {', '.join(missing)}")
    different = [n for n in shared if not close(computed[n], claim.claimed[n], _tolerance(claim.claimed[n]))]
    far = [n for n in shared if not close(computed[n], claim.claimed[n], claim.tolerance)]
    if claim.verdict is Verdict.EXACT and different:
        found.append(f"called exact, but computed otherwise: {', '.join(different)}")
    if claim.verdict is Verdict.ROUNDED and far:
        found.append(f"called rounded, but further than {claim.tolerance:.1%} off: {', '.join(far)}")
    if claim.verdict is Verdict.ROUNDED and not different:
        found.append("called rounded, but exact")
    if claim.verdict is Verdict.WRONG and not different:
        found.append("called wrong, but computed as claimed")
    return found


def check(claim: Claim) -> Outcome:
    """Computes the claim's quantities and compares them with the specification's and with the verdict."""
    if claim.compute is None:
        why = () if claim.verdict is Verdict.HISTORICAL else ("nothing computes it",)
        return Outcome(claim, {}, why)
    computed = claim.compute()
    return Outcome(claim, computed, tuple(_failures(claim, computed)))


_registered: dict[int, Claim] = {}


def _register(claim: Claim) -> None:
    if claim.number in _registered:
        raise ValueError(f"claim: expected each number once, but got {claim.number} again")
    _registered[claim.number] = claim


def claim(
    number: int,
    statement: str,
    verdict: Verdict,
    claimed: Values,
    specified: Values | None = None,
    **options,
) -> Callable[[Callable[[], Values]], Callable[[], Values]]:
    """Registers the decorated function as the computation of a claim; specified: what differs from, or is beside,
    the claimed values. options: those of Claim."""

    def register(compute: Callable[[], Values]) -> Callable[[], Values]:
        _register(Claim(number, statement, verdict, claimed, {**claimed, **(specified or {})}, compute, **options))
        return compute

    return register


def historical(number: int, statement: str, remark: str = "") -> None:
    """Registers a claim that nothing here can check."""
    _register(Claim(number, statement, Verdict.HISTORICAL, remark=remark))


def all_claims() -> list[Claim]:
    """Every registered claim in the order of the numbers."""
    return [_registered[number] for number in sorted(_registered)]
