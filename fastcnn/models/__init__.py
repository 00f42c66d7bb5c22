"""Classic convolutional networks, written with fastcnn.nn."""

from ._registry import get_model, list_models
from .alexnet import AlexNet, AlexNetOWT, alexnet, alexnet_1gpu, alexnet_cs231n, alexnet_owt, bvlc_alexnet
from .lenet import LeNet5, lenet5, lenet5_dense, rbf_loss

__all__ = [
    "AlexNet",
    "AlexNetOWT",
    "LeNet5",
    "alexnet",
    "alexnet_1gpu",
    "alexnet_cs231n",
    "alexnet_owt",
    "bvlc_alexnet",
    "get_model",
    "lenet5",
    "lenet5_dense",
    "list_models",
    "rbf_loss",
]
