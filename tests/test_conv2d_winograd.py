"""Winograd's kernels of conv2d: forward, both gradients, borders, layouts, dtypes, and the error they are allowed."""

import itertools

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn.ops import conv2d as conv

ops = torch.ops.fastcnn
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

# batch, channels in and out per group, groups, height, width, padding: single pixels, parts of tiles, more tiles than a
# block or a strip holds, channels that fill no vector, padding beyond the kernel.
GEOMETRIES = [
    (1, 16, 16, 1, 1, 1, 1),
    (2, 17, 31, 1, 3, 5, 0),
    (3, 16, 33, 2, 7, 13, 1),
    (2, 33, 16, 1, 13, 7, 2),
    (1, 20, 48, 1, 9, 4, (0, 2)),
    (5, 64, 64, 1, 14, 14, 1),
    (1, 16, 16, 1, 5, 247, 1),
    (37, 19, 16, 1, 4, 4, 1),
    (1, 130, 70, 1, 29, 30, 1),
]


def inputs(geometry, dtype, layout=torch.channels_last):
    n, group_in, group_out, groups, h, w, padding = geometry
    torch.manual_seed(0)
    x = torch.randn(n, group_in * groups, h, w).to(dtype).to(memory_format=layout)
    weight = (torch.randn(group_out * groups, group_in, 3, 3) / (group_in * 9) ** 0.5).to(dtype)
    ph, pw = padding if isinstance(padding, tuple) else (padding, padding)
    return x, weight.to(memory_format=layout), ((1, 1), (ph, pw), (1, 1), groups)


def winograd(x, weight, bias, residual, geometry, relu):
    stride, padding, dilation, groups = geometry
    packed = ops._pack_weight(weight, groups, True)
    return conv.ops.raw(x, weight, packed, bias, residual, (*stride, *padding, *dilation, groups), relu, 1)


