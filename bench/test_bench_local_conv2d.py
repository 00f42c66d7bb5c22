"""local_conv2d on cuda-convnet's locally connected layers, against unfolding and a product per position."""

import math

import torch
from torch import Tensor

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, sum_bounds
from bench._rows import Row, parametrize, rows
from tests.cases import ConvCase

LAYERS = [
    ConvCase("conv_local_13pct.local3", 64, 32, 8, 3, padding=1),
    ConvCase("conv_local_13pct.local4", 32, 32, 8, 3, padding=1),
]
WAYS = ("forward", "backward")


def layer(row: Row, generator: torch.Generator) -> Layer:
    case, batch = row.case, row.batch
    fan_in = math.prod(case.weight_shape[1:])
    weight = torch.randn(*case.output_size, *case.weight_shape, generator=generator) * fan_in**-0.5
    bias = torch.randn(case.out_channels, *case.output_size, generator=generator)
    inputs = [
        random_input(case.input_shape(batch), row, generator),
        *(torch.nn.Parameter(t.to(row.dtype)) for t in (weight, bias)),
    ]

    def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        columns = torch.nn.functional.unfold(x, case.kernel_size, padding=case.padding)
        y = torch.einsum("nkp,pok->nop", columns, weight.flatten(0, 1).flatten(2))
        return y.unflatten(2, case.output_size) + bias

    return Layer(
        fast=lambda x, weight, bias: F.local_conv2d(x, weight, bias, case.stride, case.padding),
        stock=stock,
        inputs=inputs,
        learned=[True] * 3,
        **sum_bounds(stock, [True] * 3, fan_in, [fan_in * case.out_channels // case.in_channels, batch, batch],
                     row.dtype),
    )  # fmt: skip


@parametrize(rows(LAYERS, (1, 16, 128), directions=WAYS), rows(LAYERS[1:], directions=WAYS))
def test_local_conv2d(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = layer(row, generator)
    comparison = forward(built) if row.direction == "forward" else backward(built, generator)
    compare(comparison, row, "local_conv2d")
