"""Command-line arguments that several commands share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastcnn._config import config
from fastcnn.models import list_models


def _known(names: Iterable[str]) -> None:
    for name in names:
        if name not in list_models():
            raise typer.BadParameter(f"unknown model {name!r}, expected one of {', '.join(list_models())}")


def _one(name: str | None) -> str | None:
    _known([] if name is None else [name])
    return name


# A network of each kind, in minutes; all 74 would take hours.
TYPICAL = ("lenet5", "alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "squeezenet1_1")


def _several(names: list[str] | None) -> list[str]:
    _known(names or [])
    return list(names or TYPICAL)


def _set_threads(threads: int | None) -> int:
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


Model = Annotated[str, typer.Argument(callback=_one, help="Name of a model.")]
OptionalModel = Annotated[
    str | None, typer.Option("--model", callback=_one, help="Name of a model; by default the only one that fits.")
]
_DEFAULT = f"Names of models; by default {', '.join(TYPICAL)}."
Models = Annotated[list[str] | None, typer.Argument(callback=_several, help=_DEFAULT)]
Threads = Annotated[int | None, typer.Option(min=1, callback=_set_threads, help="Threads; by default torch's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def refuse_disabled() -> None:
    """Ends a comparison of fastcnn with stock PyTorch that would compare PyTorch with itself."""
    if config.disabled:
        raise typer.BadParameter("FASTCNN_DISABLE is set, so that nothing of fastcnn would run; unset it")


def existing_directory(path: Path | None) -> Path | None:
    """Refuses, before any work, a file to be written where there is no directory."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"no such directory: {path.parent}")
    return path


def sizes(text: str) -> tuple[int, ...]:
    """'16,3,227,227' as a tuple of positive ints."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 0:
        raise typer.BadParameter(f"expected sizes such as 16,3,227,227, but got {text!r}")
    return values
