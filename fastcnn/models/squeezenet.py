"""SqueezeNet: Iandola et al.: AlexNet-level accuracy with 50x fewer parameters (2016), versions 1.0 and 1.1."""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import FusedSequential, conv_relu
from ._registry import Weights, load_weights, register_model


class Fire(nn.Module):
    """A 1x1 convolution that squeezes to few channels; 1x1 and 3x3 ones expand these, each to `expanded` channels."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = fnn.Conv2d(channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = fnn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = fnn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = conv_relu(self.squeeze, self.squeeze_activation, x)
        one = conv_relu(self.expand1x1, self.expand1x1_activation, x)
        three = conv_relu(self.expand3x3, self.expand3x3_activation, x)
        return torch.cat((one, three), -3)


def _pool() -> nn.Module:
    return fnn.MaxPool2d(3, 2, ceil_mode=True)


class SqueezeNet(nn.Module):
    """Input: (N, 3, H, W), 224x224 as a rule. Output: (N, num_classes) logits, the averages over the last maps.

    State dict keys are those of torchvision's `squeezenet*`.
    """

    def __init__(self, features: nn.Sequential, num_classes: int = 1000, *, dropout: float = 0.5):
        super().__init__()
        self.features = features  # to (N, 512, 13, 13) for 224x224 input
        self.classifier = FusedSequential(
            nn.Dropout(dropout), fnn.Conv2d(512, num_classes, 1), nn.ReLU(), fnn.AdaptiveAvgPool2d(1)
        )
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """torchvision's: Kaiming uniform weights, the classifier's N(0, 0.01^2), biases 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                if layer is self.classifier[1]:
                    layer.weight.normal_(0, 0.01)
                else:
                    nn.init.kaiming_uniform_(layer.weight)
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).flatten(-3)


@register_model
def squeezenet1_0(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> SqueezeNet:
    """SqueezeNet 1.0, the paper's, 1,248,424 parameters; takes torchvision's `squeezenet1_0` state dict."""
    features = FusedSequential(  # shapes for 224x224 input
        fnn.Conv2d(3, 96, 7, stride=2),  # (N, 96, 109, 109)
        nn.ReLU(),
        _pool(),  # (N, 96, 54, 54)
        Fire(96, 16, 64),
        Fire(128, 16, 64),
        Fire(128, 32, 128),
        _pool(),  # (N, 256, 27, 27)
        Fire(256, 32, 128),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        _pool(),  # (N, 512, 13, 13)
        Fire(512, 64, 256),
    )
    model = SqueezeNet(features, num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def squeezenet1_1(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> SqueezeNet:
    """SqueezeNet 1.1, pooled earlier, 1,235,496 parameters; takes torchvision's `squeezenet1_1` state dict."""
    features = FusedSequential(  # shapes for 224x224 input
        fnn.Conv2d(3, 64, 3, stride=2),  # (N, 64, 111, 111)
        nn.ReLU(),
        _pool(),  # (N, 64, 55, 55)
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        _pool(),  # (N, 128, 27, 27)
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        _pool(),  # (N, 256, 13, 13)
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )
    model = SqueezeNet(features, num_classes, **kwargs)
    load_weights(model, weights)
    return model
