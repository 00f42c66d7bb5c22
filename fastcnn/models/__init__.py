"""Classic convolutional networks, written with fastcnn.nn."""

from ._registry import get_model, list_models
from .alexnet import AlexNet, AlexNetOWT, alexnet, alexnet_1gpu, alexnet_cs231n, alexnet_owt, bvlc_alexnet
from .conv_local import ConvLocal, conv_local_11pct, conv_local_13pct
from .lenet import LeNet5, lenet5, lenet5_dense, rbf_loss

__all__ = [
    "AlexNet",
    "AlexNetOWT",
    "ConvLocal",
    "LeNet5",
    "alexnet",
    "alexnet_1gpu",
    "alexnet_cs231n",
    "alexnet_owt",
    "bvlc_alexnet",
    "conv_local_11pct",
    "conv_local_13pct",
    "get_model",
    "lenet5",
    "lenet5_dense",
    "list_models",
    "rbf_loss",
]
