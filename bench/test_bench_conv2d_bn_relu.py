"""conv2d_bn_relu in training, forward and backward, on ResNet-50's layers, against torch's three functions."""

import torch
import torch.nn.functional as TF
from torch import Tensor

import fastcnn.functional as F
from bench._gate import UNIT_ROUNDOFF
from bench._layer import Comparison, Outputs, random_input, random_weight
from bench._rows import Row, parametrize, rows
from tests.cases import RESNET50, find


def stock(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, args: dict) -> Tensor:
    return TF.batch_norm(TF.conv2d(x, weight, None, **args), None, None, gamma, beta, training=True).relu_()


def fast(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, args: dict) -> Tensor:
    return F.conv2d_bn_relu(x, weight, None, None, None, gamma, beta, **args, training=True)


def comparison(row: Row, generator: torch.Generator) -> Comparison:
    case = row.case
    tensors = [
        random_input(case.input_shape(row.batch), row, generator),
        random_weight(case.weight_shape, row, generator).detach(),
        torch.rand(case.out_channels, generator=generator) + 0.5,
        torch.randn(case.out_channels, generator=generator),
    ]
    wanted = slice(0 if case.in_channels > 4 else 1, None)  # nobody asks for the gradient of the image

    def both_ways(function, tensors: Outputs, grad: Tensor) -> Outputs:
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves, case.kwargs)
        return (y.detach(), *torch.autograd.grad(y, leaves[wanted], grad))

    exact = [t.double() for t in tensors]
    z = TF.conv2d(exact[0], exact[1], None, **case.kwargs)
    u = TF.batch_norm(z, None, None, *exact[2:], training=True)
    grad = torch.randn(u.shape, generator=generator).to(memory_format=torch.channels_last)
    grad = torch.where(u.abs() < 1e-4, 0, grad)  # there, either sign of ReLU's input is right
    expected = both_ways(stock, exact, grad.double())
    # The batch's statistics carry every value's rounding to all: stock's own error is the yardstick, as for networks.
    bounds = [
        8 * (mine - want).abs().max() + 16 * UNIT_ROUNDOFF[torch.float32] * want.abs().max()
        for mine, want in zip(both_ways(stock, tensors, grad), expected)
    ]
    return Comparison(
        lambda: both_ways(fast, tensors, grad),
        lambda: both_ways(stock, tensors, grad),
        expected,
        bounds,
        row.dtype,
        flops=2.0 * case.macs(row.batch) * (3 if case.in_channels > 4 else 2),
        gradients=True,
    )


@parametrize(
    rows(RESNET50, (16,), directions=("training",)),
    rows([find("resnet50.layer4.1.conv2")], (2,), directions=("training",)),
)
def test_conv2d_bn_relu(row, compare):
    with torch.enable_grad():
        built = comparison(row, torch.Generator().manual_seed(0))
    compare(built, row, "conv2d_bn_relu")
