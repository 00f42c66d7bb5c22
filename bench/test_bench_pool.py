"""Max pooling and its inverse, average and adaptive average pooling on published layers, against torch's."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, relative_bound, sum_bounds
from bench._rows import Row, parametrize, rows
from tests.cases import ADAPTIVE_POOLS, AVG_POOLS, POOLS, PoolCase, find
from tests.cases.geometry import pair

BOTH = ("channels_last", "contiguous")
WAYS = ("forward", "backward")
MAX_FULL = [
    *rows(POOLS, (1, 16), BOTH),
    *rows(POOLS, (16,), BOTH, ("backward",)),
    *rows([find("alexnet.pool1"), find("googlenet.pool2")], (16,), BOTH, dtype=torch.float16),
]
MAX_SMOKE = [*rows([find("alexnet.pool1")], (1,), BOTH), Row(find("alexnet.pool1"), direction="backward")]
UNPOOL_FULL = rows(map(find, ("alexnet.pool1", "zfnet.pool1", "vgg16.pool3")), (1, 16), BOTH, WAYS)
UNPOOL_SMOKE = rows([find("alexnet.pool2")], (1,), BOTH, WAYS)
AVG_FULL = rows(AVG_POOLS, (1, 16), BOTH, WAYS)
AVG_SMOKE = rows([find("densenet121.transition3")], directions=WAYS)
ADAPTIVE_FULL = rows(ADAPTIVE_POOLS, (1, 16), BOTH, WAYS)
ADAPTIVE_SMOKE = rows([find("resnet18.avgpool")], directions=WAYS)


def windows_over_one_element(case: PoolCase) -> int:
    return math.prod(-(-k // s) for k, s in zip(pair(case.kernel_size), pair(case.stride)))


def run(row: Row, compare: Callable, op: str, fast: Callable, stock: Callable, bounds: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [random_input(row.case.input_shape(row.batch), row, generator)]
    layer = Layer(fast=fast, stock=stock, inputs=inputs, learned=[True], **bounds)
    comparison = forward(layer) if row.direction == "forward" else backward(layer, generator, reads_input=False)
    compare(comparison, row, op)


def max_pool_layer(row: Row, generator: torch.Generator) -> Layer:
    args = row.case.kwargs

    def stock(x: Tensor) -> Tensor:
        return torch.nn.functional.max_pool2d(x, **args)

    def grad_bounds(inputs, grad, expected):
        # The maximum of several windows gets the sum of their gradients.
        leaf = inputs[0].detach().requires_grad_()
        (scale,) = torch.autograd.grad(stock(leaf), leaf, grad.abs())
        return [relative_bound(windows_over_one_element(row.case), scale, expected[0], row.dtype)]

    return Layer(
        fast=lambda x: F.max_pool2d(x, **args),
        stock=stock,
        inputs=[random_input(row.case.input_shape(row.batch), row, generator)],
        learned=[True],
        bound=lambda inputs, expected: torch.zeros(()),  # a maximum is exact
        grad_bounds=grad_bounds,
    )


@parametrize(MAX_FULL, MAX_SMOKE)
def test_max_pool2d(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = max_pool_layer(row, generator)
    forth = row.direction == "forward"
    compare(forward(built) if forth else backward(built, generator, reads_input=False), row, "max_pool2d")


@parametrize(UNPOOL_FULL, UNPOOL_SMOKE)
def test_max_unpool2d(row, compare):
    case, generator = row.case, torch.Generator().manual_seed(0)
    x = random_input(case.input_shape(row.batch), row, generator)
    pooled, places = torch.nn.functional.max_pool2d(x, **case.kwargs, return_indices=True)
    args = {name: case.kwargs[name] for name in ("kernel_size", "stride", "padding")}
    args["output_size"] = pair(case.size)
    exact = lambda *tensors: torch.zeros(())  # values are copied
    layer = Layer(
        fast=lambda y: F.max_unpool2d(y, places, **args),
        stock=lambda y: torch.nn.functional.max_unpool2d(y, places, **args),
        inputs=[pooled],
        learned=[True],
        bound=exact,
        grad_bounds=lambda *tensors: [exact()],
    )
    built = forward(layer) if row.direction == "forward" else backward(layer, generator, reads_input=False)
    compare(replace(built, moved=built.moved + places.nbytes), row, "max_unpool2d")


@parametrize(AVG_FULL, AVG_SMOKE)
def test_avg_pool2d(row, compare):
    args = row.case.kwargs

    def stock(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, **args)

    terms = math.prod(pair(row.case.kernel_size))
    bounds = sum_bounds(stock, [True], terms, [windows_over_one_element(row.case)], row.dtype)
    run(row, compare, "avg_pool2d", lambda x: F.avg_pool2d(x, **args), stock, bounds)


@parametrize(ADAPTIVE_FULL, ADAPTIVE_SMOKE)
def test_adaptive_avg_pool2d(row, compare):
    size = row.case.output_size

    def stock(x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, size)

    terms = math.prod(-(-n // m) + 1 for n, m in zip(pair(row.case.size), pair(size)))
    # Neighbouring windows overlap by at most one row and one column: an element lies in four at most.
    bounds = sum_bounds(stock, [True], terms, [4], row.dtype)
    run(row, compare, "adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, size), stock, bounds)
