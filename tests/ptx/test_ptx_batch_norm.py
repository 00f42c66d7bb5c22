"""Convolution with batch normalization in training, from its kernels' compiled PTX."""

import pytest
import torch

from tests.ptx import NVCC
from tests.ptx.test_ptx_ops import NCHW, NHWC, check, tensors
from tests.simt import library

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
    pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"]),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
SHAPES = pytest.mark.parametrize("shape", [(2, 8, 4, 5), (2, 7, 3, 3)], ids=["vectors", "elements"])
ONE = ((1, 1), (0, 0), (1, 1))


@pytest.fixture(scope="module")
def simt():
    return library.load()


def norm(channels):
    return torch.rand(channels) + 0.5, torch.randn(channels, dtype=torch.double)


@DTYPES
@SHAPES
def test_forward(simt, shape, dtype, layout):
    """Behind a depthwise convolution, which takes no statistics itself."""
    x, residual = tensors(shape, dtype, layout, 2)
    ones, (weight, bias) = torch.ones(shape[1], 1, 1, 1, dtype=dtype), norm(shape[1])
    geometry = ((1, 1), (0, 0), (1, 1), shape[1])
    check(
        lambda: simt._conv2d_bn_relu(x, ones, None, residual, weight, bias, *geometry, 1e-5, True, 1),
        [x, ones, residual, weight, bias],
    )


@DTYPES
@SHAPES
def test_backward(simt, shape, dtype, layout):
    grad, z, y = tensors(shape, dtype, layout, 3)
    mean, var, (weight, bias) = torch.randn(shape[1]) / 8, torch.rand(shape[1]) + 0.5, norm(shape[1])
    for out in (y, None):
        check(
            lambda out=out: simt._batch_norm_relu_backward(grad, z, out, mean, var, weight, bias, 1e-5, True, True),
            [grad, z, y, mean, var, weight, bias],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_statistics_from_the_epilogue(simt, dtype, layout):
    """A matrix product's tile is not full: of its 64 pixels and channels 45 and 24 exist."""
    if dtype is torch.bfloat16 and layout is NCHW:
        pytest.skip("PyTorch copies the input to NHWC, which no launch repeats")
    (x,), weight = tensors((1, 16, 9, 5), dtype, layout, 1), (torch.randn(24, 16, 1, 1) / 4).to(dtype)
    check(
        lambda: simt._conv2d_bn_relu(x, weight, None, None, None, None, *ONE, 1, 1e-5, True, 1),
        [x, weight],
    )
