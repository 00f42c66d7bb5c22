"""Triton kernels; installed as fastcnn.kernels. Importing it imports triton, and registers the ops where that works.

`MISSING` is None, or why there are none. fastcnn imports this package where there is a GPU, and with
TRITON_INTERPRET=1: then CPU tensors, too, are computed by the kernels, in Triton's interpreter.
"""

import importlib
import importlib.util

MODULES = ("pointwise_backward", "pointwise", "pointwise_siblings", "grouped")
MISSING: str | None = None

try:
    import triton  # noqa: F401

    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
except Exception as error:  # absent, broken, or of another age: the CUDA kernels then compute
    MISSING = f"Triton's kernels cannot be loaded: {error!r}"
