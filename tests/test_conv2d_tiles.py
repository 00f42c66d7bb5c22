"""Convolutions around the tiles of the CUDA kernels, against float64; with --simt, how these kernels treat memory, and
that nothing depends on the order in which threads run or copies land."""

from pathlib import Path

import pytest
import torch

from fastcnn.ops import conv2d as conv
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
    "stride": ((2, 16, 15, 14), (16, 16, 3, 3), ((2, 2), (1, 1), (1, 1), 1)),
    "stride beyond the kernel": ((2, 16, 9, 11), (16, 16, 2, 1), ((3, 4), (0, 2), (1, 1), 1)),
    "dilation": ((2, 24, 9, 9), (16, 24, 3, 2), ((1, 1), (3, 1), (3, 2), 1)),
    "dilation and stride": ((2, 16, 11, 9), (16, 16, 3, 3), ((2, 1), (2, 2), (2, 2), 1)),
    "padding beyond the kernel": ((1, 16, 4, 4), (16, 16, 2, 3), ((1, 1), (3, 5), (1, 1), 1)),
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


@pytest.fixture
def simt(request):
    if not request.config.getoption("--simt"):
        pytest.skip("of the CUDA kernels: run with --simt")
    from tests.simt import ground, library

    machine = ground.Ground(library.build())
    yield machine
    machine.reset()


def all_three(case, dtype, layout=torch.channels_last):
    x, weight, bias, grad, geometry = tensors(case, dtype, layout)
    return (
        conv.ops.conv(x, weight, bias, grad, *geometry, True, 1),
        conv.ops.backward_input(grad, weight, x.shape, *geometry, 1),
        conv.ops.backward_weight(grad, x, weight.shape, *geometry, 1),
    )


@pytest.mark.parametrize("case", ["128 pixels x 64 channels", "128 pixels x 128 channels", "two groups"])
def test_main_loops_without_bank_conflicts(case, simt):
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
    all_three(case, torch.bfloat16)
    counters = simt.counters()
    assert counters.mma > 0
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    # of cp.async and of the epilogue
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["128 pixels x 64 channels", "128 pixels x 128 channels", "two groups"])
def test_float32_without_bank_conflicts(case, layout, simt):
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
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
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
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
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
    conv.ops.conv(x, weight, bias, None, *geometry, False, 1)
    counters = simt.counters()
    assert counters.shared_load.units == counters.shared_load.ideal > 0
    assert counters.shared_store.units == counters.shared_store.ideal > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["depthwise", "depthwise, several tiles a block", "four channels a group"])
def test_weight_gradients_of_halo_tiles_without_bank_conflicts(case, dtype, simt):
    """In the loop over tiles; the sums at its end are read in whatever rows their number makes."""
    x, weight, _, grad, geometry = tensors(case, dtype, torch.channels_last)
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
def test_bits_do_not_depend_on_order(case, dtype, simt):
    want = all_three(case, dtype)
    for name, value in (("ORDER", "reverse"), ("ORDER", "shuffle"), ("COPY", "eager")):
        simt.set(f"FASTCNN_SIMT_{name}", value)
        assert all(map(torch.equal, all_three(case, dtype), want))


@pytest.mark.parametrize(("channels", "dtype"), [(8, torch.float16), (12, torch.float16), (8, torch.float32)])
def test_tensor_cores_where_they_fit(channels, dtype, simt):
    x, weight = torch.ones(1, channels, 4, 4, dtype=dtype), torch.ones(8, channels, 3, 3, dtype=dtype)
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.library.fastcnn_simt_reset_counters()
    conv.ops.conv(x, weight, None, None, (1, 1), (0, 0), (1, 1), 1, False, 1)
    assert (simt.counters().mma > 0) == (channels == 8 and dtype == torch.float16)


def test_launches_refuse_what_32_bits_do_not_count(simt):
    x, weight = torch.zeros(1, 8, 2, 2, dtype=torch.float16), torch.zeros(8, 8, 1, 1, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="an axis exceeds 2\\^31 positions"):
        conv.ops.conv(x, weight, None, None, (2**31 - 1, 1), (2**30, 0), (1, 1), 1, False, 1)
