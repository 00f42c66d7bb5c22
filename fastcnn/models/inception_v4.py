"""Inception v4, with timm's names.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning
(2016), figures 3 to 9.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._registry import Weights, load_weights, register_model
from .inception_v3 import initialise_inception

_block = partial(fnn.ConvBNReLU2d, eps=1e-3)


def _row(channels: int, width: int, taps: int) -> nn.Module:
    return _block(channels, width, (1, taps), padding=(0, taps // 2))


def _column(channels: int, width: int, taps: int) -> nn.Module:
    return _block(channels, width, (taps, 1), padding=(taps // 2, 0))


def _average() -> nn.Module:
    return fnn.AvgPool2d(3, 1, padding=1, count_include_pad=False)


class StemPool(nn.Module):
    """From 147x147 to 73x73: max pooling beside a convolution of stride 2."""

    def __init__(self):
        super().__init__()
        self.maxpool = fnn.MaxPool2d(3, 2)
        self.conv = _block(64, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.maxpool(x), self.conv(x)), -3)


class StemConv(nn.Module):
    """From 73x73 to 71x71: 1x1, 3x3; 1x1, 1x7, 7x1, 3x3."""

    def __init__(self):
        super().__init__()
        self.branch0 = nn.Sequential(_block(160, 64, 1), _block(64, 96, 3))
        self.branch1 = nn.Sequential(_block(160, 64, 1), _row(64, 64, 7), _column(64, 64, 7), _block(64, 96, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x)), -3)


class StemReduction(nn.Module):
    """From 71x71 to 35x35: a convolution of stride 2 beside max pooling."""

    def __init__(self):
        super().__init__()
        self.conv = _block(192, 192, 3, stride=2)
        self.maxpool = fnn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv(x), self.maxpool(x)), -3)


class Branches(nn.Module):
    """Branches side by side, called branch0, branch1, ..."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], -3)


def inception_a() -> Branches:
    """On (N, 384, 35, 35): 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; average pooling, 1x1."""
    return Branches(
        _block(384, 96, 1),
        nn.Sequential(_block(384, 64, 1), _block(64, 96, 3, padding=1)),
        nn.Sequential(_block(384, 64, 1), _block(64, 96, 3, padding=1), _block(96, 96, 3, padding=1)),
        nn.Sequential(_average(), _block(384, 96, 1)),
    )


def reduction_a() -> Branches:
    """From (N, 384, 35, 35) to (N, 1024, 17, 17): 3x3; 1x1, 3x3, 3x3; max pooling."""
    return Branches(
        _block(384, 384, 3, stride=2),
        nn.Sequential(_block(384, 192, 1), _block(192, 224, 3, padding=1), _block(224, 256, 3, stride=2)),
        fnn.MaxPool2d(3, 2),
    )


def inception_b() -> Branches:
    """On (N, 1024, 17, 17): 1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; average pooling, 1x1."""
    return Branches(
        _block(1024, 384, 1),
        nn.Sequential(_block(1024, 192, 1), _row(192, 224, 7), _column(224, 256, 7)),
        nn.Sequential(
            _block(1024, 192, 1), _column(192, 192, 7), _row(192, 224, 7), _column(224, 224, 7), _row(224, 256, 7)
        ),
        nn.Sequential(_average(), _block(1024, 128, 1)),
    )


def reduction_b() -> Branches:
    """From (N, 1024, 17, 17) to (N, 1536, 8, 8): 1x1, 3x3; 1x1, 1x7, 7x1, 3x3; max pooling."""
    return Branches(
        nn.Sequential(_block(1024, 192, 1), _block(192, 192, 3, stride=2)),
        nn.Sequential(_block(1024, 256, 1), _row(256, 256, 7), _column(256, 320, 7), _block(320, 320, 3, stride=2)),
        fnn.MaxPool2d(3, 2),
    )


class InceptionC(nn.Module):
    """On (N, 1536, 8, 8): 1x1; 1x1, then 1x3 beside 3x1; 1x1, 3x1, 1x3, then 1x3 beside 3x1; average pooling, 1x1."""

    def __init__(self):
        super().__init__()
        self.branch0 = _block(1536, 256, 1)
        self.branch1_0 = _block(1536, 384, 1)
        self.branch1_1a = _row(384, 256, 3)
        self.branch1_1b = _column(384, 256, 3)
        self.branch2_0 = _block(1536, 384, 1)
        self.branch2_1 = _column(384, 448, 3)
        self.branch2_2 = _row(448, 512, 3)
        self.branch2_3a = _row(512, 256, 3)
        self.branch2_3b = _column(512, 256, 3)
        self.branch3 = nn.Sequential(_average(), _block(1536, 256, 1))

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch1_0(x)
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        branches = (
            self.branch0(x),
            self.branch1_1a(one),
            self.branch1_1b(one),
            self.branch2_3a(two),
            self.branch2_3b(two),
            self.branch3(x),
        )
        return torch.cat(branches, -3)


class InceptionV4(nn.Module):
    """Input: (N, 3, H, W), 299x299 as a rule and at least 75x75. Output: (N, num_classes) logits.

    State dict keys are those of timm's `inception_v4`.
    """

    def __init__(self, num_classes: int = 1000, *, dropout: float = 0.2):
        super().__init__()
        self.features = nn.Sequential(  # shapes for 299x299 input
            _block(3, 32, 3, stride=2),  # (N, 32, 149, 149)
            _block(32, 32, 3),  # (N, 32, 147, 147)
            _block(32, 64, 3, padding=1),  # (N, 64, 147, 147)
            StemPool(),  # (N, 160, 73, 73)
            StemConv(),  # (N, 192, 71, 71)
            StemReduction(),  # (N, 384, 35, 35)
            *(inception_a() for _ in range(4)),  # (N, 384, 35, 35)
            reduction_a(),  # (N, 1024, 17, 17)
            *(inception_b() for _ in range(7)),  # (N, 1024, 17, 17)
            reduction_b(),  # (N, 1536, 8, 8)
            *(InceptionC() for _ in range(3)),  # (N, 1536, 8, 8)
        )
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1536, num_classes)
        initialise_inception(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_linear(self.dropout(self.avgpool(self.features(x)).flatten(-3)))


@register_model
def inception_v4(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> InceptionV4:
    """Inception v4, 42,679,816 parameters; takes timm's `inception_v4` state dict."""
    model = InceptionV4(num_classes, **kwargs)
    load_weights(model, weights)
    return model
