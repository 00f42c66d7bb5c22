"""Residual networks for CIFAR: ResNet-20 to 110, their plain counterparts, stochastic depth, and ResNeXt-29.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015), section 4.2; Huang et al.: Deep Networks with
Stochastic Depth (2016); Xie et al.: Aggregated Residual Transformations for Deep Neural Networks (2016).
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import conv_bn_relu
from fastcnn.ops._drop import check_choice, check_probability

from ._registry import Weights, load_weights, register_model
from .resnet import BasicBlock, Block, Bottleneck, ResidualNetwork


class CifarResNet(ResidualNetwork):
    """Input: (N, 3, H, W), 32x32 as a rule. Output: (N, num_classes) logits.

    Three stages of `count` blocks, `planes`, 2 planes and 4 planes wide; shortcut and options as ResNet's.
    """

    def __init__(
        self,
        block: type[Block],
        count: int,
        num_classes: int = 10,
        *,
        planes: int = 16,
        shortcut: str = "pad",
        zero_init_residual: bool = False,
        **options,
    ):
        super().__init__()
        self.conv1 = fnn.Conv2d(3, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        widths = (planes, 2 * planes, 4 * planes)
        channels = self._make_stages(block, (count,) * 3, planes, widths, shortcut=shortcut, **options)
        self.avgpool = fnn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:  # shapes for 32x32 input and P planes; C = 4 with bottlenecks, else 1
        x = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)  # (N, P, 32, 32)
        x = self.layer1(x)  # (N, P C, 32, 32)
        x = self.layer2(x)  # (N, 2 P C, 16, 16)
        x = self.layer3(x)  # (N, 4 P C, 8, 8)
        return self.fc(self.avgpool(x).flatten(-3))


class StochasticBlock(BasicBlock):
    """A basic block whose branch is computed for a batch with probability `survival` while training, else skipped.

    scaling 'paper': the branch is multiplied by `survival` in evaluation; 'inverted': divided by it while training.
    """

    survival = 1.0
    scaling = "paper"

    def forward(self, x: Tensor) -> Tensor:
        identity = self.identity(x)
        if self.training and torch.rand(()).item() >= self.survival:
            return self.relu(identity)
        y = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)
        if self.training == (self.scaling == "paper"):
            return conv_bn_relu(self.conv2, self.bn2, y, identity, self.relu)
        scale = 1 / self.survival if self.training else self.survival
        return self.relu(conv_bn_relu(self.conv2, self.bn2, y, activation=None) * scale + identity)

    def extra_repr(self) -> str:
        return f"survival={self.survival:g}, scaling={self.scaling}"


class StochasticDepthResNet(CifarResNet):
    """Block l of L survives with probability 1 - l / L (1 - last_survival), l from 1 to L."""

    def __init__(self, count: int, num_classes: int = 10, *, last_survival: float = 0.5, scaling: str = "paper", **kw):
        check_probability(1 - last_survival)
        check_choice("StochasticDepthResNet", "scaling", scaling, ("inverted", "paper"))
        super().__init__(StochasticBlock, count, num_classes, **kw)
        blocks = [module for module in self.modules() if isinstance(module, StochasticBlock)]
        for i, block in enumerate(blocks, 1):
            block.survival, block.scaling = 1 - i / len(blocks) * (1 - last_survival), scaling


def _cifar(model: CifarResNet, weights: Weights) -> CifarResNet:
    load_weights(model, weights)
    return model


@register_model
def resnet20(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 3 basic blocks, 269,722 parameters. See CifarResNet for the options."""
    return _cifar(CifarResNet(BasicBlock, 3, num_classes, **kwargs), weights)


@register_model
def resnet32(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 5 basic blocks, 464,154 parameters."""
    return _cifar(CifarResNet(BasicBlock, 5, num_classes, **kwargs), weights)


@register_model
def resnet44(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 7 basic blocks, 658,586 parameters."""
    return _cifar(CifarResNet(BasicBlock, 7, num_classes, **kwargs), weights)


@register_model
def resnet56(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 9 basic blocks, 853,018 parameters."""
    return _cifar(CifarResNet(BasicBlock, 9, num_classes, **kwargs), weights)


@register_model
def resnet110(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 18 basic blocks, 1,727,962 parameters."""
    return _cifar(CifarResNet(BasicBlock, 18, num_classes, **kwargs), weights)


@register_model
def plain20(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """resnet20 without shortcuts, 269,722 parameters."""
    return _cifar(CifarResNet(BasicBlock, 3, num_classes, **{"shortcut": "none", **kwargs}), weights)


@register_model
def plain56(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """resnet56 without shortcuts, 853,018 parameters."""
    return _cifar(CifarResNet(BasicBlock, 9, num_classes, **{"shortcut": "none", **kwargs}), weights)


@register_model
def resnet110_stochastic(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """resnet110 trained with stochastic depth. See StochasticDepthResNet for the options."""
    return _cifar(StochasticDepthResNet(18, num_classes, **kwargs), weights)


def _resnext29(groups: int, weights: Weights, num_classes: int, **kwargs) -> CifarResNet:
    options = {"planes": 64, "shortcut": "projection", "groups": groups, "width_per_group": 64, **kwargs}
    return _cifar(CifarResNet(Bottleneck, 3, num_classes, **options), weights)


@register_model
def resnext29_8x64d(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 3 bottlenecks with 8 groups, 34,426,698 parameters."""
    return _resnext29(8, weights, num_classes, **kwargs)


@register_model
def resnext29_16x64d(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> CifarResNet:
    """3 x 3 bottlenecks with 16 groups, 68,155,210 parameters."""
    return _resnext29(16, weights, num_classes, **kwargs)
