"""local_response_norm on layers of AlexNet, ZFNet, GoogLeNet and VGG-11, against torch's own composition."""

import torch

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
    if x.dtype == torch.float16:  # which torch's composition does not take on the CPU
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
