"""BN-Inception: GoogLeNet with batch normalization and two 3x3 convolutions in place of each 5x5.

Ioffe, Szegedy: Batch Normalization (2015), appendix. Not the factorised "Inception-v2" of the paper on v3.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._registry import Weights, load_weights, register_model
from .inception_v3 import initialise_inception

_block = partial(fnn.ConvBNReLU2d, eps=1e-3)


class Mixed(nn.Module):
    """Branches side by side: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pooling, 1x1. pool: 'avg' or 'max'."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], double: tuple[int, int], pool: str, last: int):
        super().__init__()
        self.branch1 = _block(channels, one, 1)
        self.branch2 = nn.Sequential(_block(channels, three[0], 1), _block(three[0], three[1], 3, padding=1))
        self.branch3 = nn.Sequential(
            _block(channels, double[0], 1),
            _block(double[0], double[1], 3, padding=1),
            _block(double[1], double[1], 3, padding=1),
        )
        window: nn.Module = fnn.MaxPool2d(3, 1, padding=1)
        if pool == "avg":
            window = fnn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.branch4 = nn.Sequential(window, _block(channels, last, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), -3)


class Reduction(nn.Module):
    """Branches that halve the maps: 1x1, 3x3 of stride 2; 1x1, 3x3, 3x3 of stride 2; max pooling."""

    def __init__(self, channels: int, three: tuple[int, int], double: tuple[int, int]):
        super().__init__()
        self.branch1 = nn.Sequential(_block(channels, three[0], 1), _block(three[0], three[1], 3, stride=2, padding=1))
        self.branch2 = nn.Sequential(
            _block(channels, double[0], 1),
            _block(double[0], double[1], 3, padding=1),
            _block(double[1], double[1], 3, stride=2, padding=1),
        )
        self.branch3 = fnn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:  # the convolutions keep the last row, the pooling leaves it out
            raise RuntimeError(
                "inception_v2: expected input whose height and width are multiples of 32, so that maps can be halved, "
                f"but got maps {tuple(x.shape)}"
            )
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x)), -3)


class InceptionV2(nn.Module):
    """Input: (N, 3, H, W), H and W multiples of 32, 224x224 as a rule. Output: (N, num_classes) logits."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv1 = _block(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = _block(64, 64, 1)
        self.conv3 = _block(64, 192, 3, padding=1)
        self.maxpool2 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Mixed(192, 64, (64, 64), (64, 96), "avg", 32)
        self.inception3b = Mixed(256, 64, (64, 96), (64, 96), "avg", 64)
        self.inception3c = Reduction(320, (128, 160), (64, 96))
        self.inception4a = Mixed(576, 224, (64, 96), (96, 128), "avg", 128)
        self.inception4b = Mixed(576, 192, (96, 128), (96, 128), "avg", 128)
        self.inception4c = Mixed(576, 160, (128, 160), (128, 160), "avg", 96)
        self.inception4d = Mixed(576, 96, (128, 192), (160, 192), "avg", 96)
        self.inception4e = Reduction(576, (128, 192), (192, 256))
        self.inception5a = Mixed(1024, 352, (192, 320), (160, 224), "avg", 128)
        self.inception5b = Mixed(1024, 352, (192, 320), (192, 224), "max", 128)
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, num_classes)
        initialise_inception(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))  # (N, 64, 112, 112), pooled to (N, 64, 56, 56)
        x = self.maxpool2(self.conv3(self.conv2(x)))  # (N, 192, 56, 56), pooled to (N, 192, 28, 28)
        x = self.inception3b(self.inception3a(x))  # (N, 320, 28, 28)
        x = self.inception3c(x)  # (N, 576, 14, 14)
        x = self.inception4b(self.inception4a(x))  # (N, 576, 14, 14)
        x = self.inception4d(self.inception4c(x))  # (N, 576, 14, 14)
        x = self.inception4e(x)  # (N, 1024, 7, 7)
        x = self.inception5b(self.inception5a(x))  # (N, 1024, 7, 7)
        return self.fc(self.avgpool(x).flatten(-3))


@register_model
def inception_v2(*, weights: Weights = None, num_classes: int = 1000) -> InceptionV2:
    """BN-Inception, 11,194,984 parameters."""
    model = InceptionV2(num_classes)
    load_weights(model, weights)
    return model
