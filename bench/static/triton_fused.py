"""The variants of Triton's kernels that no named layer alone launches: statistics, normalization on load, residuals,
branches side by side. Compiled and checked for spills and instructions; without bounds."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from fastcnn.kernels import MISSING  # noqa: F401  registers the ops
from torch import Tensor

from tests.cases import find

from .triton_launch import Launch, launches
from .triton_layers import Layer, tensors

# Whose statistics training takes: narrow and wide 1x1 convolutions, a strided one, one whose sum is split, and groups.
NORMALIZED = ("layer1.0.conv1", "layer3.0.conv3", "layer2.0.downsample", "layer4.1.conv1")
GROUPED = ("layer1.0.conv2", "layer4.1.conv2")
INCEPTION = (64, 96, 16)  # the 1x1 convolutions that read GoogLeNet's module 3a's input of 192 channels


def calls(dtype: torch.dtype, tf32: bool) -> Iterator[Callable[[], object]]:
    ops = torch.ops.fastcnn

    def maps(channels: int, side: int) -> Tensor:
        return torch.empty(128, channels, side, side, dtype=dtype, memory_format=torch.channels_last)

    for name in NORMALIZED:
        case = find(f"resnet50.{name}")
        x, weight, y = tensors(Layer(case, dtype, 128))
        stride, per_output = [case.stride] * 2, torch.empty(case.out_channels)
        yield lambda x=x, w=weight, s=stride: ops.pointwise_conv2d_stats(x, w, None, None, None, s, tf32)
        yield lambda x=x, w=weight, s=stride, y=y, v=per_output: ops.pointwise_conv2d(
            x, w, v, v, y, None, None, s, True, tf32
        )
    for name in GROUPED:
        case = find(f"resnext50.{name}")
        x, weight, _ = tensors(Layer(case, dtype, 128))
        geometry = ([case.stride] * 2, [case.padding] * 2, [1, 1], case.groups)
        yield lambda x=x, w=weight, g=geometry: ops.grouped_conv2d_stats(x, w, *g, tf32)
    before = torch.empty(256)  # DenseNet-121's first transition: normalization and ReLU stand in front
    half = torch.empty(128, 256, 1, 1, dtype=dtype)
    x = maps(256, 56)
    yield lambda: ops.pointwise_conv2d(x, half, None, None, None, before, before, [1, 1], False, tf32)
    yield lambda: ops.pointwise_conv2d_stats(x, half, None, before, before, [1, 1], tf32)
    module = maps(192, 28)
    weights = [torch.empty(n, 192, 1, 1, dtype=dtype) for n in INCEPTION]
    biases, ys = [torch.empty(n, dtype=dtype) for n in INCEPTION], [maps(n, 28) for n in INCEPTION]
    yield lambda: ops.pointwise_conv2d_siblings(module, weights, biases, True, tf32)
    yield lambda: ops.pointwise_conv2d_siblings_cat(module, weights, biases, True, tf32)
    yield lambda: ops.pointwise_conv2d_siblings_backward_input(ys, weights, ys, tf32)
    sums = torch.empty(64)
    yield lambda: ops.pointwise_conv2d_backward_reduce(ys[0], ys[0], ys[0], sums, sums)


def started(processors: int) -> list[Launch]:
    """What the calls launch, in bfloat16 and TF32."""
    types = ((torch.bfloat16, False), (torch.float32, True))
    return [without_data(each) for kind in types for call in calls(*kind) for each in launches(call, processors)]


def without_data(launch: Launch) -> Launch:
    """The launch with tensors of its types and alignments, but no memory: a process that holds the address space of all
    of them cannot fork its compilers."""

    def stand_in(t: Tensor) -> Tensor:
        offset = t.storage_offset()
        return torch.empty(offset, dtype=t.dtype)[offset:]

    arguments = {k: stand_in(v) if isinstance(v, Tensor) else v for k, v in launch.arguments.items()}
    return replace(launch, arguments=arguments)
