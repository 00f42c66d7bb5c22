"""Convolutions and transposed convolutions from their compiled PTX, against float64."""

import pytest
import torch

from fastcnn.ops import conv2d as conv
from fastcnn.ops import conv_transpose2d as transposed
from tests.ptx import NVCC
from tests.ptx.test_ptx_ops import NCHW, NHWC, repeated
from tests.simt import library
from tests.test_conv2d import tolerance
from tests.test_conv2d_tiles import linear

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
PLAIN, SAME = ((1, 1), (0, 0), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 1)
GROUPS = ((1, 1), (1, 1), (1, 1), 2)
STRIDED = ((2, 1), (1, 2), (1, 1), 1)

# What its kernels are named after: dtype, layout, input, weight, (stride, padding, dilation, groups). Blocks of 128
# pixels take 132 of them and more: those are of 1x1, and few channels.
CASES = {
    "ffma": (F32, NCHW, (2, 5, 6, 7), (20, 5, 3, 3), STRIDED),
    "ffma, two groups": (F32, NHWC, (1, 18, 5, 6), (40, 9, 3, 3), GROUPS),
    "ffma, 128x64": (F32, NCHW, (1, 3, 131, 130), (16, 3, 1, 1), PLAIN),
    "mma": (BF16, NHWC, (2, 16, 6, 7), (24, 16, 3, 3), STRIDED),
    "mma, float16": (F16, NHWC, (2, 24, 5, 5), (16, 24, 3, 3), ((1, 1), (2, 2), (2, 2), 1)),
    "mma, two groups": (F16, NHWC, (1, 32, 4, 5), (32, 16, 3, 3), GROUPS),
    "mma, 128x64": (BF16, NHWC, (1, 8, 131, 130), (8, 8, 1, 1), PLAIN),
    "grouped": (F32, NHWC, (2, 8, 9, 7), (8, 1, 3, 3), ((1, 1), (1, 1), (1, 1), 8)),
    "grouped, float16": (F16, NHWC, (1, 16, 7, 6), (16, 2, 3, 3), ((2, 2), (1, 1), (1, 1), 8)),
    "grouped, bfloat16": (BF16, NHWC, (1, 16, 6, 5), (16, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 4)),
    "direct": (F64, NCHW, (2, 5, 6, 7), (6, 5, 3, 2), ((2, 1), (1, 1), (1, 1), 1)),
    "direct, stride and dilation": (F32, NHWC, (1, 4, 7, 9), (3, 4, 3, 3), ((2, 2), (2, 2), (2, 2), 1)),
    "direct, bfloat16": (BF16, NCHW, (1, 6, 5, 6), (9, 2, 3, 3), ((1, 1), (1, 1), (1, 1), 3)),
    "direct, float16": (F16, NHWC, (1, 3, 9, 9), (7, 3, 5, 5), ((2, 2), (2, 2), (1, 1), 1)),
}


@pytest.fixture(scope="module")
def simt():
    return library.load()


def tensors(dtype, layout, *sizes):
    return [torch.randn(size).to(dtype).to(memory_format=layout) for size in sizes]


