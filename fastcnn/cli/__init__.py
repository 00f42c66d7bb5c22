"""The `fastcnn` command. Exit status: 0, 1 when a check failed, 2 for wrong usage."""

import sys

import typer

from . import bench, claims, convert, demo, doctor, explain, summary, verify
from ._output import log

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Convolutional networks on their own kernels: checked against float64, timed against stock PyTorch.",
)
for command in (
    doctor.doctor, explain.explain, verify.verify, summary.summary, claims.claims, bench.bench, convert.convert,
    demo.demo,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Entry point; a library that is missing or does not load is a failed check that says what to do, not a trace."""
    try:
        app()
    except ImportError as error:
        log(f"fastcnn: {error}")
        sys.exit(1)
