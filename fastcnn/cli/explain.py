"""`fastcnn explain`: which kernel would run, and why?"""

from typing import Annotated

import torch
import typer

import fastcnn
from fastcnn import nn as fnn
from fastcnn.models import get_model, list_models
from fastcnn.models.verify import example_batch

from ._arguments import Json, sizes
from ._output import print_json, stdout

OPS = (
    "conv2d", "conv2d_bn_relu", "conv_transpose2d", "local_conv2d", "max_pool2d", "avg_pool2d", "local_response_norm",
    "lrn_max_pool2d",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def explain(
    what: Annotated[str, typer.Argument(help=f"A model, or {', '.join(OPS)}.")],
    input: Annotated[str | None, typer.Option(help="Input sizes N,C,H,W; a model has its own.")] = None,
    out_channels: Annotated[int | None, typer.Option(min=1, help="As many as the input's if not given.")] = None,
    kernel_size: Annotated[int, typer.Option("--kernel", min=1, help="Kernel, window or number of channels.")] = 3,
    stride: Annotated[int, typer.Option(min=1)] = 1,
    padding: Annotated[int, typer.Option(min=0)] = 0,
    dilation: Annotated[int, typer.Option(min=1)] = 1,
    groups: Annotated[int, typer.Option(min=1)] = 1,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda; for cuda no GPU is needed.")] = "cpu",
    json: Json = False,
) -> None:
    """Print which kernel runs for a model's layers or for one op, with which tile, and why."""
    if dtype not in DTYPES:
        raise typer.BadParameter(f"expected dtype to be one of {', '.join(DTYPES)}, but got {dtype!r}")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected device to be cpu or cuda, but got {device!r}")
    module: torch.nn.Module
    if what in list_models():
        shape = sizes(input) if input else tuple(example_batch(what, 1)[0].shape)
        module = get_model(what)
    elif what in OPS:
        if input is None or len(sizes(input)) != 4:
            raise typer.BadParameter(f"{what} needs --input N,C,H,W, such as --input 1,96,27,27")
        shape = sizes(input)
        channels = shape[1]
        window = (kernel_size, stride, padding, dilation)
        try:
            if what == "conv2d":
                module = fnn.Conv2d(channels, out_channels or channels, *window, groups)
            elif what == "conv2d_bn_relu":
                module = fnn.ConvBNReLU2d(channels, out_channels or channels, *window, groups)
            elif what == "conv_transpose2d":
                outputs = out_channels or channels
                module = fnn.ConvTranspose2d(
                    channels, outputs, kernel_size, stride, padding, groups=groups, dilation=dilation
                )
            elif what == "local_conv2d":
                module = fnn.LocallyConnected2d(
                    channels, out_channels or channels, kernel_size, shape[2:], stride, padding, dilation
                )
            elif what == "lrn_max_pool2d":
                module = fnn.LRNMaxPool2d(
                    5, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups
                )
            elif what == "max_pool2d":
                module = fnn.MaxPool2d(*window)
            elif what == "avg_pool2d":
                module = fnn.AvgPool2d(kernel_size, stride, padding)
            else:
                module = fnn.LocalResponseNorm(kernel_size, groups=groups)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    else:
        expected = ", ".join([*list_models(), *OPS])
        raise typer.BadParameter(f"expected a model or an op ({expected}), but got {what!r}")
    try:
        explanation = fastcnn.explain(module.to(DTYPES[dtype]), shape, dtype=DTYPES[dtype], device=device)
    except RuntimeError as error:  # input that does not fit
        raise typer.BadParameter(str(error)) from error
    if json:
        print_json(explanation.to_dict())
    else:
        stdout().print(str(explanation), markup=False, soft_wrap=True)
