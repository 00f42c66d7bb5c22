"""Every CUDA kernel of fastcnn from its compiled PTX: the same launches as on the simt library, the same results."""

import pytest
import torch

from tests.ptx import NVCC
from tests.ptx.replay import record, replay
from tests.simt import library

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]

NHWC, NCHW = torch.channels_last, torch.contiguous_format
POOL = ((3, 3), (2, 2), (1, 1), (1, 1), True)
# One rounding of the result to its type apart, of some ten terms in float32 that nvcc contracts into fused operations.
TOLERANCE = {torch.float32: (2e-6, 1e-6), torch.bfloat16: (2**-7, 1e-6), torch.float64: (1e-14, 1e-14)}


def tensors(size, dtype, layout, count):
    return [torch.randn(size).to(dtype).to(memory_format=layout) for _ in range(count)]


def repeated(call, inputs):
    """What call() returns, and what the kernels that it launched make of the inputs when they run from their PTX."""
    result, launches = record(call)
    outputs = list(result) if isinstance(result, tuple) else [result]
    assert launches
    return outputs, replay(launches, inputs, outputs)


def check(call, inputs):
    for want, got in zip(*repeated(call, inputs), strict=True):
        if want.is_floating_point():
            rtol, atol = TOLERANCE[want.dtype]
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
        else:
            assert torch.equal(got, want)


@pytest.fixture(scope="module")
def simt():
    return library.load()


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.6)])
def test_local_response_norm(simt, size, beta, dtype, layout):
    x, g = tensors((2, 12, 5, 6), dtype, layout, 2)
    args = (size, 0.1, beta, 1.5, 2, True)
    check(lambda: simt._local_response_norm(x, *args), [x])
    check(lambda: simt.local_response_norm_backward(g, x, *args), [x, g])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
def test_local_response_norm_of_odd_planes(simt, dtype):
    """Rows that begin anywhere in a sector, of 1 whole warp's pixels and a part."""
    x, g = tensors((1, 6, 11, 13), dtype, NCHW, 2)
    args = (5, 0.1, 0.75, 1.5, 1, False)
    check(lambda: simt._local_response_norm(x, *args), [x])
    check(lambda: simt.local_response_norm_backward(g, x, *args), [x, g])


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 17])
def test_max_pool2d(simt, kernel, dtype, layout):
    (x,) = tensors((2, 8, 9, 10) if kernel < 17 else (1, 3, 20, 18), dtype, layout, 1)
    args = ((kernel, kernel), (2, 2), (1, 1), (1, 1), True)
    y, argmax = simt._max_pool2d(x, *args)
    g = torch.randn(y.shape).to(dtype).to(memory_format=layout)
    check(lambda: simt._max_pool2d(x, *args), [x])
    check(lambda: simt.max_pool2d_backward(g, argmax, x.shape, *args), [g, argmax])
    check(lambda: simt.max_pool2d_gather(x, argmax, *args), [x, argmax])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 17])
def test_max_pool2d_of_some_pixels(simt, kernel, dtype):
    """Windows that leave pixels out are not read through shared memory."""
    (x,) = tensors((2, 8, 9, 10) if kernel < 17 else (1, 2, 36, 36), dtype, NCHW, 1)
    args = ((kernel, kernel), (kernel + 1, kernel + 1), (0, 0), (1, 1), False)
    y, argmax = simt._max_pool2d(x, *args)
    g = torch.randn(y.shape).to(dtype)
    check(lambda: simt._max_pool2d(x, *args), [x])
    check(lambda: simt.max_pool2d_backward(g, argmax, x.shape, *args), [g, argmax])


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_lrn_max_pool2d(simt, beta, dtype, layout):
    (x,) = tensors((2, 12, 9, 7), dtype, layout, 1)
    args = (5, 0.1, beta, 1.5, 2, False, *POOL)
    y, argmax = simt._lrn_max_pool2d(x, *args)
    g = torch.randn(y.shape).to(dtype).to(memory_format=layout)
    check(lambda: simt._lrn_max_pool2d(x, *args), [x])
    check(lambda: simt.lrn_max_pool2d_backward(g, argmax, x, *args), [g, argmax, x])
