"""Convolutional networks on their own kernels."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch  # first: _C's only needed library, libtorch_cpu, is found because torch has loaded it

from . import _config, functional, nn, ops
from ._config import set_accuracy, set_policy
from ._convert import ConversionReport, convert_, revert_
from ._explain import Explanation, explain
from ._library import cpu_capability
from ._packed import clear_cache

_source_tree = Path(__file__).parent.parent
if (_source_tree / "kernels" / "epilogue.py").is_file():  # not installed: fastcnn.kernels lies beside fastcnn
    __path__.append(str(_source_tree))
_wanted = _config.config.triton and not _config.config.disabled
# Triton takes half a second to import. Not torch.cuda.is_available(), which may start CUDA: forks could not use it.
if _wanted and (torch.cuda.device_count() or os.environ.get("TRITON_INTERPRET", "0") != "0"):
    from . import kernels  # noqa: F401

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
