"""Convolutions around the tiles of the CUDA kernels, against float64; with --simt, how these kernels treat memory, and
that nothing depends on the order in which threads run or copies land."""

import math
from pathlib import Path

import pytest
import torch

from fastcnn.ops import conv2d as conv
from fastcnn.ops._face import TF32, with_tf32
from tests.test_conv2d import tolerance

ROOT = Path(__file__).resolve().parents[1]
SHARED_LOAD, SHARED_STORE = 2, 3  # simt's kinds of accesses
LAYOUTS = [torch.contiguous_format, torch.channels_last]

# (input, weight), (stride, padding, dilation, groups)
CASES = {
    "one chunk of channels": ((1, 8, 3, 3), (8, 8, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "a chunk beyond a step": ((2, 40, 7, 5), (24, 40, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "a chunk beyond 64 channels": ((3, 64, 6, 7), (72, 64, 3, 1), ((1, 1), (1, 0), (1, 1), 1)),
    "a chunk beyond 128 channels": ((3, 136, 5, 5), (136, 136, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "128 pixels x 64 channels": ((1, 16, 131, 131), (40, 16, 1, 2), ((1, 1), (0, 1), (1, 1), 1)),
    "128 pixels x 128 channels": ((1, 8, 131, 131), (136, 8, 2, 1), ((1, 1), (1, 0), (1, 1), 1)),
    "128 pixels x 192 channels": ((1, 16, 131, 131), (192, 16, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "few pixels, many channels": ((1, 512, 4, 4), (72, 512, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "stride": ((2, 16, 15, 14), (16, 16, 3, 3), ((2, 2), (1, 1), (1, 1), 1)),
    "stride beyond the kernel": ((2, 16, 9, 11), (16, 16, 2, 1), ((3, 4), (0, 2), (1, 1), 1)),
    "dilation": ((2, 24, 9, 9), (16, 24, 3, 2), ((1, 1), (3, 1), (3, 2), 1)),
    "dilation and stride": ((2, 16, 11, 9), (16, 16, 3, 3), ((2, 1), (2, 2), (2, 2), 1)),
    "padding beyond the kernel": ((1, 16, 4, 4), (16, 16, 2, 3), ((1, 1), (3, 5), (1, 1), 1)),
    "windows that are far from x": ((2, 3, 40, 40), (16, 3, 3, 3), ((2**25, 1), (2**25, 1), (1, 1), 1)),
    "two groups": ((2, 48, 7, 7), (80, 24, 5, 5), ((1, 1), (2, 2), (1, 1), 2)),
    "15 taps in a column": ((1, 8, 17, 2), (8, 8, 15, 1), ((1, 1), (1, 0), (1, 1), 1)),
    "16 taps in a column": ((1, 8, 17, 2), (8, 8, 16, 1), ((1, 1), (1, 0), (1, 1), 1)),
    "depthwise": ((2, 72, 9, 35), (72, 1, 3, 3), ((1, 1), (1, 1), (1, 1), 72)),
    "depthwise, stride": ((1, 136, 18, 9), (136, 1, 5, 2), ((2, 3), (2, 0), (1, 1), 136)),
    "depthwise, windows beyond shared memory": ((1, 8, 99, 99), (8, 1, 7, 7), ((1, 1), (0, 0), (16, 16), 8)),
    "two channels a group": ((3, 16, 33, 3), (16, 2, 1, 3), ((1, 1), (0, 2), (1, 2), 8)),
    "four channels a group": ((2, 64, 7, 20), (64, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 16)),
    "depthwise, several tiles a block": ((9, 1056, 3, 3), (1056, 1, 3, 3), ((1, 1), (1, 1), (1, 1), 1056)),
    "depthwise, seven taps a row": ((1, 16, 9, 21), (16, 1, 2, 7), ((1, 1), (1, 3), (1, 1), 16)),
    "two channels a group, stride and dilation": ((2, 16, 13, 14), (16, 2, 3, 2), ((2, 2), (2, 1), (2, 2), 8)),
    "eight channels a group": ((2, 72, 9, 13), (72, 8, 3, 3), ((1, 1), (1, 1), (1, 1), 9)),
    "eight channels a group, stride": ((1, 64, 17, 19), (64, 8, 3, 3), ((2, 2), (1, 1), (1, 1), 8)),
    "eight channels a group, many taps": ((1, 16, 10, 9), (16, 8, 5, 7), ((1, 1), (2, 3), (1, 1), 2)),
    "sixteen channels a group": ((2, 80, 7, 18), (80, 16, 3, 3), ((1, 1), (1, 1), (1, 1), 5)),
    "sixteen channels a group, stride and dilation": ((1, 32, 19, 20), (32, 16, 3, 2), ((3, 2), (2, 0), (2, 3), 2)),
    "sixteen channels a group, several tiles a block": (
        (9, 1072, 3, 3),
        (1072, 16, 3, 3),
        ((1, 1), (1, 1), (1, 1), 67),
    ),
    "one pixel": ((9, 64, 1, 1), (8, 64, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
}


def tensors(case, dtype, layout):
    torch.manual_seed(0)
    size, weight_size, geometry = CASES[case]
    x = torch.randn(size).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(weight_size).to(dtype), torch.randn(weight_size[0]).to(dtype)
    out = [conv.output_size(size[2 + d], weight_size[2 + d], *(geometry[i][d] for i in range(3))) for d in range(2)]
    grad = torch.randn(size[0], weight_size[0], *out).to(dtype).to(memory_format=layout)
    return x, weight, bias, grad, geometry


def linear(x, weight, geometry, *tangents):
    """The convolution in float64, and its gradients for `tangents`."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, None, *geometry)
    return y.detach(), *torch.autograd.grad(y, (x, weight), *(t.double() for t in tangents))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, dtype, layout):
    x, weight, bias, grad, geometry = tensors(case, dtype, layout)
    y, dx, dw = linear(x, weight, geometry, grad)
    size, size_dx, size_dw = linear(x.abs(), weight.abs(), geometry, grad.abs())

    got = conv.ops.conv(x, weight, bias, grad, *geometry, True, 1)
    wide = bias.double().view(-1, 1, 1)
    want, terms = (y + wide + grad).relu(), weight[0].numel()
    assert ((got - want).abs() <= tolerance(dtype, terms, size + wide.abs() + grad.abs())).all()
    assert got.is_contiguous(memory_format=layout)
    got = conv.ops.backward_input(grad, weight, x.shape, *geometry, 1)
    assert ((got - dx).abs() <= tolerance(dtype, weight[:, 0].numel(), size_dx)).all()
    assert got.is_contiguous(memory_format=layout)
    got = conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    assert ((got - dw).abs() <= tolerance(dtype, grad[:, 0].numel(), size_dw)).all()


def test_input_at_an_odd_address():
    x, weight, bias, _, geometry = tensors("a chunk beyond a step", torch.float16, torch.channels_last)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert shifted.data_ptr() % 16
    want = conv.ops.conv(x, weight, bias, None, *geometry, False, 1)
    assert torch.equal(conv.ops.conv(shifted, weight, bias, None, *geometry, False, 1), want)


def all_three(case, dtype, layout=torch.channels_last, accuracy=1):
    x, weight, bias, grad, geometry = tensors(case, dtype, layout)
    return (
        conv.ops.conv(x, weight, bias, grad, *geometry, True, accuracy),
        conv.ops.backward_input(grad, weight, x.shape, *geometry, accuracy),
        conv.ops.backward_weight(grad, x, weight.shape, *geometry, accuracy),
    )


def to_tf32(x):
    """To nearest of the numbers with 10 bits of mantissa, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


TF32_CASES = [
    "a chunk beyond a step", "a chunk beyond 64 channels", "a chunk beyond 128 channels", "128 pixels x 64 channels",
    "128 pixels x 192 channels", "few pixels, many channels", "stride", "stride beyond the kernel", "dilation",
    "padding beyond the kernel", "two groups",
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", TF32_CASES)
def test_tf32_is_the_sum_of_rounded_products(case, layout, simt):
    """So that of an exact sum of the rounded operands the tolerance is float32's."""
    x, weight, bias, grad, geometry = tensors(case, torch.float32, layout)
    rx, rw, rg = map(to_tf32, (x, weight, grad))
    want = (
        (linear(rx, rw, geometry, grad)[0] + bias.double().view(-1, 1, 1) + grad).relu(),
        *linear(rx, rw, geometry, rg)[1:],
    )
    sizes = linear(rx.abs(), rw.abs(), geometry, rg.abs())
    terms = weight[0].numel(), weight[:, 0].numel(), grad[:, 0].numel()
    calls = (
        lambda: conv.ops.conv(x, weight, bias, grad, *geometry, True, 1 + TF32),
        lambda: conv.ops.backward_input(grad, weight, x.shape, *geometry, 1 + TF32),
        lambda: conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1 + TF32),
    )
    for call, y, count, size in zip(calls, want, terms, sizes, strict=True):
        simt.count()
        got = call()
        assert simt.counters().mma > 0
        scale = size + bias.abs().double().view(-1, 1, 1) + grad.abs() if call is calls[0] else size
        assert ((got - y).abs() <= tolerance(torch.float32, count, scale)).all()
    assert conv.ops.conv(x, weight, bias, grad, *geometry, True, 1 + TF32).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("size", "kernel", "padding"), [(1, 3, 1), (1, 1, 0), (7, 7, 0)])
def test_tf32_of_single_pixels(size, kernel, padding, offset, simt):
    """Channels of an NCHW tensor of 1x1 pixels are neighbours, but nothing else is as in NHWC. Small integers are exact
    in TF32, and so are their sums."""

    def integers(*shape):
        values = torch.randint(-2, 3, (offset + math.prod(shape),)).float()
        return values[offset:].view(shape)

    x, weight = integers(2, 64, size, size), integers(64, 64, kernel, kernel)
    geometry = (1, 1), (padding, padding), (1, 1), 1
    grad = integers(2, 64, size + 2 * padding - kernel + 1, size + 2 * padding - kernel + 1)
    want, dx, dw = linear(x, weight, geometry, grad)
    assert torch.equal(conv.ops.conv(x, weight, None, None, *geometry, False, 1 + TF32).double(), want)
    assert torch.equal(conv.ops.backward_input(grad, weight, x.shape, *geometry, 1 + TF32).double(), dx)
    assert torch.equal(conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1 + TF32).double(), dw)


def test_tf32_keeps_nan(simt):
    x, weight, _, _, geometry = tensors("two groups", torch.float32, torch.channels_last)
    x[1, 3, 2, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # rounding carries into the sign
    y = conv.ops.conv(x, weight, None, None, *geometry, False, 1 + TF32)
    assert torch.equal(y.isnan(), conv.ops.conv(x, weight, None, None, *geometry, False, 1).isnan())
    assert y.isnan().any()


def test_without_leave_float32_is_exact(simt):
    simt.count()
    all_three("two groups", torch.float32)
    assert simt.counters().mma == 0
    with pytest.raises(RuntimeError, match=r"expected accuracy 0 \(strict\), 1 \(default\) or 2 \(fast\), but got 3"):
        all_three("two groups", torch.float32, accuracy=3 + TF32)


def test_torch_is_asked_for_leave_at_each_call():
    class Cuda:
        is_cpu, dtype = False, torch.float32

    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # torch's default
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            assert [with_tf32(level, Cuda) for level in range(3)] == [0, 1 + 4 * allowed, 2 + 4 * allowed]
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert with_tf32(1, Cuda) == 1 + TF32
        assert with_tf32(1, torch.empty(1)) == 1
        compiled = torch.compile(lambda x: x + with_tf32(1, Cuda), backend="eager", fullgraph=True)
        assert compiled(torch.zeros(1)) == 1 + TF32
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert with_tf32(1, Cuda) == 1
    finally:
        torch.backends.cudnn.allow_tf32 = True  # of recurrent layers, too: torch refuses to read two different settings


def product(processors, simt, dtype, accuracy=1):
    """A convolution of three tiles of 64x64 on as many processors, and its launches."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 512, 12, 12).to(dtype), torch.randn(64, 512, 3, 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias, residual = torch.randn(64).to(dtype), torch.randn(1, 64, 12, 12).to(dtype)
    simt.set("FASTCNN_SIMT_PROCESSORS", str(processors))
    simt.set("FASTCNN_SIMT_CHECK_BLOCKS", "1")
    simt.count()
    y = conv.ops.conv(x, weight, bias, residual, (1, 1), (1, 1), (1, 1), 1, True, accuracy)
    return y, simt.counters().launches, (x, weight, bias, residual)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float16, 1), (torch.float32, 1 + TF32)])
def test_the_last_tiles_in_pieces(dtype, accuracy, simt):
    """The weight's packing and one launch; on two processors, one more for the third tile's pieces."""
    whole, launches, (x, weight, bias, residual) = product(1, simt, dtype, accuracy)
    assert launches == 2
    want = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    size = torch.nn.functional.conv2d(x.abs().double(), weight.abs().double(), bias.abs().double(), padding=1)
    tf32 = 2**-10 * 1.001 * size if accuracy > TF32 else 0  # each operand is off by half of its last place, 2^-10
    allowed = tolerance(dtype, weight[0].numel(), size + residual.abs()) + tf32
    assert ((whole - (want + residual).relu()).abs() <= allowed).all()
    for processors in (2, 132):
        pieces, launches, _ = product(processors, simt, dtype, accuracy)
        assert launches == 3
        assert ((pieces - (want + residual).relu()).abs() <= allowed).all()
        for order in ("reverse", "shuffle"):
            simt.set("FASTCNN_SIMT_ORDER", order)
            assert torch.equal(product(processors, simt, dtype, accuracy)[0], pieces)
        simt.set("FASTCNN_SIMT_ORDER", "forward")
    unsplit = whole[:, :, :10]  # two of the three tiles: 128 pixels of 12 a row
    assert torch.equal(product(2, simt, dtype, accuracy)[0][:, :, :10], unsplit)


@pytest.mark.parametrize("case", ["128 pixels x 64 channels", "128 pixels x 128 channels", "two groups"])
def test_main_loops_without_bank_conflicts(case, simt):
    simt.count()
    all_three(case, torch.bfloat16)
    counters = simt.counters()
    assert counters.mma > 0
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    # of cp.async and of the epilogue
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["128 pixels x 64 channels", "128 pixels x 128 channels", "two groups"])
def test_float32_without_bank_conflicts(case, layout, simt):
    simt.count()
    all_three(case, torch.float32, layout)
    counters = simt.counters()
    assert counters.mma == 0
    assert counters.shared_load.units == counters.shared_load.ideal > 0
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize(
    "case", ["eight channels a group", "eight channels a group, stride", "sixteen channels a group"]
)
def test_halo_tiles_on_tensor_cores_without_bank_conflicts(case, simt):
    """ldmatrix at stride 2, too; copies where no two columns' phases meet."""
    simt.count()
    all_three(case, torch.bfloat16)
    counters = simt.counters()
    assert counters.mma > 0
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    if "stride" not in case:
        assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["depthwise", "four channels a group"])
def test_halo_tiles_without_bank_conflicts(case, dtype, simt):
    x, weight, bias, _, geometry = tensors(case, dtype, torch.channels_last)
    simt.count()
    conv.ops.conv(x, weight, bias, None, *geometry, False, 1)
    counters = simt.counters()
    assert counters.shared_load.units == counters.shared_load.ideal > 0
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["128 pixels x 64 channels", "128 pixels x 192 channels", "two groups"])
def test_tf32_without_bank_conflicts(case, layout, simt):
    simt.count()
    all_three(case, torch.float32, layout, 1 + TF32)
    counters = simt.counters()
    assert counters.mma > 0
    assert counters.ldmatrix.units == counters.ldmatrix.ideal
    assert (counters.ldmatrix.units > 0) == (layout is torch.channels_last)  # of NCHW, 32 bits are read one by one
    assert counters.shared_load.units == counters.shared_load.ideal > 0
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["depthwise", "depthwise, several tiles a block", "four channels a group"])
def test_weight_gradients_of_halo_tiles_without_bank_conflicts(case, dtype, simt):
    """In the loop over tiles; the sums at its end are read in whatever rows their number makes."""
    x, weight, _, grad, geometry = tensors(case, dtype, torch.channels_last)
    simt.count()
    conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    source = ROOT / "csrc/cuda/conv2d_grouped_weight_grad.cu"
    lines = source.read_text().splitlines()
    traffic = [
        site.traffic
        for site in simt.sites()
        if site.file.decode().endswith(source.name) and site.kind in (SHARED_LOAD, SHARED_STORE)
        and "load_shared(sums" not in lines[site.line - 1]
    ]  # fmt: skip
    assert len(traffic) >= 4  # copies of x and of the gradient, and their loads
    assert all(t.units == t.ideal > 0 for t in traffic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        *("depthwise", "two channels a group", "four channels a group"),
        *("eight channels a group", "sixteen channels a group"),
    ],
)
def test_infinities_stay_where_windows_see_them(case, dtype):
    """Tiles reach beyond the gradient, where x may still be: nothing there is part of a sum. Nor is what a step of the
    tensor cores reads beside the last of an odd number of taps."""
    x, weight, _, grad, geometry = tensors(case, dtype, torch.channels_last)
    x[0, 0, 2, -1] = torch.inf
    _, _, want = linear(x, weight, geometry, grad)
    assert 0 < want.isfinite().sum() < want.numel()
    got = conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1)
    assert torch.equal(got.isfinite(), want.isfinite())
    x[0, 0, 2, 0] = torch.inf
    want, _, _ = linear(x, weight, geometry, grad)
    got = conv.ops.conv(x, weight, None, None, *geometry, False, 1)
    assert torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.float32, 1 + TF32)])
@pytest.mark.parametrize(
    "case",
    [
        "a chunk beyond a step",
        "two groups",
        "stride",
        "four channels a group",
        "eight channels a group",
        "sixteen channels a group",
    ],
)
def test_bits_do_not_depend_on_order(case, dtype, accuracy, simt):
    want = all_three(case, dtype, accuracy=accuracy)
    for name, value in (("ORDER", "reverse"), ("ORDER", "shuffle"), ("COPY", "eager")):
        simt.set(f"FASTCNN_SIMT_{name}", value)
        assert all(map(torch.equal, all_three(case, dtype, accuracy=accuracy), want))


@pytest.mark.parametrize(("channels", "dtype"), [(8, torch.float16), (12, torch.float16), (8, torch.float32)])
def test_tensor_cores_where_they_fit(channels, dtype, simt):
    x, weight = torch.ones(1, channels, 4, 4, dtype=dtype), torch.ones(8, channels, 3, 3, dtype=dtype)
    simt.count()
    conv.ops.conv(x, weight, None, None, (1, 1), (0, 0), (1, 1), 1, False, 1)
    assert (simt.counters().mma > 0) == (channels == 8 and dtype == torch.float16)


def test_launches_refuse_what_32_bits_do_not_count(simt):
    x, weight = torch.zeros(1, 8, 2, 2, dtype=torch.float16), torch.zeros(8, 8, 1, 1, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="an axis exceeds 2\\^31 positions"):
        conv.ops.conv(x, weight, None, None, (2**31 - 1, 1), (2**30, 0), (1, 1), 1, False, 1)
