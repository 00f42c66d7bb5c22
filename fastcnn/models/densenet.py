"""Densely connected networks, with torchvision's state dicts for ImageNet.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks (2016).
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import bn_relu, conv_bn_relu

from ._registry import Weights, load_weights, register_model


class _Layer(nn.Module):
    """(N, channels, H, W) to the `growth` new maps; bottleneck: by way of a 1x1 convolution to 4 growth maps."""

    def __init__(self, channels: int, growth: int, bottleneck: bool, drop_rate: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1 = fnn.Conv2d(channels, 4 * growth, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth)
            self.relu2 = nn.ReLU()
            self.conv2 = fnn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = fnn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.drop = fnn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = bn_relu(self.norm1, self.relu1, x)
        if not self.bottleneck:
            return self.drop(self.conv1(x))
        return self.drop(self.conv2(conv_bn_relu(self.conv1, self.norm2, x, activation=self.relu2)))


class _Block(nn.Module):
    """(N, channels, H, W) to (N, channels + count * growth, H, W): each layer sees the maps of all before it."""

    def __init__(self, count: int, channels: int, growth: int, bottleneck: bool, drop_rate: float):
        super().__init__()
        for i in range(count):
            self.add_module(f"denselayer{i + 1}", _Layer(channels + i * growth, growth, bottleneck, drop_rate))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat((x, layer(x)), -3)
        return x


class _Transition(nn.Sequential):
    """(N, in_channels, H, W) to (N, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = fnn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = fnn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(bn_relu(self.norm, self.relu, x)))


class _Features(nn.Sequential):
    """stem 'imagenet': 7x7 convolution and pooling, to a quarter of the size; 'cifar': a 3x3 convolution."""

    def __init__(
        self, stem: str, channels: int, counts: tuple[int, ...], growth: int, bottleneck: bool, drop_rate: float
    ):
        super().__init__()
        if stem == "imagenet":
            self.conv0 = fnn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
            self.norm0 = nn.BatchNorm2d(channels)
            self.relu0 = nn.ReLU()
            self.pool0 = fnn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv0 = fnn.Conv2d(3, channels, 3, padding=1, bias=False)
        for i, count in enumerate(counts, 1):
            self.add_module(f"denseblock{i}", _Block(count, channels, growth, bottleneck, drop_rate))
            channels += count * growth
            if i < len(counts):
                after = channels // 2 if bottleneck else channels
                self.add_module(f"transition{i}", _Transition(channels, after))
                channels = after
        self.norm5 = nn.BatchNorm2d(channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        if hasattr(self, "norm0"):
            x = conv_bn_relu(self.conv0, self.norm0, x, activation=self.relu0)
            layers = layers[3:]
        for layer in layers:
            x = layer(x)
        return x


class DenseNet(nn.Module):
    """Input: (N, 3, H, W), 224x224 or, with the 'cifar' stem, 32x32 as a rule. Output: (N, num_classes) logits.

    counts: the layers of each block; stem_channels: the maps before the first. bottleneck: DenseNet-BC, whose
    transitions halve the maps, too. drop_rate: dropout after each layer. State dicts are torchvision's.
    """

    def __init__(
        self,
        counts: tuple[int, ...],
        growth: int,
        stem_channels: int,
        num_classes: int = 1000,
        *,
        stem: str = "imagenet",
        bottleneck: bool = True,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"DenseNet: expected stem to be 'imagenet' or 'cifar', but got {stem!r}")
        self.features = _Features(stem, stem_channels, counts, growth, bottleneck, drop_rate)
        self.relu = nn.ReLU()
        self.avgpool = fnn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(self.features.channels, num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Convolutions: normal with the standard deviation that keeps values' variance through a ReLU (He et al.)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.classifier.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:  # shapes of densenet121 for 224x224 input
        # conv0 (N, 64, 112, 112), pool0 (N, 64, 56, 56);
        # denseblock1 (N, 256, 56, 56), transition1 (N, 128, 28, 28);
        # denseblock2 (N, 512, 28, 28), transition2 (N, 256, 14, 14);
        # denseblock3 (N, 1024, 14, 14), transition3 (N, 512, 7, 7)
        x = self.relu(self.features(x))  # (N, 1024, 7, 7)
        return self.classifier(self.avgpool(x).flatten(-3))


def _densenet(
    counts: tuple[int, ...], growth: int, stem_channels: int, weights: Weights, num_classes: int, **options
) -> DenseNet:
    model = DenseNet(counts, growth, stem_channels, num_classes, **options)
    load_weights(model, weights)
    return model


@register_model
def densenet121(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> DenseNet:
    """7,978,856 parameters; takes torchvision's state dict. See DenseNet for the options."""
    return _densenet((6, 12, 24, 16), 32, 64, weights, num_classes, **kwargs)


@register_model
def densenet169(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> DenseNet:
    """14,149,480 parameters; takes torchvision's state dict."""
    return _densenet((6, 12, 32, 32), 32, 64, weights, num_classes, **kwargs)


@register_model
def densenet201(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> DenseNet:
    """20,013,928 parameters; takes torchvision's state dict."""
    return _densenet((6, 12, 48, 32), 32, 64, weights, num_classes, **kwargs)


@register_model
def densenet161(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> DenseNet:
    """28,681,000 parameters; takes torchvision's state dict."""
    return _densenet((6, 12, 36, 24), 48, 96, weights, num_classes, **kwargs)


@register_model
def densenet40_12(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> DenseNet:
    """For CIFAR: three blocks of twelve 3x3 convolutions, 1,019,722 parameters."""
    options = {"stem": "cifar", "bottleneck": False, **kwargs}
    return _densenet((12, 12, 12), 12, 16, weights, num_classes, **options)


@register_model
def densenet_bc_100_12(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> DenseNet:
    """For CIFAR: three blocks of sixteen bottleneck layers, 769,162 parameters."""
    return _densenet((16, 16, 16), 12, 24, weights, num_classes, **{"stem": "cifar", **kwargs})
