"""The CUDA kernels of networks' first layers from their compiled PTX."""

import pytest
import torch

from tests.ptx import NVCC
from tests.ptx.test_ptx_ops import NCHW, NHWC, check, tensors
from tests.simt import library

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]

# (input, weight), (stride, padding): one for each instance's template.
CASES = {
    "stride 4, 72 outputs": ((1, 3, 15, 19), (72, 3, 5, 7), (4, 4, 2, 3)),
    "stride 2, 64 outputs": ((1, 3, 9, 12), (64, 3, 3, 5), (2, 2, 1, 2)),
    "stride 1, 17 outputs": ((1, 1, 6, 9), (17, 1, 3, 3), (1, 1, 1, 1)),
    "stride 1, 16 outputs": ((1, 1, 6, 9), (16, 1, 3, 3), (1, 1, 1, 1)),
}


@pytest.fixture(scope="module")
def simt():
    return library.load()


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_forward(simt, case, dtype, layout):
    size, weight_size, geometry = CASES[case]
    (x,), weight = tensors(size, dtype, layout, 1), torch.randn(weight_size).to(dtype)
    packed, bias = simt._pack_weight(weight, 1), torch.randn(weight_size[0]).to(dtype)
    flat = [*geometry, 1, 1, 1, 0]
    check(lambda: simt._conv2d(x, weight, packed, bias, None, flat, True, 1), [x, packed, bias])


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", ["stride 4, 72 outputs", "stride 1, 16 outputs"])
def test_weight_gradient(simt, case, layout):
    size, weight_size, geometry = CASES[case]
    args = (geometry[:2], geometry[2:], (1, 1), 1)
    (x,) = tensors(size, torch.bfloat16, layout, 1)
    y = simt.conv2d(x, torch.zeros(weight_size, dtype=x.dtype), None, None, *args, False, 1)
    grad = torch.randn(y.shape).to(x.dtype).to(memory_format=torch.channels_last)
    check(lambda: simt.conv2d_backward_weight(grad, x, weight_size, *args, 1), [grad, x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_pack_weight(simt, dtype):
    weight = torch.randn(5, 3, 3, 3).to(dtype)
    check(lambda: simt._pack_weight(weight, 1), [weight])
