"""conv2d on the convolutions of published networks, against torch.nn.functional.conv2d (oneDNN)."""

import math

import torch

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, random_weight, sum_bounds
from bench._rows import Row, parametrize, rows
from tests.cases import (
    ALEXNET,
    ALEXNET_OWT,
    DEEPLAB,
    GOOGLENET,
    INCEPTION_V3,
    LENET5,
    MOBILENET,
    RESNET50,
    RESNEXT50,
    VGG16,
    ConvCase,
    find,
)

BOTH = ("channels_last", "contiguous")
FULL = [
    *rows((*ALEXNET, *RESNET50), (1, 16), BOTH),
    *rows(VGG16, (1, 16)),
    *rows(VGG16, (1,), ("contiguous",)),
    *rows((*RESNEXT50, *MOBILENET), (1, 16)),
    *rows((*RESNEXT50, *MOBILENET), (1,), ("contiguous",)),
    *rows((*ALEXNET_OWT, *GOOGLENET, *INCEPTION_V3, *LENET5, *DEEPLAB)),
    *rows((*ALEXNET, *RESNET50, *RESNEXT50, *MOBILENET), (16,), directions=("backward",)),
    *rows(VGG16, directions=("backward",)),
    *rows(ALEXNET, (16,), ("contiguous",), ("backward",)),
    *rows(RESNET50[1:], (16,), directions=("input_gradient", "weight_gradient")),  # the 1x1 and 3x3 layers
    *rows((*ALEXNET, *VGG16, *RESNET50), dtype=torch.float16),
    *rows((*ALEXNET, *VGG16, *RESNET50), dtype=torch.bfloat16),
    *rows(
        map(find, ("alexnet.conv3", "vgg16.conv3_2", "resnet50.layer1.0.conv2", "resnet50.layer3.1.conv1")),
        directions=("backward",),
        dtype=torch.float16,
    ),
]
SMOKE = [
    *rows([find("alexnet.conv3")], directions=("forward", "backward")),
    *rows([find("resnet50.layer4.1.conv2")], directions=("input_gradient", "weight_gradient")),
    Row(find("alexnet.conv1"), layout="contiguous"),
    Row(find("resnext50.layer2.1.conv2")),
    Row(find("mobilenet.dw256_28_s1")),
    Row(find("resnet50.layer4.1.conv2"), dtype=torch.float16),
]


def kind(case: ConvCase) -> str:
    if case.in_channels <= 4:
        return "first layer"
    if case.depthwise:
        return "depthwise"
    return "grouped" if case.groups > 2 else "dense"  # AlexNet's two towers count as dense


def layer(row: Row, generator: torch.Generator) -> Layer:
    case, batch = row.case, row.batch
    inputs = [
        random_input(case.input_shape(batch), row, generator),
        random_weight(case.weight_shape, row, generator),
    ]
    if case.bias:
        inputs.append(random_weight((case.out_channels,), row, generator))
    if row.direction.endswith("_gradient"):
        learned = [row.direction == "input_gradient", row.direction == "weight_gradient", *(False for _ in inputs[2:])]
    else:  # nobody asks for the gradient of the image
        learned = [case.in_channels > 4, *(True for _ in inputs[1:])]

    def stock(*tensors):
        return torch.nn.functional.conv2d(*tensors, **case.kwargs)

    out, per_group, kh, kw = case.weight_shape
    positions = batch * math.prod(case.output_size)
    grad_terms = [out // case.groups * kh * kw, positions, positions]
    return Layer(
        fast=lambda *tensors: F.conv2d(*tensors, **case.kwargs),
        stock=stock,
        inputs=inputs,
        learned=learned,
        # A depthwise layer does so little with each value that memory sets its limit.
        flops=0.0 if case.depthwise else 2.0 * case.macs(batch),
        **sum_bounds(
            stock,
            learned,
            per_group * kh * kw,
            [n for n, wanted in zip(grad_terms, learned) if wanted],
            row.dtype,
        ),
    )


@parametrize(FULL, SMOKE)
def test_conv2d(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = layer(row, generator)
    comparison = forward(built) if row.direction == "forward" else backward(built, generator)
    compare(comparison, row, "conv2d", f"conv2d {kind(row.case)}")
