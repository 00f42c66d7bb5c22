"""conv2d_bn_relu in training where Triton's kernels convolve: what F.conv2d_bn_relu calls for CUDA tensors."""

import math

import pytest
import torch

from fastcnn.ops import _triton
from fastcnn.ops import conv2d_bn_relu as fused
from fastcnn.ops._face import TF32  # which the interpreter does not round to: narrow groups need it to be taken

LAST = torch.channels_last
GEOMETRIES = {  # input, weight; stride, padding, dilation, groups
    "1x1": ((3, 70, 5, 7), (37, 70, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "1x1-stride-2": ((2, 48, 9, 8), (96, 48, 1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    "grouped": ((2, 24, 6, 7), (24, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 6)),
    "grouped-stride-2": ((2, 32, 9, 8), (64, 16, 3, 3), ((2, 2), (1, 1), (1, 1), 2)),
}


def leaves(name, residual):
    size, weights, geometry = GEOMETRIES[name]
    x = torch.randn(size).contiguous(memory_format=LAST)
    weight = torch.randn(weights) / math.prod(weights[1:]) ** 0.5
    z = torch.nn.functional.conv2d(x, weight, None, *geometry)
    r = torch.randn_like(z).contiguous(memory_format=LAST) if residual else None
    return [x, weight, torch.rand(weights[0]) + 0.5, torch.randn(weights[0]), r], geometry


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("residual", [False, True])
def test_training(name, residual):
    """y, the statistics and every gradient against float64; tolerances as in tests/test_conv2d_bn_relu.py."""
    tensors, geometry = leaves(name, residual)
    ours = [None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    wide = [None if t is None else t.double().requires_grad_() for t in tensors]
    x, weight, gamma, beta, r = ours
    assert _triton.trains(x, weight, None, *geometry, TF32)
    z, mean, var = _triton.conv2d_stats(x, weight, *geometry, TF32)
    y = fused.ops.normalize(z, mean, var, gamma, beta, r, 1e-5, True)
    xw, ww, gw, bw, rw = wide
    wanted, _, mean64, var64 = fused.reference(xw, ww, None, rw, gw, bw, geometry, 1e-5, True)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((mean.double(), var.double()), (mean64, var64), rtol=1e-5, atol=1e-5)
    # Where the ReLU's input is within rounding of zero either sign is right.
    u = fused.reference(xw, ww, None, rw, gw, bw, geometry, 1e-5, False)[0].detach()
    g = torch.where(u.abs() < 1e-4, 0, torch.randn(y.shape))
    got = torch.autograd.grad(y, [t for t in ours if t is not None], g)
    for mine, want in zip(got, torch.autograd.grad(wanted, [t for t in wide if t is not None], g.double())):
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=4e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["1x1", "grouped"])
def test_the_statistics_are_those_of_what_was_stored(name, dtype):
    (x, weight, *_), geometry = leaves(name, False)
    z, mean, var = _triton.conv2d_stats(x.to(dtype), weight.to(dtype), *geometry, TF32)
    want_var, want_mean = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close((mean.double(), var.double()), (want_mean, want_var), rtol=1e-5, atol=1e-6)


def test_one_gradient_alone():
    """Of the mean without y, of y without the statistics: those that are not there count as zero."""
    for name in ("1x1", "grouped"):
        (x, weight, *_), geometry = leaves(name, False)
        for pick in range(3):
            mine, wide = weight.clone().requires_grad_(), weight.double().requires_grad_()
            z = torch.nn.functional.conv2d(x.double(), wide, None, *geometry)
            wanted = (z, *reversed(torch.var_mean(z, (0, 2, 3), correction=0)))[pick]
            found, g = _triton.conv2d_stats(x, mine, *geometry, TF32)[pick], torch.randn(wanted.shape)
            (got,), (want,) = torch.autograd.grad(found, mine, g), torch.autograd.grad(wanted, wide, g.double())
            torch.testing.assert_close(got.double(), want, rtol=0, atol=4e-5 * max(1.0, float(want.abs().max())))
