"""LeNet-5's own ops, sparse_conv2d (C3) and subsample2d (S2, S4), against their composition in stock PyTorch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, random_weight, sum_bounds
from bench._rows import Row, parametrize, rows
from bench._stock import dense_weight, subsample
from tests.cases import SPARSE, SUBSAMPLES
from tests.cases.geometry import pair

BOTH = ("channels_last", "contiguous")
WAYS = ("forward", "backward")


def run(row: Row, compare: Callable, op: str, layer: Layer, generator: torch.Generator) -> None:
    compare(forward(layer) if row.direction == "forward" else backward(layer, generator), row, op)


@parametrize(rows(SPARSE, (1, 16, 128), BOTH, WAYS), rows(SPARSE, directions=WAYS))
def test_sparse_conv2d(row, compare):
    case, generator = row.case, torch.Generator().manual_seed(0)
    kernel = pair(case.kernel_size)

    def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, dense_weight(weight, case.table, case.in_channels), bias)

    inputs = [
        random_input(case.input_shape(row.batch), row, generator),
        random_weight((case.links, *kernel), row, generator),
        random_weight((case.out_channels,), row, generator),
    ]
    positions = row.batch * math.prod(case.output_size)
    per_link = math.prod(kernel)
    terms = [case.out_channels * per_link, positions, positions]
    layer = Layer(
        fast=lambda x, weight, bias: F.sparse_conv2d(x, weight, bias, case.table),
        stock=stock,
        inputs=inputs,
        learned=[True] * 3,
        flops=2.0 * case.macs(row.batch),
        **sum_bounds(stock, [True] * 3, case.in_channels * per_link, terms, row.dtype),
    )
    run(row, compare, "sparse_conv2d", layer, generator)


@parametrize(rows(SUBSAMPLES, (1, 16, 128), BOTH, WAYS), rows(SUBSAMPLES[:1], directions=WAYS))
def test_subsample2d(row, compare):
    case, generator = row.case, torch.Generator().manual_seed(0)

    def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return subsample(x, weight, bias, case.kernel_size)

    inputs = [
        random_input(case.input_shape(row.batch), row, generator),
        random_weight((case.channels,), row, generator),
        random_weight((case.channels,), row, generator),
    ]
    window = math.prod(pair(case.kernel_size))
    positions = row.batch * math.prod(n // k for n, k in zip(pair(case.size), pair(case.kernel_size)))
    layer = Layer(
        fast=lambda x, weight, bias: F.subsample2d(x, weight, bias, case.kernel_size),
        stock=stock,
        inputs=inputs,
        learned=[True] * 3,
        **sum_bounds(stock, [True] * 3, window, [1, positions * window, positions], row.dtype),
    )
    run(row, compare, "subsample2d", layer, generator)
