"""Networks' first layers, of a few input channels, against float64; with --simt, which CUDA kernel computes them, how
it treats memory, and that nothing depends on the order in which threads run or copies land."""

import pytest
import torch

from fastcnn.ops import conv2d as conv
from tests.test_conv2d import tolerance

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# (input, weight), (stride, padding)
CASES = {
    "alexnet": ((1, 3, 43, 71), (96, 3, 11, 11), (4, 4), (0, 0)),
    "alexnet, one column": ((1, 3, 51, 35), (64, 3, 11, 11), (4, 4), (2, 2)),
    "zfnet": ((1, 3, 37, 41), (96, 3, 7, 7), (2, 2), (1, 1)),
    "resnet": ((3, 3, 29, 33), (64, 3, 7, 7), (2, 2), (3, 3)),
    "vgg": ((3, 3, 19, 17), (64, 3, 3, 3), (1, 1), (1, 1)),
    "vgg, many tiles": ((3, 3, 67, 41), (64, 3, 3, 3), (1, 1), (1, 1)),
    "lenet": ((3, 1, 28, 28), (20, 1, 5, 5), (1, 1), (0, 0)),
    "lenet, six outputs": ((1, 1, 32, 32), (6, 1, 5, 5), (1, 1), (0, 0)),
    "two channels": ((2, 2, 13, 9), (33, 2, 3, 5), (1, 3), (1, 2)),
    "two channels, odd stride": ((1, 2, 15, 16), (36, 2, 4, 2), (3, 3), (0, 1)),
    "three channels, stride 3": ((1, 3, 23, 25), (17, 3, 5, 5), (3, 3), (2, 2)),
    "four channels": ((1, 4, 11, 13), (100, 4, 3, 3), (1, 1), (1, 1)),
    "four channels, stride 2": ((1, 4, 25, 27), (128, 4, 7, 7), (2, 2), (3, 3)),
    "four channels, stride 4": ((1, 4, 31, 30), (24, 4, 5, 7), (4, 4), (2, 3)),
    "one tap": ((2, 3, 9, 5), (40, 3, 1, 1), (1, 1), (0, 0)),
    "15 taps": ((1, 1, 17, 16), (16, 1, 15, 15), (1, 1), (7, 7)),
    "padding beyond the kernel": ((1, 3, 4, 5), (16, 3, 2, 2), (2, 1), (3, 4)),
    "one pixel": ((3, 3, 1, 1), (16, 3, 3, 3), (1, 1), (1, 1)),
}


def tensors(case, dtype, layout):
    torch.manual_seed(0)
    size, weight_size, stride, padding = CASES[case]
    x = torch.randn(size).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(weight_size).to(dtype), torch.randn(weight_size[0]).to(dtype)
    out = [conv.output_size(size[2 + d], weight_size[2 + d], stride[d], padding[d], 1) for d in range(2)]
    grad = torch.randn(size[0], weight_size[0], *out).to(dtype).to(memory_format=layout)
    return x, weight, bias, grad, (stride, padding, (1, 1), 1)


def plain(x, weight, geometry):
    return torch.nn.functional.conv2d(x.double(), weight.double(), None, *geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, dtype, layout):
    x, weight, bias, residual, geometry = tensors(case, dtype, layout)
    wide = bias.double().view(-1, 1, 1)
    want, size = plain(x, weight, geometry), plain(x.abs(), weight.abs(), geometry)
    allowed = tolerance(dtype, weight[0].numel(), size + wide.abs() + residual.abs())
    got = conv.ops.conv(x, weight, bias, residual, *geometry, True, 1)
    assert ((got - (want + wide + residual).relu()).abs() <= allowed).all()
    assert got.is_contiguous(memory_format=layout)
    got = conv.ops.conv(x, weight, None, None, *geometry, False, 1)
    assert ((got - want).abs() <= allowed).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["alexnet, one column", "vgg", "lenet", "two channels", "four channels"])
