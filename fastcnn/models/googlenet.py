"""GoogLeNet (Inception v1): the paper's network as Caffe writes it, and torchvision's with batch normalization.

Szegedy et al.: Going Deeper with Convolutions (2014), table 1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import ConvReLU2d, check_batch
from ._registry import Weights, load_weights, register_model

Block = Callable[..., nn.Module]

AUXILIARY_WEIGHT = 0.3  # of each auxiliary classifier's loss


class GoogLeNetOutputs(NamedTuple):
    """What the network with auxiliary classifiers returns in training; None from a classifier that it lacks."""

    logits: Tensor
    aux_logits2: Tensor | None
    aux_logits1: Tensor | None


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 5x5; max pooling, 1x1. Widths in the order of the paper's table.

    large_kernel: 5, or torchvision's 3.
    """

    def __init__(
        self,
        channels: int,
        one: int,
        reduce3: int,
        three: int,
        reduce5: int,
        five: int,
        pool: int,
        *,
        block: Block,
        large_kernel: int,
    ):
        super().__init__()
        self.branch1 = block(channels, one, 1)
        self.branch2 = nn.Sequential(block(channels, reduce3, 1), block(reduce3, three, 3, padding=1))
        self.branch3 = nn.Sequential(
            block(channels, reduce5, 1), block(reduce5, five, large_kernel, padding=large_kernel // 2)
        )
        self.branch4 = nn.Sequential(fnn.MaxPool2d(3, 1, padding=1, ceil_mode=True), block(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), -3)


class Auxiliary(nn.Module):
    """The classifier on an inner layer: pooling to 4x4, 1x1 convolution, two linear layers."""

    def __init__(self, channels: int, num_classes: int, *, block: Block, pool: nn.Module, dropout: float):
        super().__init__()
        self.pool = pool
        self.conv = block(channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 512 or 528, 14, 14)
        x = self.conv(self.pool(x))  # (N, 128, 4, 4)
        if x.shape[-2:] != (4, 4):
            raise RuntimeError(
                f"googlenet: expected input of which the auxiliary classifiers get 14x14 maps, as of 224x224, "
                f"but got {tuple(x.shape)} after their pooling"
            )
        return self.fc2(self.dropout(self.relu(self.fc1(x.flatten(-3)))))


def to_inception_scale(x: Tensor) -> Tensor:
    """An image normalised with ImageNet's mean and standard deviation, as one that was mapped to [-1, 1]."""
    scale = x.new_tensor([0.229, 0.224, 0.225]) / 0.5
    shift = (x.new_tensor([0.485, 0.456, 0.406]) - 0.5) / 0.5
    return x * scale[:, None, None] + shift[:, None, None]


class GoogLeNet(nn.Module):
    """Input: (N, 3, H, W), 224x224 as a rule. Output: (N, num_classes) logits, in training GoogLeNetOutputs.

    Without aux_logits, which only training needs, the output is always the logits, and training takes any size too.
    batch_norm: torchvision's network: batch normalization in place of biases and local response normalization, 3x3 for
    the 5x5 convolutions, a 2x2 last pooling. transform_input: the input is normalised with ImageNet's mean and
    standard deviation, but the weights want it in [-1, 1].
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        aux_logits: bool = True,
        transform_input: bool = False,
        batch_norm: bool = False,
        dropout: float | None = None,
        dropout_aux: float = 0.7,
    ):
        super().__init__()
        self.transform_input = transform_input
        block: Block = partial(fnn.ConvBNReLU2d, eps=1e-3) if batch_norm else ConvReLU2d
        inception = partial(Inception, block=block, large_kernel=3 if batch_norm else 5)

        def norm() -> nn.Module:
            return nn.Identity() if batch_norm else fnn.LocalResponseNorm(5)

        self.conv1 = block(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = norm()
        self.conv2 = block(64, 64, 1)
        self.conv3 = block(64, 192, 3, padding=1)
        self.norm2 = norm()
        self.maxpool2 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = fnn.MaxPool2d(2 if batch_norm else 3, 2, ceil_mode=True)
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        self.aux1: Auxiliary | None = None
        self.aux2: Auxiliary | None = None
        if aux_logits:
            pool = fnn.AdaptiveAvgPool2d(4) if batch_norm else fnn.AvgPool2d(5, 3)
            auxiliary = partial(Auxiliary, block=block, pool=pool, dropout=dropout_aux)
            self.aux1 = auxiliary(512, num_classes)
            self.aux2 = auxiliary(528, num_classes)
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout if dropout is not None else 0.2 if batch_norm else 0.4)
        self.fc = nn.Linear(1024, num_classes)
        self._initialise(batch_norm)

    @torch.no_grad()
    def _initialise(self, batch_norm: bool) -> None:
        """Caffe's Xavier weights and biases of 0.2; torchvision's truncated normal, its linear biases torch's own."""
        for layer in self.modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            if batch_norm:
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-2, b=2)
                continue
            bound = (3 / layer.weight[0].numel()) ** 0.5  # of the fan in alone
            layer.weight.uniform_(-bound, bound)
            if layer.bias is not None:
                layer.bias.fill_(0.2)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        check_batch("googlenet", x)
        if self.transform_input:
            x = to_inception_scale(x)
        x = self.norm1(self.maxpool1(self.conv1(x)))  # (N, 64, 112, 112), pooled to (N, 64, 56, 56)
        x = self.conv3(self.conv2(x))  # (N, 192, 56, 56)
        x = self.maxpool2(self.norm2(x))  # (N, 192, 28, 28)
        x = self.inception3a(x)  # (N, 256, 28, 28)
        x = self.inception3b(x)  # (N, 480, 28, 28)
        x = self.inception4a(self.maxpool3(x))  # (N, 512, 14, 14)
        aux1 = self.aux1(x) if self.aux1 is not None and self.training else None
        x = self.inception4c(self.inception4b(x))  # (N, 512, 14, 14)
        x = self.inception4d(x)  # (N, 528, 14, 14)
        aux2 = self.aux2(x) if self.aux2 is not None and self.training else None
        x = self.inception4e(x)  # (N, 832, 14, 14)
        x = self.inception5a(self.maxpool4(x))  # (N, 832, 7, 7)
        x = self.inception5b(x)  # (N, 1024, 7, 7)
        x = self.fc(self.dropout(self.avgpool(x).flatten(-3)))
        return x if aux1 is None and aux2 is None else GoogLeNetOutputs(x, aux2, aux1)

    def loss(self, output: Tensor | GoogLeNetOutputs, target: Tensor) -> Tensor:
        """Cross entropy of forward's output; in training 0.3 times that of each auxiliary classifier is added."""
        return loss_with_auxiliaries(output, target, AUXILIARY_WEIGHT)


def loss_with_auxiliaries(output, target: Tensor, weight: float) -> Tensor:
    """Cross entropy of logits, or of a tuple of logits and auxiliary ones, which count `weight` each."""
    logits, *auxiliary = (output,) if isinstance(output, Tensor) else output
    loss = nn.functional.cross_entropy(logits, target)
    for aux in auxiliary:
        if aux is not None:
            loss = loss + weight * nn.functional.cross_entropy(aux, target)
    return loss


@register_model
def googlenet(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> GoogLeNet:
    """The paper's network, 6,998,552 parameters and 6,379,728 in its auxiliary classifiers; see GoogLeNet."""
    model = GoogLeNet(num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def googlenet_tv(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> GoogLeNet:
    """torchvision's network, 6,624,904 parameters, 13,004,888 with its auxiliary classifiers; torchvision's keys."""
    model = GoogLeNet(num_classes, **{"batch_norm": True, **kwargs})
    load_weights(model, weights)
    return model
