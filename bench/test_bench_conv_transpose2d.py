"""conv_transpose2d as the adjoint of strided layers, and ZFNet's deconvolution, against torch's (oneDNN)."""

import math

import torch

import fastcnn.functional as F
from bench._layer import Layer, backward, forward, random_input, random_weight, sum_bounds
from bench._rows import Row, parametrize, rows
from tests.cases import ConvCase, find
from tests.cases.geometry import pair

# Named after the convolution whose output they take back to its input's size.
LAYERS = [
    ConvCase("zfnet.conv1", 3, 96, 224, 7, stride=2, padding=1, bias=False),
    *map(find, ("alexnet.conv2", "vgg16.conv3_2", "resnet50.layer2.0.conv2", "resnet50.layer3.0.downsample")),
]
WAYS = ("forward", "backward")


def layer(row: Row, generator: torch.Generator) -> Layer:
    case, batch = row.case, row.batch
    along = zip(*(pair(v) for v in (case.size, case.kernel_size, case.stride, case.padding)), case.output_size)
    extra = tuple(n - ((out - 1) * s - 2 * p + k) for n, k, s, p, out in along)
    args = {**case.kwargs, "output_padding": extra}
    inputs = [
        random_input(case.output_shape(batch), row, generator),
        random_weight(case.weight_shape, row, generator),
    ]

    def stock(x, weight):
        return torch.nn.functional.conv_transpose2d(x, weight, **args)

    out, per_group, kh, kw = case.weight_shape
    terms = [per_group * kh * kw, batch * math.prod(case.output_size)]
    return Layer(
        fast=lambda x, weight: F.conv_transpose2d(x, weight, **args),
        stock=stock,
        inputs=inputs,
        learned=[True, True],
        flops=2.0 * case.macs(batch),
        **sum_bounds(stock, [True, True], out // case.groups * kh * kw, terms, row.dtype),
    )


@parametrize(rows(LAYERS, (1, 16), directions=WAYS), rows([find("resnet50.layer3.0.downsample")], directions=WAYS))
def test_conv_transpose2d(row, compare):
    generator = torch.Generator().manual_seed(0)
    built = layer(row, generator)
    comparison = forward(built) if row.direction == "forward" else backward(built, generator)
    compare(comparison, row, "conv_transpose2d")