def test_infinities_stay_in_their_windows(case, dtype, layout):
    """Zeros that fill up the weight meet no input."""
    x, weight, bias, _, geometry = tensors(case, dtype, layout)
    x[0, 0, x.shape[2] // 2, x.shape[3] // 2] = float("inf")
    x[-1, -1, 0, -1] = float("nan")
    got = conv.ops.conv(x, weight, bias, None, *geometry, False, 1)
    touched = plain(torch.where(x.isfinite(), 0, 1), torch.ones_like(weight), geometry) > 0
    assert torch.equal(~got.isfinite(), touched)
    assert touched.any()
    assert not touched.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folded_weight_comes_packed(dtype):
    """In the accumulator's type, as a batch normalization leaves it."""
    x, weight, bias, _, geometry = tensors("resnet", dtype, torch.channels_last)
    wide = weight.float() * 1.5
    packed = torch.ops.fastcnn._pack_weight(wide, 1)
    flat = [*geometry[0], *geometry[1], *geometry[2], 1, 0]
    got = torch.ops.fastcnn._conv2d(x, weight, packed, bias.float(), None, flat, False, 1)
    want, size = plain(x, wide, geometry), plain(x.abs(), wide.abs(), geometry)
    allowed = tolerance(dtype, weight[0].numel(), size + bias.abs().view(-1, 1, 1)) + torch.finfo(dtype).eps * size
    assert ((got - want - bias.double().view(-1, 1, 1)).abs() <= allowed).all()


def kernels(call):
    from tests.ptx.replay import record

    return [launch.kernel.split("<")[0] for launch in record(call)[1]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_kernel(dtype, layout, simt):
    half = dtype != torch.float32

    def ran(channels, outputs, dilation=1, groups=1, kernel=3):
        x = torch.ones(1, channels * groups, 48, 48, dtype=dtype).to(memory_format=layout)
        weight = torch.ones(outputs, channels, kernel, kernel, dtype=dtype)
        call = conv.ops.conv(x, weight, None, None, (1, 1), (0, 0), (dilation, dilation), groups, False, 1)
        return call

    def name(*args, **kwargs):
        return kernels(lambda: ran(*args, **kwargs))[-1]

    first = "conv2d_first_mma_kernel" if half else "conv2d_first_ffma_kernel"
    for channels in (1, 2, 3, 4):
        assert name(channels, 16) == first
        assert name(channels, 16, dilation=2) != first
        assert name(channels, 32, groups=2) != first
        assert name(channels, 16, kernel=16) != first
    assert name(5, 16) != first
    assert (name(3, 4) == first) == half
    assert name(3, 3) != first


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["resnet", "vgg, many tiles", "lenet", "four channels, stride 2"])
def test_few_bank_conflicts(case, layout, simt):
    """None but where windows that overlap go on to their next rows, or a tile does."""
    for dtype in (torch.float32, torch.float16):
        x, weight, bias, _, geometry = tensors(case, dtype, layout)
        packed = torch.ops.fastcnn._pack_weight(weight, 1)
        flat = [*geometry[0], *geometry[1], *geometry[2], 1, 0]
        simt.count()
        torch.ops.fastcnn._conv2d(x, weight, packed, bias, None, flat, False, 1)
        counters = simt.counters()
        assert 0 < counters.shared_load.units <= 1.4 * counters.shared_load.ideal
        assert (counters.mma > 0) == (dtype == torch.float16)
        assert counters.ldmatrix.units == counters.ldmatrix.ideal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["alexnet", "resnet", "lenet", "three channels, stride 3"])
def test_bits_do_not_depend_on_order(case, dtype, simt):
    x, weight, bias, residual, geometry = tensors(case, dtype, torch.channels_last)

    def both():
        y = conv.ops.conv(x, weight, bias, residual, *geometry, True, 1)
        return y, conv.ops.backward_weight(y, x, weight.shape, *geometry, 1)

    simt.set("FASTCNN_SIMT_CHECK_BLOCKS", "1")
    want = both()
    for name, value in (("ORDER", "reverse"), ("ORDER", "shuffle"), ("COPY", "eager")):
        simt.set(f"FASTCNN_SIMT_{name}", value)
        assert all(map(torch.equal, both(), want))


def test_launches_refuse_what_32_bits_do_not_count(simt):
    x, weight = torch.zeros(1, 3, 1, 2, dtype=torch.float16), torch.zeros(4, 3, 1, 1, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="an axis exceeds 2\\^31 positions"):
        conv.ops.conv(x, weight, None, None, (1, 15), (0, 2**28), (1, 1), 1, False, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_weight_gradient_equals_float64(case, dtype, layout):
    x, weight, _, grad, geometry = tensors(case, dtype, layout)

    def gradient(x, grad):
        w = torch.zeros(weight.shape, dtype=torch.double, requires_grad=True)
        return torch.autograd.grad(plain(x, w, geometry), w, grad.double())[0]

    got = conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    terms = grad[:, 0].numel()
    assert ((got - gradient(x, grad)).abs() <= tolerance(dtype, terms, gradient(x.abs(), grad.abs()))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["alexnet", "vgg", "two channels"])
def test_infinities_reach_the_weights_that_meet_them(case, dtype):
    """Not those that no output's window brings to them: the last tiles hold pixels beyond the output."""
    x, weight, _, grad, geometry = tensors(case, dtype, torch.channels_last)
    x[0, 0, -1, -1] = float("inf")
    ones = torch.ones(weight.shape, dtype=torch.double, requires_grad=True)
    y = plain(torch.where(x.isfinite(), 0, 1), ones, geometry)
    touched = torch.autograd.grad(y, ones, torch.ones_like(y))[0] > 0
    got = conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    assert torch.equal(~got.isfinite(), touched)
    assert touched.any()
    assert not touched.all()


@pytest.mark.parametrize(("channels", "outputs"), [(3, 64), (1, 16), (3, 20), (3, 8), (5, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_kernel_computes_the_weight_gradient(dtype, channels, outputs, simt):
    x, grad = torch.ones(1, channels, 10, 10, dtype=dtype), torch.ones(1, outputs, 6, 6, dtype=dtype)
    size, geometry = (outputs, channels, 5, 5), ((1, 1), (0, 0), (1, 1), 1)
    name = kernels(lambda: conv.ops.backward_weight(grad, x, size, *geometry, 1))[0]
    if dtype == torch.float32:
        assert ("ffma" in name) == (outputs >= 16)
    else:
        assert (name == "conv2d_first_mma_weight_grad_kernel") == (channels < 5 and outputs in (16, 64))


@pytest.mark.parametrize("case", ["resnet", "vgg, many tiles", "four channels, stride 2"])
def test_weight_gradient_with_few_bank_conflicts(case, simt):
    """None but of lanes beyond the weights, which read a window's first element."""
    x, weight, _, grad, geometry = tensors(case, torch.float16, torch.channels_last)
    simt.count()
    conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    counters = simt.counters()
    assert counters.mma > 0
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    assert 0 < counters.shared_load.units <= 1.4 * counters.shared_load.ideal
