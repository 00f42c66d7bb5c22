"""Inception v3, with torchvision's names.

Szegedy et al.: Rethinking the Inception Architecture for Computer Vision (2015).
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._registry import Weights, load_weights, register_model
from .googlenet import AUXILIARY_WEIGHT, loss_with_auxiliaries, to_inception_scale

_block = partial(fnn.ConvBNReLU2d, eps=1e-3)


class InceptionOutputs(NamedTuple):
    """What the network with its auxiliary classifier returns in training."""

    logits: Tensor
    aux_logits: Tensor


def initialise_inception(model: nn.Module, std: float = 0.1) -> None:
    """Truncated normal weights for every convolution and linear layer; biases stay torch's."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2, b=2)


class InceptionA(nn.Module):
    """On 35x35 maps: 1x1; 1x1, 5x5; 1x1, 3x3, 3x3; average pooling, 1x1."""

    def __init__(self, channels: int, pooled: int):
        super().__init__()
        self.branch1x1 = _block(channels, 64, 1)
        self.branch5x5_1 = _block(channels, 48, 1)
        self.branch5x5_2 = _block(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _block(channels, 64, 1)
        self.branch3x3dbl_2 = _block(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _block(96, 96, 3, padding=1)
        self.pool = fnn.AvgPool2d(3, 1, padding=1)
        self.branch_pool = _block(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, double, self.branch_pool(self.pool(x))), -3)


class InceptionB(nn.Module):
    """From 35x35 to 17x17: 3x3; 1x1, 3x3, 3x3; max pooling."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = _block(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _block(channels, 64, 1)
        self.branch3x3dbl_2 = _block(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _block(96, 96, 3, stride=2)
        self.pool = fnn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, self.pool(x)), -3)


class InceptionC(nn.Module):
    """On 17x17 maps: 1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; average pooling, 1x1."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        row, column = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = _block(channels, 192, 1)
        self.branch7x7_1 = _block(channels, inner, 1)
        self.branch7x7_2 = _block(inner, inner, (1, 7), **row)
        self.branch7x7_3 = _block(inner, 192, (7, 1), **column)
        self.branch7x7dbl_1 = _block(channels, inner, 1)
        self.branch7x7dbl_2 = _block(inner, inner, (7, 1), **column)
        self.branch7x7dbl_3 = _block(inner, inner, (1, 7), **row)
        self.branch7x7dbl_4 = _block(inner, inner, (7, 1), **column)
        self.branch7x7dbl_5 = _block(inner, 192, (1, 7), **row)
        self.pool = fnn.AvgPool2d(3, 1, padding=1)
        self.branch_pool = _block(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), seven, double, self.branch_pool(self.pool(x))), -3)


class InceptionD(nn.Module):
    """From 17x17 to 8x8: 1x1, 3x3; 1x1, 1x7, 7x1, 3x3; max pooling."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3_1 = _block(channels, 192, 1)
        self.branch3x3_2 = _block(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _block(channels, 192, 1)
        self.branch7x7x3_2 = _block(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _block(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _block(192, 192, 3, stride=2)
        self.pool = fnn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat((three, self.branch7x7x3_4(seven), self.pool(x)), -3)


class InceptionE(nn.Module):
    """On 8x8 maps: 1x1; 1x1, then 1x3 beside 3x1; 1x1, 3x3, then 1x3 beside 3x1; average pooling, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        row, column = {"padding": (0, 1)}, {"padding": (1, 0)}
        self.branch1x1 = _block(channels, 320, 1)
        self.branch3x3_1 = _block(channels, 384, 1)
        self.branch3x3_2a = _block(384, 384, (1, 3), **row)
        self.branch3x3_2b = _block(384, 384, (3, 1), **column)
        self.branch3x3dbl_1 = _block(channels, 448, 1)
        self.branch3x3dbl_2 = _block(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _block(384, 384, (1, 3), **row)
        self.branch3x3dbl_3b = _block(384, 384, (3, 1), **column)
        self.pool = fnn.AvgPool2d(3, 1, padding=1)
        self.branch_pool = _block(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )
        return torch.cat(branches, -3)


class Auxiliary(nn.Module):
    """The classifier on the last 17x17 maps."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.pool = fnn.AvgPool2d(5, 3)
        self.conv0 = _block(channels, 128, 1)
        self.conv1 = _block(128, 768, 5)
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 768, 17, 17)
        x = self.conv0(self.pool(x))  # (N, 128, 5, 5)
        x = self.conv1(x)  # (N, 768, 1, 1)
        return self.fc(self.avgpool(x).flatten(-3))


class InceptionV3(nn.Module):
    """Input: (N, 3, H, W), 299x299 as a rule and at least 75x75; training with aux_logits needs 299x299 or more.

    Output: (N, num_classes) logits, in training with aux_logits InceptionOutputs. transform_input: the input is
    normalised with ImageNet's mean and standard deviation, but the weights want it in [-1, 1]. State dict keys are
    those of torchvision's `inception_v3`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = _block(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _block(32, 32, 3)
        self.Conv2d_2b_3x3 = _block(32, 64, 3, padding=1)
        self.maxpool1 = fnn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = _block(64, 80, 1)
        self.Conv2d_4a_3x3 = _block(80, 192, 3)
        self.maxpool2 = fnn.MaxPool2d(3, 2)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.AuxLogits = Auxiliary(768, num_classes) if aux_logits else None
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        initialise_inception(self)
        if self.AuxLogits is not None:
            initialise_inception(self.AuxLogits.conv1, 0.01)
            initialise_inception(self.AuxLogits.fc, 0.001)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        if self.transform_input:
            x = to_inception_scale(x)
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))  # (N, 32, 149, 149), then (N, 32, 147, 147)
        x = self.maxpool1(self.Conv2d_2b_3x3(x))  # (N, 64, 147, 147), pooled to (N, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (N, 80, 73, 73), then (N, 192, 71, 71)
        x = self.Mixed_5b(self.maxpool2(x))  # (N, 192, 35, 35), then (N, 256, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(x))  # (N, 288, 35, 35)
        x = self.Mixed_6a(x)  # (N, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))  # (N, 768, 17, 17)
        aux = self.AuxLogits(x) if self.AuxLogits is not None and self.training else None
        x = self.Mixed_7a(x)  # (N, 1280, 8, 8)
        x = self.Mixed_7c(self.Mixed_7b(x))  # (N, 2048, 8, 8)
        x = self.fc(self.dropout(self.avgpool(x).flatten(-3)))
        return x if aux is None else InceptionOutputs(x, aux)

    def loss(self, output: Tensor | InceptionOutputs, target: Tensor) -> Tensor:
        """Cross entropy of forward's output; in training 0.3 times that of the auxiliary classifier is added."""
        return loss_with_auxiliaries(output, target, AUXILIARY_WEIGHT)


@register_model
def inception_v3(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> InceptionV3:
    """Inception v3, 23,834,568 parameters, 27,161,264 with its auxiliary classifier; torchvision's keys."""
    model = InceptionV3(num_classes, **kwargs)
    load_weights(model, weights)
    return model
