"""Residual networks for ImageNet, with torchvision's state dicts: ResNet, Wide ResNet, ResNeXt; and the plain nets.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015); Xie et al.: Aggregated Residual
Transformations for Deep Neural Networks (2016); Zagoruyko, Komodakis: Wide Residual Networks (2016).
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import conv_bn_relu

from ._registry import Weights, load_weights, register_model


class ConvBN(nn.Sequential):
    """The projection shortcut (the paper's option B): a 1x1 convolution and its normalization, as one op."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        conv = fnn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn_relu(self[0], self[1], x, activation=None)


class ZeroPad(nn.Module):
    """The shortcut without parameters (option A): every stride-th pixel, and zeros for the channels that are new."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


SHORTCUTS = {"projection": ConvBN, "pad": ZeroPad, "none": None}


class Block(nn.Module):
    """The shortcut of a residual block; shortcut 'none' leaves it out everywhere."""

    expansion = 1

    def _add_shortcut(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        kind = SHORTCUTS[shortcut]
        changes = stride != 1 or in_channels != out_channels
        self.residual = kind is not None
        self.downsample = kind(in_channels, out_channels, stride) if kind and changes else None

    def identity(self, x: Tensor) -> Tensor | None:
        if not self.residual:
            return None
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(Block):
    """(N, in_channels, H, W) to (N, planes, H / stride, W / stride) by two 3x3 convolutions."""

    def __init__(self, in_channels: int, planes: int, stride: int = 1, shortcut: str = "projection"):
        super().__init__()
        self.conv1 = fnn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = fnn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self._add_shortcut(in_channels, planes, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)
        return conv_bn_relu(self.conv2, self.bn2, y, self.identity(x), self.relu)


class Bottleneck(Block):
    """(N, in_channels, H, W) to (N, 4 planes, H / stride, W / stride): 1x1, 3x3 in `groups` groups, 1x1.

    The 3x3 convolution is planes * width_per_group / 64 * groups wide and has the stride, as in torchvision;
    stride_in_1x1: the first convolution has it, as in the paper.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        shortcut: str = "projection",
        *,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
    ):
        super().__init__()
        width = planes * width_per_group // 64 * groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = fnn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = fnn.Conv2d(width, width, 3, second, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = fnn.Conv2d(width, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU()
        self._add_shortcut(in_channels, 4 * planes, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)
        y = conv_bn_relu(self.conv2, self.bn2, y, activation=self.relu)
        return conv_bn_relu(self.conv3, self.bn3, y, self.identity(x), self.relu)


class ResidualNetwork(nn.Module):
    """What the networks of such blocks for ImageNet and for CIFAR share: the stages and the initial values."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential  # of the networks for ImageNet

    def _make_stages(
        self, block: type[Block], counts: tuple[int, ...], channels: int, widths: tuple[int, ...], **options
    ) -> int:
        """Adds layer1, layer2, ...; each but the first halves height and width. Returns the channels at the end."""
        if options["shortcut"] not in SHORTCUTS:
            names = ", ".join(SHORTCUTS)
            raise ValueError(f"ResNet: expected shortcut to be one of {names}, but got {options['shortcut']!r}")
        for i, (count, planes) in enumerate(zip(counts, widths)):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, planes, stride, **options))  # type: ignore[call-arg]
                channels = planes * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        return channels

    @torch.no_grad()
    def _initialise(self, zero_init_residual: bool) -> None:
        """Convolutions: normal with the standard deviation that keeps gradients' variance through a ReLU (He et al.).

        zero_init_residual: each branch's last normalization starts at 0, so that a block starts as the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, Block):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                last.weight.zero_()  # type: ignore[operator, union-attr]


