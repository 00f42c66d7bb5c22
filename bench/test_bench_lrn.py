"""local_response_norm, alone and with max pooling, on layers of four networks, against torch's own composition."""

from dataclasses import replace

import torch
import torch.nn.functional as TF

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, relative_bound
from bench._rows import Row, parametrize, rows
from tests.cases import LRNS, LRNCase, find

BOTH = ("channels_last", "contiguous")
WAYS = ("forward", "backward")
FULL = [
    *rows(LRNS, (1, 16), BOTH, WAYS),
    *rows([find("zfnet.lrn1")], (16,), BOTH, WAYS, torch.float16),
]
SMOKE = rows([find("alexnet.lrn2")], (1,), BOTH, WAYS)


def stock_lrn(x: torch.Tensor, case: LRNCase) -> torch.Tensor:
    """The same formula in stock PyTorch: its alpha is divided by the window, and towers are normalised one by one."""
    if x.dtype == torch.float16 and x.is_cpu:  # which torch's composition does not take on the CPU
        return stock_lrn(x.float(), case).half()
    alpha = case.alpha * case.window if case.alpha_mode == "sum" else case.alpha
    towers = [
        torch.nn.functional.local_response_norm(tower, case.window, alpha, case.beta, case.k)
        for tower in x.chunk(case.groups, 1)
    ]
    return towers[0] if len(towers) == 1 else torch.cat(towers, 1)


def layer(row: Row, generator: torch.Generator) -> Layer:
    case = row.case
    # Squares, their sum, alpha and k give the base a relative error of window + 4 roundings; the power multiplies that
    # by beta and adds the error of two rsqrt with a Newton step each (4.5 roundings together) and two products.
    steps = case.beta * (case.window + 4) + 8

    def stock(x):
        return stock_lrn(x, case)

    def grad_bounds(inputs, grad, expected):
        # dx = g*s^-beta - 2*alpha*beta*x*sum(g*x*s^(-beta-1)): on absolute values the terms' magnitudes, subtracted.
        x, g = inputs[0].abs().requires_grad_(), grad.abs()
        y = stock(x)
        (difference,) = torch.autograd.grad(y, x, g)
        magnitude = 2 * g * (y / x).detach() - difference
        # The second term has one more power of s, a sum over the window and three more products.
        return [relative_bound(2 * steps + case.window + 3, magnitude, expected[0], row.dtype)]

    x = random_input(case.input_shape(row.batch), row, generator)
    return Layer(
        fast=lambda x: F.local_response_norm(x, **case.kwargs),
        stock=stock,
        inputs=[x.masked_fill(x == 0, 1.0)],  # the bound above divides by x
        learned=[True],
        bound=lambda inputs, expected: relative_bound(steps, expected.abs(), expected, row.dtype),
        grad_bounds=grad_bounds,
    )


@parametrize(FULL, SMOKE)
def test_local_response_norm(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = layer(row, generator)
    comparison = forward(built) if row.direction == "forward" else backward(built, generator)
    compare(comparison, row, "local_response_norm")


POOLED = [find(name) for name in ("alexnet.lrn1", "alexnet.lrn2", "zfnet.lrn1", "zfnet.lrn2")]


def tied(y: torch.Tensor) -> torch.Tensor:
    """Which 3x3 windows hold two values within rounding, so that either may be their maximum."""
    first, second = y.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4).topk(2).values.unbind(-1)
    return first - second < 1e-5 * first.abs()


def pooled_layer(row: Row, generator: torch.Generator) -> Layer:
    norm = layer(row, generator)

    def grad_bounds(inputs, grad, expected):
        y = norm.stock(*inputs).requires_grad_()
        (unpooled,) = torch.autograd.grad(TF.max_pool2d(y, 3, 2), y, grad.abs())
        # A window's values, and the channels that these normalise, may have another gradient where it has a tie.
        windows = tied(y.detach()).double().flatten(0, 1).unsqueeze(1)
        ties = TF.conv_transpose2d(windows, torch.ones(1, 1, 3, 3, dtype=torch.float64, device=grad.device), stride=2)
        ties = TF.max_pool3d(ties.view_as(y), (row.case.window, 1, 1), 1, (row.case.window // 2, 0, 0))
        (bound,) = norm.grad_bounds(inputs, unpooled, expected)
        # The gradients of up to four windows are added: three roundings more, of some forty.
        return [torch.where(ties > 0, torch.inf, 1.1 * bound)]

    return replace(
        norm,
        fast=lambda x: F.lrn_max_pool2d(x, **row.case.kwargs),
        stock=lambda x: TF.max_pool2d(norm.stock(x), 3, 2),
        # A maximum moves by no more than the values of its window.
        bound=lambda inputs, expected: TF.max_pool2d(norm.bound(inputs, norm.stock(*inputs)), 3, 2),
        grad_bounds=grad_bounds,
    )


@parametrize(rows(POOLED, (1, 16), BOTH, WAYS), SMOKE)
def test_lrn_max_pool2d(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = pooled_layer(row, generator)
    comparison = forward(built) if row.direction == "forward" else backward(built, generator)
    compare(comparison, row, "lrn_max_pool2d")
