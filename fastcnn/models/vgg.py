"""VGG: the six configurations of the paper, and those with batch normalization.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition (2014), table 1.
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import FusedSequential, check_batch
from ._registry import Weights, load_weights, register_model

# Per stage the widths of its convolutions, 3x3 but for C's negative ones, which are 1x1.
_STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": ((64, 64), (128, 128), (256, 256, -256), (512, 512, -512), (512, 512, -512)),
    "D": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "E": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """Input: (N, 3, H, W), 224x224 as a rule and at least 32x32. Output: (N, num_classes) logits.

    configuration: 'A' to 'E', the columns of the paper's table. lrn: local response normalization after the first
    ReLU (A-LRN). batch_norm: after every convolution. init: 'kaiming', as torchvision's, or 'paper', N(0, 0.1^2).
    State dict keys are those of torchvision's `vgg*`.
    """

    def __init__(
        self,
        configuration: str,
        num_classes: int = 1000,
        *,
        batch_norm: bool = False,
        lrn: bool = False,
        dropout: float = 0.5,
        init: str = "kaiming",
    ):
        super().__init__()
        if configuration not in _STAGES:
            raise ValueError(
                f"VGG: expected configuration to be one of {', '.join(_STAGES)}, but got {configuration!r}"
            )
        if init not in ("kaiming", "paper"):
            raise ValueError(f"VGG: expected init to be 'kaiming' or 'paper', but got {init!r}")
        layers: list[nn.Module] = []
        self._convolutions: list[list[int]] = []  # of each stage, as indices into features
        channels = 3
        for stage in _STAGES[configuration]:
            self._convolutions.append([])
            for width in stage:
                self._convolutions[-1].append(len(layers))
                kernel = 3 if width > 0 else 1
                layers.append(fnn.Conv2d(channels, abs(width), kernel, padding=kernel // 2))
                channels = abs(width)
                layers += [nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
            layers.append(fnn.MaxPool2d(2, 2))
        if lrn:  # in the ReLU's place, so that the layers behind it keep their keys
            first = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
            layers[first] = fnn.LocalResponseNorm(5, k=2.0, alpha_mode="sum", activation="relu")
        # (N, 64, 112, 112), (N, 128, 56, 56), (N, 256, 28, 28), (N, 512, 14, 14), (N, 512, 7, 7) after each pooling
        self.features = FusedSequential(*layers)
        self.avgpool = fnn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self._initialise(init)

    @torch.no_grad()
    def _initialise(self, init: str) -> None:
        for layer in self.modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            if init == "paper":
                layer.weight.normal_(0, 0.1)
            elif isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                layer.bias.zero_()

    @torch.no_grad()
    def initialise_from(self, trained: "VGG") -> None:
        """Copies a shallower network's first four convolutions (conv1_1, 2_1, 3_1, 3_2) and its linear layers.

        The paper starts B to E so from A (section 3.1); a chain A, B, D, E does it with each network's predecessor.
        RuntimeError where a layer's shape differs.
        """
        pairs = [(self.classifier[i], trained.classifier[i]) for i in (0, 3, 6)]
        for stage, i in ((0, 0), (1, 0), (2, 0), (2, 1)):
            mine, theirs = self._convolutions[stage][i], trained._convolutions[stage][i]
            pairs.append((self.features[mine], trained.features[theirs]))
        for layer, source in pairs:
            layer.load_state_dict(source.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        check_batch("vgg", x)
        x = self.features(x)  # (N, 512, 7, 7) for 224x224 input
        return self.classifier(self.avgpool(x).flatten(-3))


def _vgg(configuration: str, weights: Weights, num_classes: int, **kwargs) -> VGG:
    model = VGG(configuration, num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def vgg11(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration A, 132,863,336 parameters; takes torchvision's `vgg11` state dict."""
    return _vgg("A", weights, num_classes, **kwargs)


@register_model
def vgg11_lrn(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration A-LRN, 132,863,336 parameters; keys are vgg11's."""
    return _vgg("A", weights, num_classes, **{"lrn": True, **kwargs})


@register_model
def vgg11_bn(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration A with batch normalization, 132,868,840 parameters; torchvision's `vgg11_bn` keys."""
    return _vgg("A", weights, num_classes, **{"batch_norm": True, **kwargs})


@register_model
def vgg13(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration B, 133,047,848 parameters; takes torchvision's `vgg13` state dict."""
    return _vgg("B", weights, num_classes, **kwargs)


@register_model
def vgg13_bn(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration B with batch normalization, 133,053,736 parameters; torchvision's `vgg13_bn` keys."""
    return _vgg("B", weights, num_classes, **{"batch_norm": True, **kwargs})


@register_model
def vgg16_1(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration C, 133,638,952 parameters: vgg16 whose stages 3 to 5 end with a 1x1 convolution."""
    return _vgg("C", weights, num_classes, **kwargs)


@register_model
def vgg16(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration D, 138,357,544 parameters; takes torchvision's `vgg16` state dict."""
    return _vgg("D", weights, num_classes, **kwargs)


@register_model
def vgg16_bn(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration D with batch normalization, 138,365,992 parameters; torchvision's `vgg16_bn` keys."""
    return _vgg("D", weights, num_classes, **{"batch_norm": True, **kwargs})


@register_model
def vgg19(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration E, 143,667,240 parameters; takes torchvision's `vgg19` state dict."""
    return _vgg("E", weights, num_classes, **kwargs)


@register_model
def vgg19_bn(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> VGG:
    """VGG configuration E with batch normalization, 143,678,248 parameters; torchvision's `vgg19_bn` keys."""
    return _vgg("E", weights, num_classes, **{"batch_norm": True, **kwargs})
