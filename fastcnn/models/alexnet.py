"""AlexNet: the two-tower network of the paper, its published variants, and the single-tower "one weird trick" network.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks (2012), and
Krizhevsky: One weird trick for parallelizing convolutional neural networks (2014), as torchvision writes it.
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import check_batch, conv_relu
from ._registry import Weights, load_weights, register_model


class AlexNet(nn.Module):
    """The network of the 2012 paper; its two GPUs' towers are the two groups of conv2, conv4 and conv5.

    Input: (N, 3, 227, 227), mean-subtracted RGB (the paper says 224, from which its own 55x55 maps do not follow).
    Output: (N, num_classes) logits. lrn_groups=2 normalises within each tower; 1, as Caffe does, across both.

    What the variants change: widths, the channels of conv1 to conv5; towers; lrn_k and lrn_mode, the normalization's
    k and alpha_mode; norm_first, whether it precedes the first two poolings; whole_pool5, whether pool5 takes the
    last, incomplete windows of a 12x12 map; sixth, whether a 3x3 convolution follows pool5, as in the network that the
    paper trained on more classes (section 6.1; its width is ours); fc_std and bias, initial values where the paper has
    0.01 and 1.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        lrn_groups: int = 2,
        dropout: float = 0.5,
        widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256),
        towers: int = 2,
        lrn_k: float = 2.0,
        lrn_mode: str = "sum",
        norm_first: bool = True,
        whole_pool5: bool = False,
        sixth: bool = False,
        fc_std: float = 0.01,
        bias: float = 1.0,
    ):
        super().__init__()
        self.norm_first, self.whole_pool5 = norm_first, whole_pool5

        def relu_norm() -> nn.Module:  # section 3.3, after the ReLU, in one pass over the data
            return fnn.LocalResponseNorm(5, k=lrn_k, alpha_mode=lrn_mode, groups=lrn_groups, activation="relu")

        self.conv1 = fnn.Conv2d(3, widths[0], 11, stride=4)
        self.norm1 = relu_norm()
        self.pool1 = fnn.MaxPool2d(3, 2)
        self.conv2 = fnn.Conv2d(widths[0], widths[1], 5, padding=2, groups=towers)
        self.norm2 = relu_norm()
        self.pool2 = fnn.MaxPool2d(3, 2)
        self.conv3 = fnn.Conv2d(widths[1], widths[2], 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = fnn.Conv2d(widths[2], widths[3], 3, padding=1, groups=towers)
        self.relu4 = nn.ReLU()
        self.conv5 = fnn.Conv2d(widths[3], widths[4], 3, padding=1, groups=towers)
        self.relu5 = nn.ReLU()
        self.pool5 = fnn.MaxPool2d(3, 2, ceil_mode=whole_pool5)
        self.conv6 = fnn.Conv2d(widths[4], 256, 3, padding=1) if sixth else None
        self.conv6_relu = nn.ReLU() if sixth else None
        self.fc6 = nn.Linear((256 if sixth else widths[4]) * 6 * 6, 4096)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(4096, num_classes)
        self._initialise(fc_std, bias)

    @torch.no_grad()
    def _initialise(self, fc_std: float, bias: float) -> None:
        """Section 5: weights N(0, 0.01); bias 1 where it gives the ReLUs positive inputs early on, else 0."""
        for name, layer in self.named_children():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                layer.weight.normal_(0, fc_std if name in ("fc6", "fc7") else 0.01)
                layer.bias.fill_(bias if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0)

    def forward(self, x: Tensor) -> Tensor:  # shapes of the paper's network
        check_batch("alexnet", x)
        x = self.conv1(x)  # (N, 96, 55, 55)
        # A maximum before or after the ReLU is the same: the ReLU stays with the normalization.
        x = self.pool1(self.norm1(x)) if self.norm_first else self.norm1(self.pool1(x))  # (N, 96, 27, 27)
        x = self.conv2(x)  # (N, 256, 27, 27)
        x = self.pool2(self.norm2(x)) if self.norm_first else self.norm2(self.pool2(x))  # (N, 256, 13, 13)
        x = self.relu3(self.conv3(x))  # (N, 384, 13, 13); here each tower sees the other
        x = self.relu4(self.conv4(x))  # (N, 384, 13, 13)
        x = self.pool5(self.relu5(self.conv5(x)))  # (N, 256, 13, 13), pooled to (N, 256, 6, 6)
        if x.shape[-2:] != (6, 6):
            sizes = "224x224 or 227x227" if self.whole_pool5 else "227x227"
            raise RuntimeError(
                f"alexnet: expected {sizes} input, of which pool5 makes 6x6, but got pool5 {tuple(x.shape)}"
            )
        if self.conv6 is not None and self.conv6_relu is not None:
            x = conv_relu(self.conv6, self.conv6_relu, x)  # (N, 256, 6, 6)
        x = x.flatten(-3)  # (N, 9216)
        x = self.drop6(self.relu6(self.fc6(x)))  # (N, 4096)
        x = self.drop7(self.relu7(self.fc7(x)))  # (N, 4096)
        return self.fc8(x)


class AlexNetOWT(nn.Module):
    """The single-tower network without normalization; state dict keys are those of torchvision's `alexnet`.

    Input: (N, 3, H, W), 224x224 as a rule and at least 63x63. Output: (N, num_classes) logits.
    """

    def __init__(self, num_classes: int = 1000, *, dropout: float = 0.5):
        super().__init__()
        self.features = nn.Sequential(  # shapes for 224x224 input
            fnn.Conv2d(3, 64, 11, stride=4, padding=2),  # (N, 64, 55, 55)
            nn.ReLU(),
            fnn.MaxPool2d(3, 2),  # (N, 64, 27, 27)
            fnn.Conv2d(64, 192, 5, padding=2),  # (N, 192, 27, 27)
            nn.ReLU(),
            fnn.MaxPool2d(3, 2),  # (N, 192, 13, 13)
            fnn.Conv2d(192, 384, 3, padding=1),  # (N, 384, 13, 13)
            nn.ReLU(),
            fnn.Conv2d(384, 256, 3, padding=1),  # (N, 256, 13, 13)
            nn.ReLU(),
            fnn.Conv2d(256, 256, 3, padding=1),  # (N, 256, 13, 13)
            nn.ReLU(),
            fnn.MaxPool2d(3, 2),  # (N, 256, 6, 6)
        )
        self.avgpool = fnn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(-3))


