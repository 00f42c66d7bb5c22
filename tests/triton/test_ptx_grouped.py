"""Grouped convolution's kernels as Triton compiles them for sm_80: their PTX, run with every access checked."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from fastcnn.kernels.grouped_backward import launch_input, launch_weight
from fastcnn.kernels.grouped_forward import launch
from fastcnn.kernels.tiles_grouped import GroupedTile, GroupedWeightTile

from tests.triton.from_ptx import from_ptx
from tests.triton.grouped_layers import Layer, assert_within, sum_of_products

pytestmark = pytest.mark.cpu
KINDS = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)]
NAMES = ["bf16", "f16", "tf32", "f32"]
LAYERS = [
    Layer(6, 4, 4, size=(4, 5)),  # a full pack of four groups and half of one
    Layer(3, 8, 8, size=(5, 3), stride=(2, 2), batch=2),
    Layer(3, 5, 3, size=(3, 4), kernel_size=(2, 3), dilation=(1, 2), padding=(1, 2)),
    Layer(2, 32, 24, size=(3, 3), kernel_size=(1, 2), stride=(1, 2)),
    Layer(17, 1, 1, size=(2, 3)),
    Layer(1, 1, 1, size=(1, 1)),
]


def pairs(layers):
    """The first layer in every type, the others in bfloat16 and TF32."""
    return [
        pytest.param(layer, *kind, id=f"{layer}-{name}")
        for i, layer in enumerate(layers)
        for kind, name in zip(KINDS, NAMES)
        if i == 0 or name in ("bf16", "tf32")
    ]


def gradients(g, x, weight, layer):
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    return torch.autograd.grad(sum_of_products(x, weight, layer), (x, weight), g.double())


def forward(layer, dtype, tf32=False, tile=None):
    x, weight = layer.operands(dtype)
    with from_ptx() as launches:
        y, _, _ = launch(x, weight, None, None, None, *layer.geometry, False, tf32, False, tile)
    terms = weight[0].numel()
    absolute = sum_of_products(x.abs(), weight.abs(), layer)
    assert_within(y, sum_of_products(x, weight, layer), absolute, terms, str(layer), tf32)
    return launches


def backward(layer, dtype, tf32=False, masked=False, tiles=(None, None)):
    x, weight = layer.operands(dtype)
    shape = sum_of_products(x, weight, layer).shape
    g = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    y = torch.randn(shape).relu().to(dtype) if masked else None
    kept = g if y is None else g * (y > 0)
    wanted, absolute = gradients(kept, x, weight, layer), gradients(kept.abs(), x.abs(), weight.abs(), layer)
    with from_ptx() as launches:
        dx = launch_input(g, weight, x.shape, *layer.geometry, y, tf32, tiles[0])
        dw = launch_weight(g, x, weight.shape, *layer.geometry, y, tf32, tiles[1])
    assert_within(dx, wanted[0], absolute[0], layer.outputs * weight[0, 0].numel(), f"{layer}, input", tf32)
    assert_within(dw, wanted[1], absolute[1], g[:, 0].numel(), f"{layer}, weight", tf32)
    return launches


@pytest.mark.parametrize(("layer", "dtype", "tf32"), pairs(LAYERS))
def test_forward(layer, dtype, tf32):
    (launched,) = forward(layer, dtype, tf32)
    assert launched.kernel.__name__ == "grouped_conv2d_kernel"


@pytest.mark.parametrize(("layer", "dtype", "tf32"), pairs(LAYERS[:4]))
def test_backward(layer, dtype, tf32):
    launched = backward(layer, dtype, tf32, masked=dtype == torch.bfloat16)
    assert [each.kernel.__name__ for each in launched] == [
        "grouped_conv2d_backward_input_kernel",
        "grouped_conv2d_backward_weight_kernel",
        "sum_splits_kernel",
    ]


def test_tiles():
    """Several tiles and steps a pack; a split without pixels; one warp."""
    layer = Layer(3, 20, 18, size=(3, 5), kernel_size=(1, 2))
    forward(layer, torch.float16, tile=GroupedTile(1, 32, 16, 16, 1, 3))
    backward(layer, torch.float16, tiles=(GroupedTile(1, 16, 16, 16, 1, 3), GroupedWeightTile(2, 32, 16, 16, 5, 1, 2)))


@pytest.mark.parametrize(("dtype", "tf32"), KINDS[:3], ids=NAMES[:3])
def test_epilogue_and_statistics(dtype, tf32):
    """Scale, shift, residual and ReLU; mean and variance of what the plain convolution stores."""
    layer = Layer(5, 4, 4, size=(5, 4), stride=(2, 1))
    x, weight = layer.operands(dtype)
    z, absolute = sum_of_products(x, weight, layer), sum_of_products(x.abs(), weight.abs(), layer)
    scale, shift = torch.randn(20), torch.randn(20)
    residual = torch.randn(z.shape).to(dtype).contiguous(memory_format=torch.channels_last)
    ops = torch.ops.fastcnn
    with from_ptx():
        y = ops.grouped_conv2d(x, weight, scale, shift, residual, *layer.geometry, True, tf32)
        stored, mean, variance = ops.grouped_conv2d_stats(x, weight, *layer.geometry, tf32)
    wanted = z * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1) + residual.double()
    size = (
        absolute * scale.abs().double().view(-1, 1, 1) + shift.abs().double().view(-1, 1, 1) + residual.abs().double()
    )
    assert_within(y, wanted.relu(), size, 39, "epilogue", tf32)
    assert_within(stored, z, absolute, 36, "stored", tf32)
    stored = stored.double()
    # 12 values a channel: as many roundings of their size, and of its square.
    assert ((mean - stored.mean((0, 2, 3))).abs() <= 12 * 2**-24 * stored.abs().max()).all()
    assert ((variance - stored.var((0, 2, 3), correction=0)).abs() <= 48 * 2**-24 * stored.abs().max() ** 2).all()


def test_nan_stays_in_its_group():
    layer = Layer(4, 4, 4, size=(3, 3))
    x, weight = layer.operands(torch.float16)
    x[0, 5, 1, 1] = torch.inf
    with from_ptx():
        y = torch.ops.fastcnn.grouped_conv2d(x, weight, None, None, None, *layer.geometry, False, False)
    assert torch.equal(y.isfinite(), sum_of_products(x, weight, layer).isfinite())
    assert not y[:, 4:8].isfinite().any()


def test_int64_addresses(monkeypatch):
    monkeypatch.setattr("fastcnn.kernels.grouped_forward.needs_int64", lambda *tensors: True)
    (launched,) = forward(LAYERS[0], torch.float16)
    assert launched.arguments["INT64"]
    backward(LAYERS[0], torch.float16)


def test_matrix_unit_and_asynchronous_copies():
    """ResNeXt-50 32x4d's first layer: HMMA in the loop, copies that do not wait, no local memory."""
    from bench.static.triton_launch import compile_launch, launches

    x = torch.empty(128, 128, 56, 56, dtype=torch.float16, memory_format=torch.channels_last, device="meta")
    weight = torch.empty(128, 4, 3, 3, dtype=torch.float16, device="meta")
    (launched,) = launches(lambda: launch(x, weight, None, None, None, (1, 1), (1, 1), (1, 1), 32, False, False, False))
    compiled = compile_launch(launched, 80)
    for instruction in ("HMMA", "LDGSTS", "LDSM"):
        assert instruction in compiled.disassembly
    for instruction in (" LDL", " STL"):
        assert instruction not in compiled.disassembly
