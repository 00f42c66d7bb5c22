"""Pre-activation residual networks, with timm's state dicts for ImageNet, and Wide ResNets for CIFAR.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks (2016); Zagoruyko, Komodakis: Wide Residual Networks
(2016).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastcnn import functional as F
from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import bn_relu, conv_bn_relu, is_plain

from ._registry import Weights, load_weights, register_model


def _conv_add(conv: nn.Conv2d, x: Tensor, residual: Tensor) -> Tensor:
    """conv(x) + residual as one op, unless the convolution has hooks or a class of its own."""
    if not is_plain(conv):
        return conv(x) + residual
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, residual=residual)


class _Projection(nn.Module):
    """The 1x1 convolution of a shortcut that changes the shape; it has no normalization."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = fnn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PreActBasic(nn.Module):
    """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride): x + the branch, nothing after the sum.

    dropout: probability between the two 3x3 convolutions (Wide ResNet).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float = 0.0):
        super().__init__()
        changes = stride != 1 or in_channels != out_channels
        self.downsample = _Projection(in_channels, out_channels, stride) if changes else None
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = fnn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.drop = fnn.Dropout(dropout)
        self.conv2 = fnn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = bn_relu(self.norm1, self.relu1, x)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.drop(conv_bn_relu(self.conv1, self.norm2, y, activation=self.relu2))
        return _conv_add(self.conv2, y, shortcut)


class PreActBottleneck(nn.Module):
    """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride): 1x1 to a quarter, 3x3, 1x1, plus x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        width = out_channels // 4
        changes = stride != 1 or in_channels != out_channels
        self.downsample = _Projection(in_channels, out_channels, stride) if changes else None
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = fnn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = fnn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = fnn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = bn_relu(self.norm1, self.relu1, x)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = conv_bn_relu(self.conv1, self.norm2, y, activation=self.relu2)
        y = conv_bn_relu(self.conv2, self.norm3, y, activation=self.relu3)
        return _conv_add(self.conv3, y, shortcut)


