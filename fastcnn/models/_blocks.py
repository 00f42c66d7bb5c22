"""Convolution and rectifier as separate modules, for their names, that one op computes."""

from torch import Tensor, nn

from fastcnn import functional as F
from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import conv_bn_relu, is_plain


def conv_relu(conv: nn.Module, relu: nn.Module, x: Tensor) -> Tensor:
    """relu(conv(x)), in one pass unless one of the two has hooks or is of another class."""
    if not (isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" and is_plain(conv) and is_plain(relu)):
        return relu(conv(x))
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, activation="relu")


def check_batch(name: str, x: Tensor) -> None:
    """Refuses an image without a batch: torch's local response normalization takes its rows for channels."""
    if x.dim() != 4:
        raise RuntimeError(f"{name}: expected (N, 3, H, W) input, but got input of size {tuple(x.shape)}")


class FusedSequential(nn.Sequential):
    """nn.Sequential in which each Conv2d, ReLU and each Conv2d, BatchNorm2d, ReLU is computed in one pass."""

    def forward(self, input: Tensor) -> Tensor:
        layers, i = list(self), 0
        while i < len(layers):
            kinds = [type(layer) for layer in layers[i : i + 3]]
            if kinds == [fnn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
                input = conv_bn_relu(layers[i], layers[i + 1], input, activation=layers[i + 2])
                i += 3
            elif kinds[:2] == [fnn.Conv2d, nn.ReLU]:
                input = conv_relu(layers[i], layers[i + 1], input)
                i += 2
            else:
                input = layers[i](input)
                i += 1
        return input


class ConvReLU2d(nn.Module):
    """relu(conv(x)). Arguments are torch.nn.Conv2d's."""

    def __init__(self, in_channels, out_channels, kernel_size, **kwargs):
        super().__init__()
        self.conv = fnn.Conv2d(in_channels, out_channels, kernel_size, **kwargs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return conv_relu(self.conv, self.relu, x)
