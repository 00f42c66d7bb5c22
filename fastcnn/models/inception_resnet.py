"""Inception-ResNet v1 as in the paper, and v2 with timm's names.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning
(2016), figures 7 and 10 to 19.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._registry import Weights, load_weights, register_model
from .inception_v3 import initialise_inception
from .inception_v4 import Branches, _average, _block, _column, _row

SCALES = (0.17, 0.10, 0.20)  # of the residuals on the 35x35, 17x17 and 8x8 maps


class Residual(Branches):
    """relu(x + scale * conv2d(branches(x))), the convolution 1x1 with a bias; without the relu where it is the last."""

    def __init__(self, channels: int, width: int, scale: float, *branches: nn.Module, relu: bool = True):
        super().__init__(*branches)
        self.scale = scale
        self.branches = len(branches)
        self.conv2d = fnn.Conv2d(width, channels, 1)
        self.relu = nn.ReLU() if relu else None

    def forward(self, x: Tensor) -> Tensor:
        branches = list(self.children())[: self.branches]
        residual = self.conv2d(torch.cat([branch(x) for branch in branches], -3))
        x = torch.add(x, residual, alpha=self.scale)
        return x if self.relu is None else self.relu(x)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def _block35(channels: int, third: tuple[int, int], scale: float) -> Residual:
    """1x1; 1x1, 3x3; 1x1, 3x3, 3x3. third: the widths of the third branch's 3x3 convolutions."""
    return Residual(
        channels,
        64 + third[1],
        scale,
        _block(channels, 32, 1),
        nn.Sequential(_block(channels, 32, 1), _block(32, 32, 3, padding=1)),
        nn.Sequential(_block(channels, 32, 1), _block(32, third[0], 3, padding=1), _block(*third, 3, padding=1)),
    )


def _block17(channels: int, one: int, widths: tuple[int, int, int], scale: float) -> Residual:
    """1x1 of `one` channels; 1x1, 1x7, 7x1 of `widths`."""
    first, row, column = widths
    return Residual(
        channels,
        one + column,
        scale,
        _block(channels, one, 1),
        nn.Sequential(_block(channels, first, 1), _row(first, row, 7), _column(row, column, 7)),
    )


def _block8(channels: int, widths: tuple[int, int, int], scale: float, relu: bool = True) -> Residual:
    """1x1 of 192 channels; 1x1, 1x3, 3x1 of `widths`."""
    first, row, column = widths
    return Residual(
        channels,
        192 + column,
        scale,
        _block(channels, 192, 1),
        nn.Sequential(_block(channels, first, 1), _row(first, row, 3), _column(row, column, 3)),
        relu=relu,
    )


def _reduction_a(channels: int, double: tuple[int, int, int]) -> Branches:
    """3x3; 1x1, 3x3, 3x3 of `double`; max pooling."""
    first, second, third = double
    return Branches(
        _block(channels, 384, 3, stride=2),
        nn.Sequential(
            _block(channels, first, 1), _block(first, second, 3, padding=1), _block(second, third, 3, stride=2)
        ),
        fnn.MaxPool2d(3, 2),
    )


def _reduction_b(channels: int, second: int, third: tuple[int, int]) -> Branches:
    """1x1, 3x3; 1x1, 3x3 of `second` channels; 1x1, 3x3, 3x3 of `third`; max pooling. The 1x1 have 256 channels."""
    return Branches(
        nn.Sequential(_block(channels, 256, 1), _block(256, 384, 3, stride=2)),
        nn.Sequential(_block(channels, 256, 1), _block(256, second, 3, stride=2)),
        nn.Sequential(_block(channels, 256, 1), _block(256, third[0], 3, padding=1), _block(*third, 3, stride=2)),
        fnn.MaxPool2d(3, 2),
    )


class InceptionResNet(nn.Sequential):
    """Input: (N, 3, H, W), 299x299 as a rule and at least 75x75. Output: (N, num_classes) logits.

    Built of its layers by name, in the order in which they run.
    """

    def __init__(self, layers: dict[str, nn.Module]):
        super().__init__(OrderedDict(layers))
        initialise_inception(self)


