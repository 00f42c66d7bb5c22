"""ZFNet: Zeiler, Fergus: Visualizing and Understanding Convolutional Networks (2013), and two wider variants."""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import check_batch, conv_relu
from ._registry import Weights, load_weights, register_model


class ZFNet(nn.Module):
    """Input: (N, 3, 224, 224), mean-subtracted RGB. Output: (N, num_classes) logits.

    widths: the channels of conv3 to conv5. hidden: the features of fc6 and fc7.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        widths: tuple[int, int, int] = (384, 384, 256),
        hidden: tuple[int, int] = (4096, 4096),
        dropout: float = 0.5,
    ):
        super().__init__()
        self.conv1 = fnn.Conv2d(3, 96, 7, stride=2, padding=1)
        self.pool1 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = fnn.LocalResponseNorm(5, k=2.0, alpha_mode="sum", activation="relu")
        self.conv2 = fnn.Conv2d(96, 256, 5, stride=2)
        self.pool2 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm2 = fnn.LocalResponseNorm(5, k=2.0, alpha_mode="sum", activation="relu")
        self.conv3 = fnn.Conv2d(256, widths[0], 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = fnn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.relu4 = nn.ReLU()
        self.conv5 = fnn.Conv2d(widths[1], widths[2], 3, padding=1)
        self.relu5 = nn.ReLU()
        self.pool5 = fnn.MaxPool2d(3, 2)
        self.fc6 = nn.Linear(widths[2] * 6 * 6, hidden[0])
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(hidden[0], hidden[1])
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(hidden[1], num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Section 3: weights N(0, 0.01^2), biases 0."""
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                layer.weight.normal_(0, 0.01)
                layer.bias.zero_()

    @torch.no_grad()
    def renormalise(self, radius: float = 0.1) -> None:
        """Scales each of conv1's filters whose root mean square exceeds radius back to it; after a training step."""
        weight = self.conv1.weight
        rms = weight.square().mean((1, 2, 3), keepdim=True).sqrt()
        weight.mul_((radius / rms).clamp(max=1.0))

    def forward(self, x: Tensor) -> Tensor:  # shapes of the paper's network
        check_batch("zfnet", x)
        # rectified, pooled, normalised: a maximum before the ReLU is the same, and leaves it with the normalization
        x = self.norm1(self.pool1(self.conv1(x)))  # (N, 96, 110, 110), pooled to (N, 96, 55, 55)
        x = self.norm2(self.pool2(self.conv2(x)))  # (N, 256, 26, 26), pooled to (N, 256, 13, 13)
        x = conv_relu(self.conv3, self.relu3, x)  # (N, 384, 13, 13)
        x = conv_relu(self.conv4, self.relu4, x)  # (N, 384, 13, 13)
        x = self.pool5(conv_relu(self.conv5, self.relu5, x))  # (N, 256, 13, 13), pooled to (N, 256, 6, 6)
        if x.shape[-2:] != (6, 6):
            raise RuntimeError(
                f"zfnet: expected 224x224 input, of which pool5 makes 6x6, but got pool5 {tuple(x.shape)}"
            )
        x = self.drop6(self.relu6(self.fc6(x.flatten(-3))))  # (N, 4096)
        x = self.drop7(self.relu7(self.fc7(x)))  # (N, 4096)
        return self.fc8(x)


@register_model
def zfnet(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ZFNet:
    """ZFNet of the 2013 paper, 62,357,608 parameters."""
    model = ZFNet(num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def zfnet_cs231n(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ZFNet:
    """The network of the CS231n course notes, 107,627,624 parameters: conv3 to conv5 have 512, 1024, 512 channels."""
    model = ZFNet(num_classes, **{"widths": (512, 1024, 512), **kwargs})
    load_weights(model, weights)
    return model


@register_model
def zfnet512(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> ZFNet:
    """The widths of the ONNX model zoo's zfnet512, 87,250,536 parameters: 512 channels, 4096 and 1024 features."""
    model = ZFNet(num_classes, **{"widths": (512, 512, 512), "hidden": (4096, 1024), **kwargs})
    load_weights(model, weights)
    return model
