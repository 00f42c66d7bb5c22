"""`fastcnn convert`: does a checkpoint of torchvision's or timm's fit a model, and how?"""

from pathlib import Path
from typing import Annotated

import typer

from fastcnn.models.checkpoint import Checkpoint, CheckpointError, MismatchError, read_checkpoint, write_checkpoint
from fastcnn.models.identify import Match, identify, match

from ._arguments import Json, OptionalModel, existing_directory
from ._output import log, print_json, stdout, table


def _matched(name: str | None, checkpoint: Checkpoint) -> Match:
    """The model of this name, or the only one that fits."""
    if name is not None:
        return match(name, checkpoint.state)
    found = identify(checkpoint.state)
    names = [candidate.name for candidate in found]
    if len(found) > 1:
        raise typer.BadParameter(
            f"the checkpoint fits {', '.join(names)}, which have the same tensors: name it with --model"
        )
    log(f"the only model with these tensors is {names[0]}")
    return found[0]


def _report(source: Path, checkpoint: Checkpoint, found: Match, output: Path | None) -> dict:
    fit = found.fit
    return {
        "checkpoint": str(source),
        "format": checkpoint.format,
        "entry": checkpoint.entry,
        "prefix": checkpoint.prefix,
        "model": found.name,
        "options": found.options,
        "tensors": len(fit.state),
        "values": sum(value.numel() for value in fit.state.values()),
        "renamed": fit.renamed,
        "reshaped": {key: {"checkpoint": a, "model": b} for key, (a, b) in fit.reshaped.items()},
        "cast": fit.cast,
        "filled": fit.filled,
        "output": None if output is None else str(output),
    }


def _print(report: dict) -> None:
    options = "".join(f", {name}={value}" for name, value in report["options"].items())
    rows = table(f"{report['checkpoint']} as {report['model']}{options}", "what", "tensors", "how")
    rows.columns[2].justify = "left"
    rows.add_row("read", str(report["tensors"] - len(report["filled"])), f"{report['format']} file")
    for what in ("entry", "prefix"):
        if report[what]:
            rows.add_row(f"{what} taken off", "", repr(report[what]))
    for rule, keys in report["renamed"].items():
        old, new = next(iter(keys.items()))
        rows.add_row("renamed", str(len(keys)), f"{rule}: {old} is {new}")
    for key, shapes in report["reshaped"].items():
        rows.add_row("reshaped", "1", f"{key}: {shapes['checkpoint']} to {shapes['model']}")
    for types, keys in report["cast"].items():
        rows.add_row("converted", str(len(keys)), types)
    if report["filled"]:
        rows.add_row("set to zero", str(len(report["filled"])), "num_batches_tracked, which older checkpoints lack")
    rows.add_row("loaded", str(report["tensors"]), f"{report['values']:,} values, every key and shape as the model's")
    stdout().print(rows)


def _refuse(source: Path, error: MismatchError, suggestion: str, json: bool) -> None:
    wrong = error.mismatches
    log(f"{source}: {error}{suggestion}")
    if json:
        mismatches = {
            "missing": wrong.missing,
            "unexpected": wrong.unexpected,
            "shapes": {key: {"checkpoint": got, "model": want} for key, (got, want) in wrong.shapes.items()},
            "dtypes": {key: {"checkpoint": got, "model": want} for key, (got, want) in wrong.dtypes.items()},
        }
        print_json({"checkpoint": str(source), "model": error.model, "mismatches": mismatches})


def _suggestion(name: str | None, checkpoint: Checkpoint) -> str:
    if name is None:
        return "\nno model fits; this is the one with the fewest mismatches"
    try:
        return f"\nit fits {', '.join(found.name for found in identify(checkpoint.state))}"
    except MismatchError:
        return ""


def _extension(output: Path | None) -> Path | None:
    if output is not None and output.suffix not in (".safetensors", ".pt", ".pth"):
        raise typer.BadParameter(f"expected a name that ends in .safetensors, .pt or .pth, but got {str(output)!r}")
    return existing_directory(output)


def convert(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .safetensors, .pt or .pth file.")],
    model: OptionalModel = None,
    output: Annotated[
        Path | None, typer.Option(callback=_extension, dir_okay=False, help="Write the model's state dict there.")
    ] = None,
    entry: Annotated[str | None, typer.Option(help="The entry of the file, where it has several state dicts.")] = None,
    json: Json = False,
) -> None:
    """Fit a checkpoint of torchvision's, timm's or a training script's to a model, strictly, and say what was mapped.

    Exit status 1, with the list of all mismatches, if it does not fit. Nothing in the file is executed.
    """
    try:
        read = read_checkpoint(checkpoint, entry)
    except CheckpointError as error:
        log(str(error))
        raise typer.Exit(1) from error
    try:
        found = _matched(model, read)
    except MismatchError as error:
        _refuse(checkpoint, error, _suggestion(model, read), json)
        raise typer.Exit(1) from error
    if output is not None:
        write_checkpoint(found.fit.state, output)
    report = _report(checkpoint, read, found, output)
    if json:
        print_json(report)
    else:
        _print(report)
        if output is not None:
            stdout().print(f"written: {output}", soft_wrap=True, markup=False)