def _stem() -> dict[str, nn.Module]:  # shapes for 299x299 input
    return {
        "conv2d_1a": _block(3, 32, 3, stride=2),  # (N, 32, 149, 149)
        "conv2d_2a": _block(32, 32, 3),  # (N, 32, 147, 147)
        "conv2d_2b": _block(32, 64, 3, padding=1),  # (N, 64, 147, 147)
        "maxpool_3a": fnn.MaxPool2d(3, 2),  # (N, 64, 73, 73)
        "conv2d_3b": _block(64, 80, 1),  # (N, 80, 73, 73)
        "conv2d_4a": _block(80, 192, 3),  # (N, 192, 71, 71)
    }


def _head(channels: int, num_classes: int, dropout: float) -> dict[str, nn.Module]:
    return {
        "avgpool": fnn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(-3),
        "dropout": nn.Dropout(dropout),
        "classif": nn.Linear(channels, num_classes),
    }


def _repeat(count: int, build, *args) -> nn.Sequential:
    return nn.Sequential(*(build(*args) for _ in range(count)))


@register_model
def inception_resnet_v1(
    *,
    weights: Weights = None,
    num_classes: int = 1000,
    dropout: float = 0.2,
    scales: tuple[float, float, float] = SCALES,
) -> InceptionResNet:
    """Inception-ResNet v1, 22,756,328 parameters. scales: of the residuals on 35x35, 17x17 and 8x8 maps."""
    model = InceptionResNet(
        {
            **_stem(),
            "conv2d_4b": _block(192, 256, 3, stride=2),  # (N, 256, 35, 35)
            "repeat": _repeat(5, _block35, 256, (32, 32), scales[0]),
            "mixed_6a": _reduction_a(256, (192, 192, 256)),  # (N, 896, 17, 17)
            "repeat_1": _repeat(10, _block17, 896, 128, (128, 128, 128), scales[1]),
            "mixed_7a": _reduction_b(896, 256, (256, 256)),  # (N, 1792, 8, 8)
            "repeat_2": _repeat(5, _block8, 1792, (192, 192, 192), scales[2]),
            **_head(1792, num_classes, dropout),
        }
    )
    load_weights(model, weights)
    return model


@register_model
def inception_resnet_v2(
    *,
    weights: Weights = None,
    num_classes: int = 1000,
    dropout: float = 0.2,
    scales: tuple[float, float, float] = SCALES,
) -> InceptionResNet:
    """Inception-ResNet v2, 55,843,464 parameters; takes timm's `inception_resnet_v2` state dict.

    scales: of the residuals on 35x35, 17x17 and 8x8 maps.
    """
    mixed = Branches(
        _block(192, 96, 1),
        nn.Sequential(_block(192, 48, 1), _block(48, 64, 5, padding=2)),
        nn.Sequential(_block(192, 64, 1), _block(64, 96, 3, padding=1), _block(96, 96, 3, padding=1)),
        nn.Sequential(_average(), _block(192, 64, 1)),
    )
    model = InceptionResNet(
        {
            **_stem(),
            "maxpool_5a": fnn.MaxPool2d(3, 2),  # (N, 192, 35, 35)
            "mixed_5b": mixed,  # (N, 320, 35, 35)
            "repeat": _repeat(10, _block35, 320, (48, 64), scales[0]),
            "mixed_6a": _reduction_a(320, (256, 256, 384)),  # (N, 1088, 17, 17)
            "repeat_1": _repeat(20, _block17, 1088, 192, (128, 160, 192), scales[1]),
            "mixed_7a": _reduction_b(1088, 288, (288, 320)),  # (N, 2080, 8, 8)
            "repeat_2": _repeat(9, _block8, 2080, (192, 224, 256), scales[2]),
            "block8": _block8(2080, (192, 224, 256), 1.0, relu=False),
            "conv2d_7b": _block(2080, 1536, 1),  # (N, 1536, 8, 8)
            **_head(1536, num_classes, dropout),
        }
    )
    load_weights(model, weights)
    return model
