"""Classic convolutional networks, written with fastcnn.nn."""

from ._registry import get_model, list_models
from .alexnet import AlexNet, AlexNetOWT, alexnet, alexnet_owt
from .lenet import LeNet5, lenet5, lenet5_dense, rbf_loss

__all__ = [
    "AlexNet",
    "AlexNetOWT",
    "LeNet5",
    "alexnet",
    "alexnet_owt",
    "get_model",
    "lenet5",
    "lenet5_dense",
    "list_models",
    "rbf_loss",
]