class _Stage(nn.Module):
    def __init__(self, block: type[nn.Module], in_channels: int, out_channels: int, count: int, stride: int, **options):
        super().__init__()
        blocks = [block(in_channels, out_channels, stride, **options)]
        blocks += [block(out_channels, out_channels, 1, **options) for _ in range(1, count)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Stem(nn.Sequential):
    """'imagenet': (N, 3, H, W) to (N, channels, H / 4, W / 4); 'cifar': to (N, channels, H, W)."""

    def __init__(self, kind: str, channels: int):
        super().__init__()
        if kind == "imagenet":
            self.conv = fnn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
            self.pool = fnn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv = fnn.Conv2d(3, channels, 3, padding=1, bias=False)


class _Head(nn.Module):
    """Global average and a classifier, which timm writes as a 1x1 convolution."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.global_pool = fnn.AdaptiveAvgPool2d((1, 1))
        self.fc = fnn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.global_pool(x)).flatten(-3)


class ResNetV2(nn.Module):
    """Input: (N, 3, H, W), 224x224 or, with the 'cifar' stem, 32x32 as a rule. Output: (N, num_classes) logits.

    State dicts are timm's. zero_init_last: each branch's last convolution starts at 0, its block as the identity.
    options: PreActBasic's dropout.
    """

    def __init__(
        self,
        block: type[nn.Module],
        counts: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 1000,
        *,
        stem: str = "imagenet",
        stem_channels: int = 64,
        zero_init_last: bool = False,
        **options,
    ):
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"ResNetV2: expected stem to be 'imagenet' or 'cifar', but got {stem!r}")
        self.stem = _Stem(stem, stem_channels)
        stages = []
        before = stem_channels
        for i, (count, after) in enumerate(zip(counts, channels)):
            stages.append(_Stage(block, before, after, count, 2 if i else 1, **options))
            before = after
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(before)
        self.relu = nn.ReLU()
        self.head = _Head(before, num_classes)
        self._initialise(zero_init_last)

    @torch.no_grad()
    def _initialise(self, zero_init_last: bool) -> None:
        """Convolutions as ResNet's, the classifier N(0, 0.01) with biases 0, as timm has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules() if zero_init_last else ():
            if isinstance(module, (PreActBasic, PreActBottleneck)):
                last = module.conv3 if isinstance(module, PreActBottleneck) else module.conv2
                last.weight.zero_()
        nn.init.normal_(self.head.fc.weight, 0, 0.01)
        nn.init.zeros_(self.head.fc.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # shapes for 224x224 input, and for 32x32 with the 'cifar' stem
        x = self.stem(x)  # (N, stem_channels, 56, 56); (N, stem_channels, 32, 32)
        x = self.stages(x)  # (N, channels[-1], 7, 7); (N, channels[-1], 8, 8)
        return self.head(bn_relu(self.norm, self.relu, x))


def _resnetv2(block: type[nn.Module], counts: Sequence[int], weights: Weights, *args, **options) -> ResNetV2:
    channels = options.pop("channels", (64, 128, 256, 512) if block is PreActBasic else (256, 512, 1024, 2048))
    model = ResNetV2(block, counts, channels, *args, **options)
    load_weights(model, weights)
    return model


def _cifar(block: type[nn.Module], count: int, channels: Sequence[int], weights: Weights, *args, **options) -> ResNetV2:
    """Three stages of `count` blocks on 32x32 input."""
    cifar = {"stem": "cifar", "stem_channels": 16, "channels": channels, **options}
    return _resnetv2(block, (count,) * 3, weights, *args, **cifar)


@register_model
def resnetv2_18(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNetV2:
    """11,687,720 parameters; takes timm's state dict. See ResNetV2 for the options."""
    return _resnetv2(PreActBasic, (2, 2, 2, 2), weights, num_classes, **kwargs)


@register_model
def resnetv2_34(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNetV2:
    """21,795,880 parameters; takes timm's state dict."""
    return _resnetv2(PreActBasic, (3, 4, 6, 3), weights, num_classes, **kwargs)


@register_model
def resnetv2_50(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNetV2:
    """25,549,352 parameters; takes timm's state dict."""
    return _resnetv2(PreActBottleneck, (3, 4, 6, 3), weights, num_classes, **kwargs)


@register_model
def resnetv2_101(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNetV2:
    """44,541,480 parameters; takes timm's state dict."""
    return _resnetv2(PreActBottleneck, (3, 4, 23, 3), weights, num_classes, **kwargs)


@register_model
def resnetv2_152(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ResNetV2:
    """60,185,128 parameters; takes timm's state dict."""
    return _resnetv2(PreActBottleneck, (3, 8, 36, 3), weights, num_classes, **kwargs)


@register_model
def resnetv2_164(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ResNetV2:
    """For CIFAR: 3 x 18 bottlenecks, 1,703,258 parameters."""
    return _cifar(PreActBottleneck, 18, (64, 128, 256), weights, num_classes, **kwargs)


@register_model
def resnetv2_1001(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ResNetV2:
    """For CIFAR: 3 x 111 bottlenecks, 10,327,706 parameters."""
    return _cifar(PreActBottleneck, 111, (64, 128, 256), weights, num_classes, **kwargs)


@register_model
def wrn_28_10(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ResNetV2:
    """Wide ResNet for CIFAR: 3 x 4 basic blocks, ten times as wide; 36,479,194 parameters. Option: dropout."""
    return _cifar(PreActBasic, 4, (160, 320, 640), weights, num_classes, **kwargs)


@register_model
def wrn_16_8(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ResNetV2:
    """Wide ResNet for CIFAR: 3 x 2 basic blocks, eight times as wide; 10,961,370 parameters."""
    return _cifar(PreActBasic, 2, (128, 256, 512), weights, num_classes, **kwargs)


@register_model
def wrn_40_4(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ResNetV2:
    """Wide ResNet for CIFAR: 3 x 6 basic blocks, four times as wide; 8,949,210 parameters."""
    return _cifar(PreActBasic, 6, (64, 128, 256), weights, num_classes, **kwargs)