class ResNet(ResidualNetwork):
    """Input: (N, 3, H, W), 224x224 as a rule. Output: (N, num_classes) logits. State dicts are torchvision's.

    shortcut: 'projection' (option B), 'pad' (option A) where the shape changes; 'none': the plain network.
    options: Bottleneck's groups, width_per_group, stride_in_1x1.
    """

    def __init__(
        self,
        block: type[Block],
        counts: tuple[int, int, int, int],
        num_classes: int = 1000,
        *,
        shortcut: str = "projection",
        zero_init_residual: bool = False,
        **options,
    ):
        super().__init__()
        self.conv1 = fnn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = fnn.MaxPool2d(3, 2, padding=1)
        channels = self._make_stages(block, counts, 64, (64, 128, 256, 512), shortcut=shortcut, **options)
        self.avgpool = fnn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:  # shapes for 224x224 input; C = 4 with bottlenecks, else 1
        x = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)  # (N, 64, 112, 112)
        x = self.maxpool(x)  # (N, 64, 56, 56)
        x = self.layer1(x)  # (N, 64 C, 56, 56)
        x = self.layer2(x)  # (N, 128 C, 28, 28)
        x = self.layer3(x)  # (N, 256 C, 14, 14)
        x = self.layer4(x)  # (N, 512 C, 7, 7)
        return self.fc(self.avgpool(x).flatten(-3))


def _resnet(block: type[Block], counts: tuple[int, int, int, int], weights: Weights, *args, **options) -> ResNet:
    model = ResNet(block, counts, *args, **options)
    load_weights(model, weights)
    return model


@register_model
def resnet18(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """11,689,512 parameters; takes torchvision's state dict. See ResNet for the options."""
    return _resnet(BasicBlock, (2, 2, 2, 2), weights, num_classes, **kwargs)


@register_model
def resnet34(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """21,797,672 parameters; takes torchvision's state dict."""
    return _resnet(BasicBlock, (3, 4, 6, 3), weights, num_classes, **kwargs)


@register_model
def resnet50(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """25,557,032 parameters; takes torchvision's state dict."""
    return _resnet(Bottleneck, (3, 4, 6, 3), weights, num_classes, **kwargs)


@register_model
def resnet101(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """44,549,160 parameters; takes torchvision's state dict."""
    return _resnet(Bottleneck, (3, 4, 23, 3), weights, num_classes, **kwargs)


@register_model
def resnet152(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """60,192,808 parameters; takes torchvision's state dict."""
    return _resnet(Bottleneck, (3, 8, 36, 3), weights, num_classes, **kwargs)


@register_model
def plain18(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """resnet18 without shortcuts, 11,515,688 parameters."""
    return _resnet(BasicBlock, (2, 2, 2, 2), weights, num_classes, **{"shortcut": "none", **kwargs})


@register_model
def plain34(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """resnet34 without shortcuts, 21,623,848 parameters."""
    return _resnet(BasicBlock, (3, 4, 6, 3), weights, num_classes, **{"shortcut": "none", **kwargs})


@register_model
def wide_resnet50_2(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """resnet50 with 3x3 convolutions twice as wide, 68,883,240 parameters; takes torchvision's state dict."""
    return _resnet(Bottleneck, (3, 4, 6, 3), weights, num_classes, **{"width_per_group": 128, **kwargs})


@register_model
def wide_resnet101_2(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """resnet101 with 3x3 convolutions twice as wide, 126,886,696 parameters; takes torchvision's state dict."""
    return _resnet(Bottleneck, (3, 4, 23, 3), weights, num_classes, **{"width_per_group": 128, **kwargs})


@register_model
def resnext50_32x4d(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """25,028,904 parameters; takes torchvision's state dict."""
    options = {"groups": 32, "width_per_group": 4, **kwargs}
    return _resnet(Bottleneck, (3, 4, 6, 3), weights, num_classes, **options)


@register_model
def resnext101_32x4d(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """44,177,704 parameters; takes timm's state dict."""
    options = {"groups": 32, "width_per_group": 4, **kwargs}
    return _resnet(Bottleneck, (3, 4, 23, 3), weights, num_classes, **options)


@register_model
def resnext101_32x8d(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """88,791,336 parameters; takes torchvision's state dict."""
    options = {"groups": 32, "width_per_group": 8, **kwargs}
    return _resnet(Bottleneck, (3, 4, 23, 3), weights, num_classes, **options)


@register_model
def resnext101_64x4d(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNet:
    """83,455,272 parameters; takes torchvision's state dict."""
    options = {"groups": 64, "width_per_group": 4, **kwargs}
    return _resnet(Bottleneck, (3, 4, 23, 3), weights, num_classes, **options)
