"""Loads the native libraries; a failure is kept and said at first use, with what to do about it."""

import importlib
import importlib.util

import torch

load_error: ImportError | None = None
try:
    _C = importlib.import_module("fastcnn._C")  # registers torch.ops.fastcnn.* as it loads
except ImportError as error:
    load_error = ImportError(
        f"fastcnn's native library does not load under torch {torch.__version__} (it needs torch >= 2.11): {error}. "
        "Rebuild it here: pip install --no-build-isolation --no-deps --force-reinstall -e ."
    )


def _load_cuda() -> tuple[frozenset[str], str]:
    """The ops that have CUDA kernels, and why there are none where there are none. Needs no GPU."""
    if load_error is not None:
        return frozenset(), str(load_error)
    if torch.version.cuda is None:
        return frozenset(), "this torch is a CPU build"
    found = importlib.util.find_spec("fastcnn._C_cuda")
    if found is None or found.origin is None:
        return frozenset(), "fastcnn was built without nvcc"
    try:
        torch.ops.load_library(found.origin)
    except OSError as error:
        return frozenset(), f"{found.origin} does not load: {error}"
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastcnn::"))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(name.removeprefix("fastcnn::") for name in names if has_kernel(name, "CUDA")), ""


cuda_ops, cuda_missing = _load_cuda()


def require() -> None:
    """Raises the ImportError of a library that did not load."""
    if load_error:
        raise load_error


def cpu_capability() -> str:
    """The instruction-set level whose kernels run: 'baseline', 'avx2' or 'avx512'."""
    require()
    return _C.cpu_capability()
