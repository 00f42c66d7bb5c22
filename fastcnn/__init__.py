"""Convolutional networks on their own kernels."""

from importlib.metadata import PackageNotFoundError, version

import torch  # noqa: F401  first: _C's only needed library, libtorch_cpu, is found because torch has loaded it

from . import functional, nn, ops
from ._config import set_accuracy, set_policy
from ._convert import ConversionReport, convert_, revert_
from ._explain import Explanation, explain
from ._library import cpu_capability
from ._packed import clear_cache

try:
    __version__ = version("fastcnn")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = [
    "ConversionReport",
    "Explanation",
    "clear_cache",
    "convert_",
    "cpu_capability",
    "explain",
    "functional",
    "nn",
    "ops",
    "revert_",
    "set_accuracy",
    "set_policy",
]
