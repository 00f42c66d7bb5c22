"""What a call costs when there is nothing to compute: nn.Conv2d on a 1x1x8x8 input."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastcnn.nn
from bench._gate import UNIT_ROUNDOFF
from bench._layer import Comparison
from bench._rows import Row
from tests.cases import ConvCase

CASE = ConvCase("overhead.1x1x8x8", 1, 1, 8, 3, padding=1)


@pytest.mark.overhead
@pytest.mark.parametrize("how", ["no_grad", "with gradients", "with gradients and backward"])
def test_call_overhead(how, compare):
    torch.manual_seed(0)
    x = torch.randn(CASE.input_shape())
    stock = nn.Conv2d(1, 1, 3, padding=1)
    fast = fastcnn.nn.Conv2d(1, 1, 3, padding=1)
    fast.load_state_dict(stock.state_dict())
    gradients = how != "no_grad"
    x.requires_grad_(gradients)
    ones = torch.ones(CASE.output_shape())

    def call(module: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        if how != "with gradients and backward":
            return lambda: (module(x),)
        wanted = (x, module.weight, module.bias)
        return lambda: torch.autograd.grad(module(x), wanted, ones)

    def outputs(tensors: list[Tensor], of: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        values = [of(t.detach().double()).requires_grad_() for t in tensors]
        y = torch.nn.functional.conv2d(*values, **CASE.kwargs)
        return (y.detach(),) if how != "with gradients and backward" else torch.autograd.grad(y, values, ones.double())

    tensors = [x, stock.weight, stock.bias]
    with torch.enable_grad():
        expected = outputs(tensors, lambda t: t)
        absolute = outputs(tensors, torch.abs)
    # 64 positions add up in the gradients, 9 weights in the output.
    worst_case = (math.prod(CASE.output_size) + 2) * UNIT_ROUNDOFF[torch.float32]
    bounds = [worst_case * a for a in absolute]
    comparison = Comparison(call(fast), call(stock), expected, bounds, torch.float32, gradients=gradients)
    compare(comparison, Row(CASE, layout="contiguous", direction=how), "call overhead")
