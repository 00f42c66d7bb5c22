"""Network in Network: Lin, Chen, Yan (2013). Every convolution is followed by 1x1 ones, the last one by an average."""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import ConvReLU2d, FusedSequential
from ._registry import Weights, load_weights, register_model


class NiN(nn.Module):
    """Output: (N, num_classes) logits, the averages over the last maps; the input may have any size that leaves one."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.features = FusedSequential(*layers)
        self.avgpool = fnn.AdaptiveAvgPool2d(1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Weights N(0, 0.05^2), biases 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.weight.normal_(0, 0.05)
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.avgpool(self.features(x)).flatten(-3)


@register_model
def nin_seed(*, weights: Weights = None, num_classes: int = 100) -> NiN:
    """Three small perceptron convolutions for (N, 3, 32, 32) input, 81,960 parameters with 100 classes."""
    model = NiN(
        ConvReLU2d(3, 16, 3),  # (N, 16, 30, 30)
        ConvReLU2d(16, 16, 1),
        ConvReLU2d(16, 64, 3),  # (N, 64, 28, 28)
        ConvReLU2d(64, 64, 1),
        ConvReLU2d(64, 100, 3),  # (N, 100, 26, 26)
        fnn.Conv2d(100, num_classes, 1),
    )
    load_weights(model, weights)
    return model


@register_model
def nin_cifar(*, weights: Weights = None, num_classes: int = 10, dropout: float = 0.5) -> NiN:
    """The paper's network for (N, 3, 32, 32) input, 966,986 parameters with 10 classes."""
    model = NiN(
        ConvReLU2d(3, 192, 5, padding=2),  # (N, 192, 32, 32)
        ConvReLU2d(192, 160, 1),
        ConvReLU2d(160, 96, 1),
        fnn.MaxPool2d(3, 2, ceil_mode=True),  # (N, 96, 16, 16)
        nn.Dropout(dropout),
        ConvReLU2d(96, 192, 5, padding=2),  # (N, 192, 16, 16)
        ConvReLU2d(192, 192, 1),
        ConvReLU2d(192, 192, 1),
        fnn.AvgPool2d(3, 2, ceil_mode=True),  # (N, 192, 8, 8)
        nn.Dropout(dropout),
        ConvReLU2d(192, 192, 3, padding=1),  # (N, 192, 8, 8)
        ConvReLU2d(192, 192, 1),
        ConvReLU2d(192, num_classes, 1),  # (N, num_classes, 8, 8)
    )
    load_weights(model, weights)
    return model


@register_model
def nin_imagenet(*, weights: Weights = None, num_classes: int = 1000, dropout: float = 0.5) -> NiN:
    """Caffe's network for (N, 3, 224, 224) input, 7,595,176 parameters."""
    model = NiN(
        ConvReLU2d(3, 96, 11, stride=4),  # (N, 96, 54, 54)
        ConvReLU2d(96, 96, 1),
        ConvReLU2d(96, 96, 1),
        fnn.MaxPool2d(3, 2, ceil_mode=True),  # (N, 96, 27, 27)
        ConvReLU2d(96, 256, 5, padding=2),  # (N, 256, 27, 27)
        ConvReLU2d(256, 256, 1),
        ConvReLU2d(256, 256, 1),
        fnn.MaxPool2d(3, 2, ceil_mode=True),  # (N, 256, 13, 13)
        ConvReLU2d(256, 384, 3, padding=1),  # (N, 384, 13, 13)
        ConvReLU2d(384, 384, 1),
        ConvReLU2d(384, 384, 1),
        fnn.MaxPool2d(3, 2, ceil_mode=True),  # (N, 384, 6, 6)
        nn.Dropout(dropout),
        ConvReLU2d(384, 1024, 3, padding=1),  # (N, 1024, 6, 6)
        ConvReLU2d(1024, 1024, 1),
        ConvReLU2d(1024, num_classes, 1),  # (N, num_classes, 6, 6)
    )
    load_weights(model, weights)
    return model
