"""`fastcnn summary`: what does each layer of a network cost?"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastcnn.models import get_model
from fastcnn.models.summary import summarize
from fastcnn.models.summary_page import render
from fastcnn.models.verify import example_batch

from ._arguments import Json, Model, existing_directory, sizes
from ._output import log, print_json, stdout, table


def summary(
    model: Model,
    input: Annotated[str | None, typer.Option(help="Input sizes N,C,H,W; by default the model's own.")] = None,
    html: Annotated[
        Path | None, typer.Option(callback=existing_directory, dir_okay=False, help="Write an HTML page there.")
    ] = None,
    json: Json = False,
) -> None:
    """Print layer by layer: output, activations, bytes, parameters, multiply-adds, receptive field; and the totals."""
    shape = sizes(input) if input else tuple(example_batch(model, 1)[0].shape)
    with torch.device("meta"):
        network = get_model(model)
    try:
        result = summarize(network, shape, model)
    except RuntimeError as error:  # input that does not fit
        raise typer.BadParameter(str(error)) from error
    if html is not None:
        html.write_text(render(result, network), encoding="utf-8")
        log(f"written: {html.resolve()}")
    if json:
        print_json(result.to_dict())
        return
    rows = table(
        f"{model}, input {'x'.join(map(str, shape[1:]))}",
        "layer", "type", "output", "activations", "MB", "parameters", "MACs", "field",
    )  # fmt: skip
    for layer in result.layers:
        rows.add_row(
            layer.name, layer.type, "x".join(map(str, layer.output)), f"{layer.activations:,}",
            f"{layer.bytes / 1e6:.3f}", f"{layer.parameters:,}", f"{layer.macs:,}",
            "all" if layer.receptive_field is None else str(layer.receptive_field),
        )  # fmt: skip
    stdout().print(rows)
    stdout().print(
        f"parameters {result.parameters:,}; MACs {result.macs:,} (FLOPs {2 * result.macs:,}); activations "
        f"{result.activations:,} ({result.activation_bytes / 1e6:.2f} MB, twice that with gradients); "
        f"depth {result.depth} (convolutions and linear layers on the longest path)",
        soft_wrap=True,
    )
