"""Batch normalization's sums around the cuts of the CUDA kernels: pieces of planes, blocks of pixels, runs of channels;
against float64. What convolves before it copies: a depthwise 1x1 of ones."""

import pytest
import torch

from fastcnn.ops import conv2d_bn_relu as fused

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = {
    "a warp's plane": (5, 3, 7, 7),
    "planes of whole pieces": (1, 8, 64, 64),
    "a piece begun": (2, 4, 52, 41),
    "odd planes of several pieces": (2, 3, 47, 45),
    "one channel": (2, 1, 50, 41),
    "one pixel": (9, 40, 1, 1),
    "several runs of channels": (3, 264, 5, 7),
    "channels that are no vectors": (2, 70, 6, 5),
}
ONE = ((1, 1), (0, 0), (1, 1))


def draw(size, dtype, layout, count):
    return [torch.randn(size).to(dtype).to(memory_format=layout) for _ in range(count)]


def accumulator(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def forward(x, residual=None, weight=None, bias=None, relu=True):
    ones = torch.ones(x.shape[1], 1, 1, 1, dtype=x.dtype)
    return fused.ops.raw(x, ones, None, residual, weight, bias, *ONE, x.shape[1], 1e-5, relu, 1)


def per_channel(t):
    return t.double().view(-1, 1, 1)


def check(got, want, dtype, scale=1.0):
    """Rounded once to dtype, after sums of the accumulator type over values of magnitude up to `scale`."""
    assert got.dtype == dtype
    bound = torch.finfo(dtype).eps * want.abs() + 64 * torch.finfo(accumulator(dtype)).eps * scale
    assert ((got.double() - want).abs() <= bound).all(), (got.double() - want).abs().max()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_forward(size, dtype, layout):
    x, residual = draw(SIZES[size], dtype, layout, 2)
    weight, bias = torch.rand(x.shape[1]) + 0.5, torch.randn(x.shape[1])
    y, z, mean, var = forward(x, residual, weight, bias)
    assert torch.equal(z, x)
    check(mean, x.double().mean((0, 2, 3)), mean.dtype)
    check(var, x.double().var((0, 2, 3), unbiased=False), var.dtype)
    u = (x.double() - per_channel(mean)) / (per_channel(var) + 1e-5).sqrt() * per_channel(weight) + per_channel(bias)
    check(y, (u + residual.double()).relu(), dtype, scale=8)
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_backward(size, dtype, layout, residual):
    x, grad, more = draw(SIZES[size], dtype, layout, 3)
    weight, bias = torch.rand(x.shape[1]) + 0.5, torch.randn(x.shape[1])
    y, z, mean, var = forward(x, more if residual else None, weight, bias)
    invstd = 1 / (per_channel(var) + 1e-5).sqrt()
    off = x.double() - per_channel(mean)
    u = off * invstd * per_channel(weight) + per_channel(bias) + (more.double() if residual else 0)
    grad = torch.where(u.abs() < 0.01, 0, grad)  # where rounding may decide on ReLU's side
    op = torch.ops.fastcnn._batch_norm_relu_backward
    dz, dr, dw, db = op(grad, z, y if residual else None, mean, var, weight, bias, 1e-5, True, residual)
    g = torch.where(u > 0, grad.double(), 0)
    s, q, count = g.sum((0, 2, 3)), (g * off).sum((0, 2, 3)), x[:, 0].numel()
    want = per_channel(weight) * invstd * (g - per_channel(s) / count - off * invstd**2 * per_channel(q) / count)
    check(dz, want, dtype, scale=8)
    if residual:
        assert torch.equal(dr, g.to(dtype))
    else:
        assert dr.numel() == 0
    check(db, s, db.dtype, scale=float(g.abs().sum((0, 2, 3)).max()))
    check(dw, q * invstd.flatten(), dw.dtype, scale=float((g * off * invstd).abs().sum((0, 2, 3)).max()))
    assert dz.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_at_an_odd_address(layout):
    """A gradient that no 16-byte access may read."""
    x, grad = draw((2, 24, 9, 8), torch.bfloat16, layout, 2)
    _, z, mean, var = forward(x)
    odd = torch.empty(grad.numel() + 1, dtype=grad.dtype)[1:].as_strided(grad.shape, grad.stride()).copy_(grad)
    assert odd.data_ptr() % 16
    rest = (z, None, mean, var, None, None, 1e-5, True, False)
    want = torch.ops.fastcnn._batch_norm_relu_backward(grad, *rest)
    for got, expected in zip(torch.ops.fastcnn._batch_norm_relu_backward(odd, *rest), want):
        # The slots are cut otherwise, and their sums are of another order.
        torch.testing.assert_close(got, expected, rtol=0.01 if got.dtype == torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_an_outlier_leaves_the_variance_its_digits(layout):
    """The first value of every channel lies thousands of deviations from the others, and these far from zero."""
    x = torch.randn(2, 8, 40, 40) + 100
    x[0, :, 0, 0] = 5000
    x = x.to(memory_format=layout)
    _, _, mean, var = forward(x)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), unbiased=False), rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=2e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", [(1, 8, 5, 9, 24, 1), (2, 16, 9, 8, 136, 1), (3, 48, 7, 7, 80, 2), (1, 8, 131, 131, 72, 1)]
)
def test_statistics_of_a_matrix_products_tiles(case, dtype, layout):
    """Tiles that are not full, of 64 and 128 pixels; two groups; a bias far from zero. z is what is normalized."""
    n, c, h, w, o, groups = case
    (x,) = draw((n, c, h, w), dtype, layout, 1)
    weight, bias = (torch.randn(o, c // groups, 1, 1) / c**0.5).to(dtype), (torch.randn(o) + 30).to(dtype)
    _, z, mean, var = fused.ops.raw(x, weight, bias, None, None, None, *ONE, groups, 1e-5, True, 1)
    torch.testing.assert_close(mean.double(), z.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), z.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("dtype", "channels", "accuracy", "alone"),
    [
        (torch.float32, 16, 1, False),
        (torch.float32, 16, 5, False),  # TF32
        (torch.bfloat16, 16, 1, False),
        (torch.bfloat16, 4096, 1, True),  # blocks that hold a part of a sum alone
        (torch.float64, 16, 1, True),
    ],
)
def test_which_kernel_takes_the_statistics(simt, dtype, channels, accuracy, alone):
    """An epilogue, or a pass of its own."""
    from tests.ptx.replay import record

    (x,), weight = draw((1, channels, 5, 9), dtype, torch.channels_last, 1), torch.randn(24, channels, 1, 1).to(dtype)
    args = (x, weight, None, None, None, None, *ONE, 1, 1e-5, True, accuracy)
    (_, z, mean, var), launches = record(lambda: fused.ops.raw(*args))
    kernels = {launch.kernel.partition("<")[0] for launch in launches}
    assert kernels >= {"channel_statistics", "normalize"}
    assert ("slot_moments" in kernels) == alone
    assert ("conv2d_mma_finish" in kernels) == (channels == 4096)
    torch.testing.assert_close(mean.double(), z.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), z.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)