@pytest.mark.parametrize("case", CASES)
def test_conv2d(simt, case):
    dtype, layout, size, weight_size, geometry = CASES[case]
    out = [conv.output_size(size[2 + d], weight_size[2 + d], *(geometry[i][d] for i in range(3))) for d in range(2)]
    x, grad = tensors(dtype, layout, size, (size[0], weight_size[0], *out))
    weight, bias = torch.randn(weight_size).to(dtype), torch.randn(weight_size[0]).to(dtype)
    y, dx, dw = linear(x, weight, geometry, grad)
    size_y, size_dx, size_dw = linear(x.abs(), weight.abs(), geometry, grad.abs())

    _, (got,) = repeated(
        lambda: simt.conv2d(x, weight, bias, grad, *geometry, True, 1), [x, weight, bias, grad]
    )  # the gradient serves as a residual
    wide = bias.double().view(-1, 1, 1)
    bound = tolerance(dtype, weight[0].numel(), size_y + wide.abs() + grad.abs())
    assert ((got - (y + wide + grad).relu()).abs() <= bound).all()
    _, (got,) = repeated(lambda: simt.conv2d_backward_input(grad, weight, x.shape, *geometry, 1), [grad, weight])
    assert ((got - dx).abs() <= tolerance(dtype, weight[:, 0].numel(), size_dx)).all()
    _, (got,) = repeated(lambda: simt.conv2d_backward_weight(grad, x, weight.shape, *geometry, 1), [grad, x])
    assert ((got - dw).abs() <= tolerance(dtype, grad[:, 0].numel(), size_dw)).all()


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_padding_modes(simt, dtype, mode):
    """And weights that were packed before."""
    x, weight = tensors(dtype, NCHW, (2, 4, 5, 6), (16, 4, 3, 3))
    (packed,), (repacked,) = repeated(lambda: simt._pack_weight(weight, 1), [weight])
    assert torch.equal(repacked, packed)
    (want,), (got,) = repeated(
        lambda: simt._conv2d(x, weight, packed, None, None, (1, 1, 2, 1, 1, 1, 1, mode), False, 1), [x, weight, packed]
    )
    padded = torch.nn.functional.pad(x.double(), (1, 1, 2, 2), conv.PADDING_MODES[mode])
    reference = torch.nn.functional.conv2d(padded, weight.double())
    size = torch.nn.functional.conv2d(padded.abs(), weight.double().abs())
    assert ((got - reference).abs() <= tolerance(dtype, weight[0].numel(), size)).all()
    assert ((got - want).abs() <= tolerance(dtype, weight[0].numel(), size)).all()


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
def test_folded_weights(simt, dtype):
    """A weight packed in the accumulator's type, as inference's batch normalization leaves it, becomes the input's."""
    x, weight = tensors(dtype, NHWC, (1, 8, 5, 6), (16, 8, 3, 3))
    wide = weight.to(F64 if dtype == F64 else F32)
    (packed,), _ = repeated(lambda: simt._pack_weight(wide, 1), [wide])
    _, (got,) = repeated(
        lambda: simt._conv2d(x, weight, packed, None, None, (1, 1, 1, 1, 1, 1, 1, 0), False, 1), [x, weight, packed]
    )
    y, _, _ = linear(x, weight, SAME, torch.zeros(1, 16, 5, 6))
    size, _, _ = linear(x.abs(), weight.abs(), SAME, torch.zeros(1, 16, 5, 6))
    assert ((got - y).abs() <= tolerance(dtype, weight[0].numel(), size)).all()


# dtype, layout, input, weight, (stride, padding, output_padding, dilation, groups)
TRANSPOSED = {
    "ffma": (F32, NCHW, (2, 18, 4, 5), (18, 16, 3, 3), ((2, 2), (1, 1), (1, 0), (1, 1), 1)),
    "mma": (BF16, NHWC, (1, 16, 4, 5), (16, 8, 4, 4), ((2, 2), (1, 1), (0, 0), (1, 1), 1)),
    "direct": (F64, NHWC, (1, 4, 4, 3), (4, 3, 3, 3), ((2, 3), (0, 1), (1, 2), (2, 1), 1)),
    "grouped": (F16, NHWC, (1, 8, 5, 5), (8, 1, 3, 3), ((1, 1), (1, 1), (0, 0), (1, 1), 8)),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose2d(simt, case):
    dtype, layout, size, weight_size, geometry = TRANSPOSED[case]
    (x,) = tensors(dtype, layout, size)
    weight, bias = torch.randn(weight_size).to(dtype), torch.randn(weight_size[1] * geometry[4]).to(dtype)
    _, (got,) = repeated(lambda: simt.conv_transpose2d(x, weight, bias, *geometry), [x, weight, bias])
    want = transposed.reference(x, weight, bias, *geometry)
    magnitude = transposed.reference(x.abs(), weight.abs(), bias.abs(), *geometry)
    assert ((got - want).abs() <= tolerance(dtype, weight[:, 0].numel(), magnitude)).all()
