"""The CUDA kernels that are neither normalization with max pooling nor dense convolution, from their compiled PTX."""

import pytest
import torch

from tests.ptx import NVCC
from tests.ptx.test_ptx_ops import NCHW, NHWC, check, tensors
from tests.simt import library

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
    pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"]),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"]),
]


@pytest.fixture(scope="module")
def simt():
    return library.load()


@pytest.mark.parametrize("kernel", [2, 3, 7])
def test_avg_pool2d(simt, kernel, dtype, layout):
    (x,) = tensors((2, 8, 9, 10), dtype, layout, 1)
    args = ((kernel, kernel), (2, 2), (1, 1), True, kernel == 3, None)
    y = simt._avg_pool2d(x, *args)
    check(lambda: simt._avg_pool2d(x, *args), [x])
    check(lambda: simt.avg_pool2d_backward(y, x.shape, layout is NHWC, *args), [y])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20, 9)])
def test_adaptive_avg_pool2d(simt, size, dtype, layout):
    (x,) = tensors((2, 8, 8, 12), dtype, layout, 1)
    y = simt._adaptive_avg_pool2d(x, size)
    check(lambda: simt._adaptive_avg_pool2d(x, size), [x])
    check(lambda: simt.adaptive_avg_pool2d_backward(y, x.shape, layout is NHWC, size), [y])


@pytest.mark.parametrize("places", [(9, 5), (30, 60)])
def test_max_unpool2d(simt, places, dtype, layout):
    (x,), (g,) = tensors((1, 5, 6, 7), dtype, layout, 1), tensors((1, 5, *places), dtype, layout, 1)
    at = torch.randint(0, places[0] * places[1], x.shape).contiguous(memory_format=layout)
    for overlap in (False, True):
        check(lambda overlap=overlap: simt._max_unpool2d(x, at, places, overlap), [x, at])
    check(lambda: simt.max_unpool2d_gather(g, at), [g, at])


def test_subsample2d(simt, dtype, layout):
    (x,) = tensors((2, 6, 7, 9), dtype, layout, 1)
    w, b = torch.randn(2, 6).to(dtype)
    args = ((2, 3), (2, 2), 0.25)
    y = simt._subsample2d(x, w, b, *args)
    check(lambda: simt._subsample2d(x, w, b, *args), [x, w, b])
    check(lambda: simt.subsample2d_backward_input(y, w, x.shape, *args), [y, w])
    check(lambda: simt.subsample2d_backward_weight(y, x, *args), [y, x])


def test_sparse_conv2d(simt, dtype, layout):
    (x,), (w,) = tensors((2, 5, 6, 7), dtype, layout, 1), [torch.randn(5, 3, 2).to(dtype)]
    table = ((2, 0, 3), (0, 4, 1, 1, 2), (1, 2), (1, 0))
    y = simt._sparse_conv2d(x, w, None, *table)
    check(lambda: simt._sparse_conv2d(x, w, None, *table), [x, w])
    check(lambda: simt.sparse_conv2d_backward_input(y, w, x.shape, *table), [y, w])
    check(lambda: simt.sparse_conv2d_backward_weight(y, x, (3, 2), *table), [y, x])


def test_local_conv2d(simt, dtype, layout):
    (x,), (w,) = tensors((3, 5, 4, 5), dtype, layout, 1), [torch.randn(2, 5, 4, 5, 3, 2).to(dtype)]
    args = ((2, 1), (1, 1), (1, 2))
    y = simt._local_conv2d(x, w, None, *args)
    check(lambda: simt._local_conv2d(x, w, None, *args), [x, w])
    check(lambda: simt.local_conv2d_backward_input(y, w, x.shape, *args), [y, w])
    check(lambda: simt.local_conv2d_backward_weight(y, x, (5, 3, 2), *args), [y, x])


def test_batch_norm_relu(simt, dtype, layout):
    for shape in ((2, 8, 4, 5), (2, 7, 3, 3)):
        (x,) = tensors(shape, dtype, layout, 1)
        mean, var, weight = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5, torch.randn(shape[1], dtype=torch.double)
        args = (x, mean, var, weight, None, 1e-5, True)
        check(lambda args=args: simt._batch_norm_relu(*args), [x, mean, var, weight])
