"""`fastcnn claims`: is what is said about the networks true?"""

from typing import Annotated

import typer

from fastcnn import analysis
from fastcnn.analysis import report

from ._arguments import Json
from ._output import log, print_json, progress, stdout, table


def _known(numbers: list[int] | None) -> list[int]:
    known = [claim.number for claim in analysis.all_claims()]
    for number in numbers or []:
        if number not in known:
            raise typer.BadParameter(f"expected numbers of claims from {known[0]} to {known[-1]}, but got {number}")
    return list(numbers or known)


def claims(
    numbers: Annotated[list[int] | None, typer.Argument(callback=_known, help="By default all.")] = None,
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/claims.md.")] = False,
) -> None:
    """Compute what is claimed about the networks; exit status 1 if a claim is not as its verdict says."""
    if json and markdown:
        raise typer.BadParameter("expected --json or --markdown, but got both")
    chosen = [claim for claim in analysis.all_claims() if claim.number in (numbers or [])]
    with progress() as bar:
        outcomes = [analysis.check(claim) for claim in bar.track(chosen, description="computing")]
    if json:
        print_json([outcome.to_dict() for outcome in outcomes])
    elif markdown:
        print(report.markdown(outcomes), end="")
    else:
        rows = table("claims about the networks", "", "", "claim", "computed", "remark")
        for column in rows.columns[1:]:
            column.justify = "left"
        for o in outcomes:
            mark = o.claim.verdict.value if o.passed else f"{o.claim.verdict.value} FAIL"
            rows.add_row(str(o.claim.number), mark, o.claim.statement, report.quantities(o), o.claim.remark)
        stdout().print(rows, markup=False)
        stdout().print(report.totals(outcomes), soft_wrap=True)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        log(f"claim {outcome.claim.number}: {'; '.join(outcome.failures)}")
    if failed:
        raise typer.Exit(1)