@register_model
def alexnet(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> AlexNet:
    """AlexNet of the 2012 paper, 60,965,224 parameters; see AlexNet for the options."""
    model = AlexNet(num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def alexnet_cs231n(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> AlexNet:
    """The one-tower network of the CS231n course notes, 62,378,344 parameters: normalization follows the pooling."""
    model = AlexNet(num_classes, **{"lrn_groups": 1, "towers": 1, "norm_first": False, **kwargs})
    load_weights(model, weights)
    return model


@register_model
def alexnet_1gpu(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> AlexNet:
    """The paper's network for one GPU (its second footnote), 59,798,312 parameters: half as wide up to conv4."""
    model = AlexNet(num_classes, **{"lrn_groups": 1, "towers": 1, "widths": (48, 128, 192, 192, 256), **kwargs})
    load_weights(model, weights)
    return model


@register_model
def bvlc_alexnet(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> AlexNet:
    """Caffe's AlexNet, 60,965,224 parameters: normalised across the towers, with k=1 and alpha divided by the size.

    Input: 227x227 as Caffe's, or 224x224 as the ONNX model zoo's, whose pool5 is padded at its end.
    """
    caffe = {"lrn_groups": 1, "lrn_k": 1.0, "lrn_mode": "mean", "whole_pool5": True, "fc_std": 0.005, "bias": 0.1}
    model = AlexNet(num_classes, **{**caffe, **kwargs})
    load_weights(model, weights)
    return model


@register_model
def alexnet_owt(*, weights: Weights = None, num_classes: int = 1000, **kwargs) -> AlexNetOWT:
    """Single-tower AlexNet, 61,100,840 parameters; takes torchvision's `alexnet` state dict."""
    model = AlexNetOWT(num_classes, **kwargs)
    load_weights(model, weights)
    return model
