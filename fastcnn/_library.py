"""Loads the native library; a failure is kept and raised at first use, with what to do about it."""

import importlib

import torch

load_error: ImportError | None = None
try:
    _C = importlib.import_module("fastcnn._C")  # registers torch.ops.fastcnn.* as it loads
except ImportError as error:
    load_error = ImportError(
        f"fastcnn's native library does not load under torch {torch.__version__} (it needs torch >= 2.11): {error}. "
        "Rebuild it here: pip install --no-build-isolation --no-deps --force-reinstall -e ."
    )


def require() -> None:
    """Raises the ImportError of a library that did not load."""
    if load_error:
        raise load_error


def cpu_capability() -> str:
    """The instruction-set level whose kernels run: 'baseline', 'avx2' or 'avx512'."""
    require()
    return _C.cpu_capability()
