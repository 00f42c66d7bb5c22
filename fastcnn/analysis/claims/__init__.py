"""The claims by subject; importing this registers all of them."""

from .._claim import all_claims
from . import alexnet, inception, lenet, resnet, training, vgg, zfnet

__all__ = ["alexnet", "all_claims", "inception", "lenet", "resnet", "training", "vgg", "zfnet"]
