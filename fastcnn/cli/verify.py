"""`fastcnn verify`: is a network computed rightly on this machine?"""

from typing import Annotated

import typer

from fastcnn.models import get_model
from fastcnn.models.verify import Verification, example_batch, fixed_seed
from fastcnn.models.verify import verify as verify_model

from ._arguments import Json, Model, Threads, refuse_disabled
from ._output import print_json, stdout, table, working


def report(result: Verification) -> None:
    """Prints the checks as a table and the verdict under it."""
    rows = table(f"{result.model}: relative rms error against float64", "tensor", "fastcnn", "PyTorch", "tolerance", "")
    for check in result.checks:
        name = f"{check.layer} {check.tensor}"
        figures = (f"{value:.1e}" for value in (check.error, check.stock_error, check.tolerance))
        rows.add_row(name, *figures, "ok" if check.passed else "[red]FAIL[/red]")
    stdout().print(rows)
    stdout().print(f"{'passed' if result.passed else 'FAILED'}: {verdict(result)}", soft_wrap=True)


def verdict(result: Verification) -> str:
    """One sentence: how many checks, and the worst of them."""
    worst = result.worst
    return (
        f"{len(result.checks)} checks; worst is {worst.layer}, {worst.tensor}: error {worst.error:.1e} "
        f"of {worst.tolerance:.1e} allowed (stock PyTorch {worst.stock_error:.1e})"
    )


def verify(
    model: Model,
    batch: Annotated[int, typer.Option(min=1, help="Images in the batch.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of weights and input.")] = 0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compare a training step's outputs, loss and gradients, and inference, with stock PyTorch and float64.

    Exit status 1 if an error is too large. Dropout and its like are left out.
    """
    refuse_disabled()
    with working(f"verifying {model}, batch {batch}, {threads} threads"), fixed_seed(seed):
        network = get_model(model)
        try:
            result = verify_model(network, *example_batch(model, batch, seed), name=model)
        except ValueError as error:  # one value per channel cannot be normalized
            raise typer.BadParameter(f"--batch {batch} is too small to train {model}: {error}") from error
    if json:
        checks = [{**vars(check), "passed": check.passed} for check in result.checks]
        print_json({"model": model, "batch": batch, "passed": result.passed, "checks": checks})
    else:
        report(result)
    if not result.passed:
        raise typer.Exit(1)
