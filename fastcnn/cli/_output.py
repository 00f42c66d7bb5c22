"""Where the commands write: data to stdout; logs, errors and (on a terminal) progress bars to stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

WIDTH_OF_A_FILE = 120  # a pipe has no width of its own, and tables cut to 80 columns lose words


def stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def log(message: str) -> None:
    stderr().print(message, markup=False, soft_wrap=True)


def print_json(data: object) -> None:
    print(json.dumps(data, indent=2))


def progress() -> Progress:
    """A progress bar that writes nothing where stderr is not a terminal."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def working(description: str) -> Iterator[None]:
    """Logs what is going on; on a terminal, shows beside it that it is still going on."""
    log(description)
    with progress() as bar:
        bar.add_task("", total=None)
        yield


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are right-aligned figures."""
    result = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        result.add_column(column, justify="right" if i else "left")
    return result


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
