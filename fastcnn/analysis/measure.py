"""What is computed about the networks: per-layer figures, receptive fields by gradients, shares, connections, modules.

Networks are built on the meta device: their shapes and counts exist, their values do not.
"""

import functools
import math
from functools import partial

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn
from fastcnn.models import get_model
from fastcnn.models.googlenet import Inception
from fastcnn.models.inception_v4 import Branches
from fastcnn.models.layers import record_calls
from fastcnn.models.summary import Layer, Summary, summarize
from fastcnn.models.verify import example_batch


@functools.cache
def network(name: str, **options) -> nn.Module:
    """The network, on the meta device and in evaluation mode; not to be changed."""
    with torch.device("meta"):
        return get_model(name, **options).eval()


@functools.cache
def input_size(name: str) -> tuple[int, ...]:
    """The input of one image that the network takes by default, batch first."""
    return tuple(example_batch(name, 1)[0].shape)


@functools.cache
def summary(name: str, **options) -> Summary:
    return summarize(network(name, **options), input_size(name), name)


def layers(name: str, **options) -> dict[str, Layer]:
    return {layer.name: layer for layer in summary(name, **options).layers}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weights(module: nn.Module) -> int:
    """Of all convolutions and linear layers, without biases."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))


def parameter_shares(name: str) -> dict[str, float]:
    """Each layer's part of the network's parameters."""
    figures = summary(name)
    return {layer.name: layer.parameters / figures.parameters for layer in figures.layers if layer.parameters}


def output_size(layer: nn.Module, *size: int) -> tuple[int, ...]:
    """The output, without the batch, for one image of `size`."""
    with torch.no_grad():
        return tuple(layer.to("meta")(torch.empty(1, *size, device="meta")).shape[1:])


def _geometry(layer: nn.Module) -> nn.Module | None:
    """A layer on one channel whose every output depends on every input in its window; None if the windows are 1x1."""
    if isinstance(layer, nn.Conv2d):
        twin = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)  # type: ignore[arg-type]
        nn.init.constant_(twin.weight, 1 / twin.weight.numel())
        return twin.double()
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    return None


def gradient_support(chain: nn.Sequential, size: int) -> int:
    """The rows of the input, size x size, on which the middle output of the chain depends, found by its gradient."""
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    y = chain(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].any(1).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1


def receptive_field(name: str, last: str) -> int:
    """gradient_support of a network without branches, from the input to the layer `last`."""
    model, shape = network(name), input_size(name)
    with torch.no_grad(), record_calls(model) as calls:
        model(torch.empty(shape, device="meta"))
    names = [call.name for call in calls]
    if last not in names:
        raise ValueError(f"receptive_field: expected last to be a layer of {name}, but got {last!r}")
    chain = [twin for call in calls[: names.index(last) + 1] if (twin := _geometry(call.module)) is not None]
    return gradient_support(nn.Sequential(*chain), shape[-1])


def stack(channels: int, *kernels: int | tuple[int, int]) -> nn.Sequential:
    """Convolutions one after the other, as wide as their input, without biases or padding."""
    return nn.Sequential(*(fnn.Conv2d(channels, channels, kernel, bias=False) for kernel in kernels))


def stacked_field(*kernels: int) -> int:
    """gradient_support of such a stack."""
    twins = [_geometry(layer) for layer in stack(1, *kernels)]
    return gradient_support(nn.Sequential(*(twin for twin in twins if twin is not None)), 1 + 2 * sum(kernels))


INCEPTION_INPUT = (256, 28, 28)  # of the lecture notes' example


def naive_inception() -> Branches:
    """1x1, 3x3, 5x5 convolutions and pooling side by side, all on the whole input."""
    with torch.device("meta"):
        return Branches(
            fnn.Conv2d(256, 128, 1, bias=False),
            fnn.Conv2d(256, 192, 3, padding=1, bias=False),
            fnn.Conv2d(256, 96, 5, padding=2, bias=False),
            fnn.MaxPool2d(3, 1, padding=1),
        )


def bottleneck_inception() -> Inception:
    """The same widths behind 1x1 convolutions to 64 channels; another one follows the pooling."""
    with torch.device("meta"):
        return Inception(256, 128, 64, 192, 64, 96, 64, block=partial(fnn.Conv2d, bias=False), large_kernel=5)


def inception_macs(module: nn.Module) -> list[int]:
    """Multiply-adds of each convolution of a module on INCEPTION_INPUT, in the order of their calls."""
    return [layer.macs for layer in summarize(module, (1, *INCEPTION_INPUT)).layers if layer.macs]


def connections(name: str) -> int:
    """Of LeNet-5: the inputs, with the bias, of all outputs; a code of the RBF layer has one for each feature."""
    total = 0
    for layer in summary(name).layers:
        module = network(name).get_submodule(layer.name)
        positions = math.prod(layer.output[1:])
        if isinstance(module, fnn.Subsample2d):
            total += layer.activations * (math.prod(module.kernel_size) + 1)
        elif layer.parameters:
            total += layer.parameters * positions
        elif isinstance(codes := getattr(module, "weight", None), Tensor):
            total += codes.numel()
    return total


def convolution_rows(name: str) -> list[tuple[nn.Conv2d, int, int]]:
    """Each convolution with the rows of its input and of its output."""
    model, shape = network(name), input_size(name)
    with torch.no_grad(), record_calls(model) as calls:
        model(torch.empty(shape, device="meta"))
    return [
        (call.module, call.input.shape[2], call.output.shape[2]) for call in calls if isinstance(call.module, nn.Conv2d)
    ]
