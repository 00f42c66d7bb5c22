"""cuda-convnet's networks for CIFAR-10 with two locally connected layers, named after their test error.

The "four-layer CNN" of Krizhevsky, Sutskever, Hinton (2012), section 3.3: 13 % test error without local response
normalization, 11 % with it.
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._blocks import check_batch
from ._registry import Weights, load_weights, register_model


class ConvLocal(nn.Module):
    """Input: (N, 3, 32, 32), mean-subtracted RGB. Output: (N, num_classes) logits.

    normalize: local response normalization after each convolution's ReLU.
    """

    def __init__(self, num_classes: int = 10, *, normalize: bool = False):
        super().__init__()

        def rectify() -> nn.Module:
            if not normalize:
                return nn.ReLU()
            return fnn.LocalResponseNorm(5, alpha=1e-3, beta=0.75, k=1.0, activation="relu")

        self.conv1 = fnn.Conv2d(3, 64, 5, padding=2)
        self.relu1 = rectify()
        self.pool1 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = fnn.Conv2d(64, 64, 5, padding=2)
        self.relu2 = rectify()
        self.pool2 = fnn.MaxPool2d(3, 2, ceil_mode=True)
        self.local3 = fnn.LocallyConnected2d(64, 32, 3, 8, padding=1)
        self.relu3 = nn.ReLU()
        self.local4 = fnn.LocallyConnected2d(32, 32, 3, 8, padding=1)
        self.relu4 = nn.ReLU()
        self.fc = nn.Linear(32 * 8 * 8, num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """cuda-convnet's: normal weights, biases 0."""
        for name, std in {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc": 0.01}.items():
            layer = self.get_submodule(name)
            layer.weight.normal_(0, std)  # type: ignore[operator, union-attr]
            layer.bias.zero_()  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.relu1, nn.LocalResponseNorm):
            check_batch("conv_local", x)
        if x.shape[-2:] != (32, 32):
            raise RuntimeError(f"conv_local: expected 32x32 input, but got input of size {tuple(x.shape)}")
        x = self.pool1(self.relu1(self.conv1(x)))  # (N, 64, 32, 32), pooled to (N, 64, 16, 16)
        x = self.pool2(self.relu2(self.conv2(x)))  # (N, 64, 16, 16), pooled to (N, 64, 8, 8)
        x = self.relu3(self.local3(x))  # (N, 32, 8, 8)
        x = self.relu4(self.local4(x))  # (N, 32, 8, 8)
        return self.fc(x.flatten(-3))


@register_model
def conv_local_13pct(*, weights: Weights = None, num_classes: int = 10) -> ConvLocal:
    """Two convolutions and two locally connected layers, 1,901,386 parameters."""
    model = ConvLocal(num_classes)
    load_weights(model, weights)
    return model


@register_model
def conv_local_11pct(*, weights: Weights = None, num_classes: int = 10) -> ConvLocal:
    """conv_local_13pct with local response normalization, 1,901,386 parameters."""
    model = ConvLocal(num_classes, normalize=True)
    load_weights(model, weights)
    return model