def allowed(dtype, terms: int, want: torch.Tensor) -> float:
    """Of an element, for outputs of root mean square `rms`. Both transforms and the sum round in the accumulator type,
    together like about twice the sum of `terms` products as it is written, whose error is sqrt(terms)/3 ulps rms; with
    6 standard deviations for the largest of many that is 4*sqrt(terms) + 24 ulps. Storing rounds once more."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    rms = want.square().mean().sqrt()
    eps = (4 * terms**0.5 + 24) * torch.finfo(accumulator).eps
    return float(eps * rms + (torch.finfo(dtype).eps * want.abs().max() if dtype.itemsize == 2 else 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_forward(geometry, dtype):
    for layout in LAYOUTS:
        x, weight, call = inputs(geometry, dtype, layout)
        bias = torch.randn(weight.shape[0]).to(dtype)
        want = conv.reference(x, weight, bias, None, *call, False)
        residual = torch.randn(want.shape).to(dtype).to(memory_format=layout)
        got = winograd(x, weight, bias, None, call, False)
        error = allowed(dtype, weight[0].numel(), want)
        assert (got - want).abs().max() <= error
        assert got.is_contiguous(memory_format=layout)
        got = winograd(x, weight, bias, residual, call, True)
        assert (got - (want + residual.double()).relu()).abs().max() <= 2 * error
        plain = winograd(x, weight, None, None, call, False)
        assert (plain - (want - bias.double().view(-1, 1, 1))).abs().max() <= 2 * error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "geometry",
    [(8, 16, 16, 2, 28, 29, 1), (3, 33, 47, 1, 31, 37, 2), (40, 64, 20, 1, 7, 7, 1), (1, 17, 16, 1, 8, 700, 1)],
    ids=str,
)
def test_gradients(geometry, dtype):
    """At sizes where the choice falls on Winograd."""
    for layout in LAYOUTS:
        x, weight, call = inputs(geometry, dtype, layout)
        x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
        plain = conv.reference(x64, w64, None, None, *call, False)
        grad = torch.randn(plain.shape).to(dtype).to(memory_format=layout)
        dx, dw = torch.autograd.grad(plain, (x64, w64), grad.double())
        got = ops.conv2d_backward_input(grad, weight, x.shape, *call)
        assert (got - dx).abs().max() <= allowed(dtype, weight[:, 0].numel() // call[3], dx)
        assert not torch.equal(got, ops.conv2d_backward_input(grad, weight, x.shape, *call, 0))
        got = ops.conv2d_backward_weight(grad, x, weight.shape, *call)
        assert (got - dw).abs().max() <= allowed(dtype, grad[:, 0].numel(), dw)
        strict = ops.conv2d_backward_weight(grad, x, weight.shape, *call, 0)
        assert dtype.itemsize == 2 or not torch.equal(got, strict)


def test_a_wrong_point_is_seen():
    """The planted fault: one of the 36 points of one weight, off by a thousandth."""
    x, weight, call = inputs(GEOMETRIES[5], torch.float32)
    want = conv.reference(x, weight, None, None, *call, False)
    packed = ops._pack_weight(weight, 1, True)
    flat = (*call[0], *call[1], *call[2], call[3])
    error = allowed(torch.float32, weight[0].numel(), want)
    assert (conv.ops.raw(x, weight, packed, None, None, flat, False, 1) - want).abs().max() <= error
    packed[12345] += 1e-3
    assert (conv.ops.raw(x, weight, packed, None, None, flat, False, 1) - want).abs().max() > error


@pytest.mark.parametrize("channels", [64, 256])
def test_error_beside_the_direct_sum(channels):
    """Root mean square, relative: points 0, +-3/4, +-3/2 keep it at about twice the direct sum's, where 0, +-1, +-2
    have four times (Barabasz et al. 2020, arXiv:1803.10986, on the choice of points)."""
    x, weight, call = inputs((1, channels, 64, 1, 28, 28, 1), torch.float32)
    want = conv.reference(x, weight, None, None, *call, False)
    rms = lambda y: (y - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert rms(winograd(x, weight, None, None, call, False)) < 3 * rms(
        ops.conv2d(x, weight, None, None, *call, False, 0)
    )


def test_gradcheck():
    """Through the kernels that the choice falls on; by random projections: a map that repays Winograd is large."""
    x, weight, call = inputs((2, 16, 16, 1, 32, 33, 1), torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    f = lambda x, w: F.conv2d(x, w, None, *call)
    assert torch.autograd.gradcheck(f, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, weight), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_position(dtype):
    threads = torch.get_num_threads()
    for geometry, layout in itertools.product([(8, 32, 48, 1, 28, 28, 1), (6, 16, 130, 2, 13, 13, 1)], LAYOUTS):
        x, weight, call = inputs(geometry, dtype, layout)
        grad = torch.randn(conv.reference(x, weight, None, None, *call, False).shape).to(dtype).to(memory_format=layout)
        runs = []
        try:
            for count in (1, 2, 4, 1):
                torch.set_num_threads(count)
                y = winograd(x, weight, None, None, call, True)
                dx = ops.conv2d_backward_input(grad, weight, x.shape, *call)
                runs.append((y, dx, ops.conv2d_backward_weight(grad, x, weight.shape, *call)))
        finally:
            torch.set_num_threads(threads)
        for run in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], run))
        flipped = winograd(x.flip(0), weight, None, None, call, True)
        assert torch.equal(flipped.flip(0), runs[0][0])


@pytest.mark.parametrize("geometry", [(2, 16, 24, 1, 61, 130, 1), (9, 32, 16, 2, 30, 14, 1)], ids=str)
def test_moments(geometry):
    """conv2d_bn_relu takes the statistics of blocks of tiles."""
    x, weight, call = inputs(geometry, torch.float64)
    _, z, mean, var = ops.conv2d_bn_relu(x, weight, None, None, None, None, *call, 1e-5, True)
    want = conv.reference(x, weight, None, None, *call, False)
    assert not torch.equal(z, ops.conv2d(x, weight, None, None, *call, False, 0))  # Winograd it was
    torch.testing.assert_close(z, want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(mean, want.mean((0, 2, 3)), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(var, want.var((0, 2, 3), unbiased=False), rtol=1e-11, atol=1e-12)


def test_padding_beyond_the_kernel_stays_zero():
    """Outputs that read padding alone are exact zeros."""
    y = F.conv2d(torch.randn(1, 64, 56, 56), torch.randn(64, 64, 3, 3), padding=3)
    edge = torch.ones(y.shape[2:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert not y[..., edge].any()


def test_strict_is_direct():
    x, weight, call = inputs(GEOMETRIES[5], torch.float32)
    strict = ops.conv2d(x, weight, None, None, *call, False, 0)
    parameter = torch.nn.Parameter(weight)
    with torch.no_grad():
        default = F.conv2d(x, parameter, None, *call)
        assert torch.equal(F.conv2d(x, parameter, None, *call, accuracy="strict"), strict)
        with fastcnn.set_accuracy("strict"):
            assert torch.equal(F.conv2d(x, parameter, None, *call), strict)
    assert not torch.equal(default, strict)


def test_nan_stays_in_its_tiles():
    """A tile mixes its 6x6 inputs, so a NaN reaches every output of the tiles that read it, and no other."""
    x, weight, call = inputs((1, 16, 16, 1, 32, 32, 1), torch.float32)
    clean = winograd(x, weight, None, None, call, False)
    x[0, 3, 10, 21] = torch.nan  # read by the tiles of rows and columns 8 to 11 and 20 to 23
    y = winograd(x, weight, None, None, call, False)
    assert y[0, :, 8:12, 20:24].isnan().all()
    y[0, :, 8:12, 20:24] = clean[0, :, 8:12, 20:24]
    assert torch.equal(y, clean)


def test_explain():
    (row,) = fastcnn.explain(fastcnn.nn.Conv2d(64, 64, 3, padding=1), (1, 64, 56, 56)).rows
    assert row.kernel.startswith("winograd")
    assert "tiles" in row.tile
    for module, shape, reason in [
        (fastcnn.nn.Conv2d(64, 64, 3, stride=2), (1, 64, 56, 56), "stride 1"),
        (fastcnn.nn.Conv2d(64, 64, 1), (1, 64, 56, 56), "3x3 kernel"),
        (fastcnn.nn.Conv2d(8, 64, 3), (1, 8, 56, 56), "16 channels"),
        (fastcnn.nn.Conv2d(64, 64, 3, padding=3), (1, 64, 56, 56), "padding of at most 2"),
        (fastcnn.nn.Conv2d(512, 512, 3, padding=1), (1, 512, 7, 7), "too few pixels"),
    ]:
        (row,) = fastcnn.explain(module, shape).rows
        assert not row.kernel.startswith("winograd")
        assert any("winograd" in other and reason in other for other in row.considered)
    with fastcnn.set_accuracy("strict"):
        (row,) = fastcnn.explain(fastcnn.nn.Conv2d(64, 64, 3, padding=1), (1, 64, 56, 56)).rows
    assert row.kernel.startswith("direct")
    assert any("strict" in other for other in row.considered)


X, W, CALL = torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3), ((1, 1), (1, 1), (1, 1), 1)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("3x3 kernel", lambda: ops._pack_weight(torch.zeros(16, 16, 5, 3), 1, True)),
        (
            "packed weight of",
            lambda: ops._conv2d(X, W, ops._pack_weight(W, 1, True), None, None, (2,) * 6 + (1,), 0, 1),
        ),
        ("accuracy 0", lambda: ops.conv2d_backward_input(X, W, X.shape, *CALL, 3)),
        ("accuracy 0", lambda: ops.conv2d_backward_weight(X, X, W.shape, *CALL, -1)),
    ],
    ids=["kernel", "stride", "accuracy-3", "accuracy--1"],
)
def test_malformed(match, call):
    with pytest.raises(RuntimeError, match=match):
        call()
