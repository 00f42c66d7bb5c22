"""Modules with torch.nn's constructors, attributes and state_dict keys, on fastcnn's kernels."""

from .conv import Conv2d, ConvTranspose2d
from .conv_bn import ConvBNReLU2d
from .drop import Dropout, DropPath, StochasticDepth
from .lenet import SparseConv2d, Subsample2d
from .local import LocallyConnected2d
from .normalization import LocalResponseNorm, LRNMaxPool2d
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "ConvBNReLU2d",
    "ConvTranspose2d",
    "DropPath",
    "Dropout",
    "LRNMaxPool2d",
    "LocalResponseNorm",
    "LocallyConnected2d",
    "MaxPool2d",
    "SparseConv2d",
    "StochasticDepth",
    "Subsample2d",
]
