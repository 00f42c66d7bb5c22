"""explain names, for CUDA tensors, the kernel and the tile that the op's own host code then launches."""

import re

import pytest
import torch

from bench.static.layers import launches
from fastcnn import _library
from tests.simt import library

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
# Batch, channels, size, output channels, kernel, groups.
SIZES = [
    (2, 24, 13, 40, 3, 1), (8, 64, 56, 64, 3, 1), (64, 256, 28, 256, 1, 1), (32, 96, 27, 256, 5, 2),
    (2, 3, 32, 64, 7, 1), (2, 32, 14, 32, 3, 32), (2, 32, 14, 32, 3, 8), (2, 64, 14, 64, 3, 8), (3, 5, 1, 7, 1, 1),
    (1, 12, 40, 6, 17, 1),
]  # fmt: skip
STRIDES = [(1, 1), (2, 1), (1, 2), (2, 2)]  # with dilations


def kind(dtype: torch.dtype) -> tuple[int, bool, bool]:
    return dtype.itemsize, dtype == torch.float64, dtype == torch.bfloat16


def agrees(found: dict, call) -> None:
    """Of each phase of a stride, too: packing apart, that kernel alone is launched."""
    kernels = [launch.kernel for launch in launches(call) if "pack_kernel" not in launch.kernel]
    assert kernels
    for kernel in kernels:
        assert kernel.startswith(f"conv2d_{found['kernel']}_kernel")
    tile = re.match(r"(\d+) pixels x (\d+) output", found["tile"])
    if tile and len(kernels) == 1:
        assert re.search(rf"\b{tile[1]}, {tile[2]}\b", kernels[0]), (found["tile"], kernels[0])


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=["f32", "f16", "f64"])
def test_forward(size, last, dtype):
    ops = library.load()
    n, c, hw, k, kernel, groups = size
    x = torch.empty(n, c, hw, hw, dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    w = torch.empty(k, c // groups, kernel, kernel, dtype=dtype)
    for stride, dilation in STRIDES:
        if dilation * (kernel - 1) >= hw + 2:
            continue
        geometry = (stride, stride, 1, 1, dilation, dilation, groups)
        call = lambda g=geometry: ops._conv2d(x, w, None, None, None, [*g, 0], False, 1)
        sizes = tuple(x.shape), tuple(w.shape)
        agrees(_library._C.explain_cuda_conv2d(*sizes, geometry, *kind(dtype), last, False, False), call)


@pytest.mark.parametrize("size", [SIZES[0], SIZES[1], SIZES[6]], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_transposed(size, last, dtype):
    ops = library.load()
    n, c, hw, k, kernel, groups = size
    x = torch.empty(n, c, hw, hw, dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    w = torch.empty(c, k // groups, kernel, kernel, dtype=dtype)
    for stride, dilation in STRIDES:
        args = (stride, stride), (1, 1), (0, 0), (dilation, dilation), groups
        y = tuple(
            torch.nn.functional.conv_transpose2d(x.float(), w.float(), None, stride, 1, 0, groups, dilation).shape
        )
        geometry = (stride, stride, 1, 1, dilation, dilation, groups)
        found = _library._C.explain_cuda_conv2d(y, tuple(w.shape), geometry, *kind(dtype), last, True, False)
        agrees(found, lambda a=args: ops._conv_transpose2d(x, w, None, *a))
