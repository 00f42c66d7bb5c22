"""The claims' outcomes in words."""

from collections.abc import Iterable

from ._claim import Outcome, Value, Verdict
from .published import RESULTS

_HEAD = """# Claims about these networks, checked

Statements that lecture notes, textbooks and papers make about the networks in `fastcnn.models`, and what the code
computes: parameters, multiply-adds, sizes and receptive fields from the networks themselves, built without memory on
PyTorch's meta device. Made by `fastcnn claims --markdown`; `fastcnn claims` checks all of it again, as do the tests.

- ✓ exact.
- ≈ the claim is a rounded number.
- ✗ wrong; the computed value differs from the claimed one, and the remark says what holds.
- h history: a measurement or an event that no code can check here.

A value marked † is no computation but a published figure.

"""

_PUBLISHED_HEAD = """## Published error rates

In percent; none is reproduced here.

| System | Data | Top-1 | Top-5 |
|-|-|-:|-:|"""


def words(value: Value) -> str:
    """A quantity as text: 60,965,224; yes; 13 / 13 / 192."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " / ".join(map(words, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.10g}" if isinstance(value, float) else value


def quantities(outcome: Outcome) -> str:
    """Each computed quantity, with the claimed one where that differs."""
    parts = []
    for name, value in outcome.computed.items():
        mark = "†" if name in outcome.claim.published else ""
        claimed = outcome.claim.claimed.get(name, value)
        beside = "" if claimed == value else f" (claimed {words(claimed)})"
        parts.append(f"{name}: {words(value)}{mark}{beside}")
    return "; ".join(parts) or "not checkable here"


def totals(outcomes: Iterable[Outcome]) -> str:
    """How many claims of each verdict, and how many fail."""
    outcomes = list(outcomes)
    counts = {verdict: sum(o.claim.verdict is verdict for o in outcomes) for verdict in Verdict}
    failed = sum(not outcome.passed for outcome in outcomes)
    found = ", ".join(f"{count} {verdict.name.lower()}" for verdict, count in counts.items())
    return f"{len(outcomes)} claims: {found}; {f'{failed} FAIL' if failed else 'all computed as marked'}"


def markdown(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a page."""
    outcomes = list(outcomes)
    rows = ["| | | Claim | Computed | Remark |", "|-:|-|-|-|-|"]
    for outcome in outcomes:
        claim = outcome.claim
        failed = f"**FAILS: {'; '.join(outcome.failures)}** " if outcome.failures else ""
        cells = (claim.number, claim.verdict.value, claim.statement, failed + quantities(outcome), claim.remark)
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return _HEAD + "\n".join(rows) + f"\n\n{totals(outcomes)}.\n\n{_published()}"


def _published() -> str:
    def percent(error: float | None) -> str:
        return "" if error is None else f"{error:g}"

    rows = [f"| {r.system} | {r.data} | {percent(r.top1)} | {percent(r.top5)} |" for r in RESULTS]
    return "\n".join((_PUBLISHED_HEAD, *rows, ""))
