"""The tensor-core convolutions from their compiled PTX: every tile, type and layout, and sums in pieces."""

import os

import pytest
import torch

from fastcnn.ops._face import TF32
from tests.ptx import NVCC
from tests.ptx.replay import record, replay
from tests.ptx.test_ptx_ops import NCHW, NHWC
from tests.simt import library

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]
TILES = {"128, 192": (131, 192), "128, 128": (131, 72), "128, 64": (131, 24), "64, 64": (7, 24)}


def check(size, outputs, kernel, dtype, layout, launches, name):
    """The packed weight is given; for TF32 a copy of it is rounded. Sums are exact products added in float32, in an
    order that the executors need not share."""
    torch.manual_seed(0)
    ops, tf32 = library.load(), dtype is torch.float32
    x = torch.randn(size).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(outputs, size[1], kernel, kernel).to(dtype), torch.randn(outputs).to(dtype)
    packed = ops._pack_weight(weight, 1)
    geometry, pad = (1, 1, kernel // 2, kernel // 2, 1, 1, 1, 0), kernel // 2
    y, recorded = record(lambda: ops._conv2d(x, weight, packed, bias, None, geometry, True, 1 + TF32 * tf32))
    assert [launch.kernel.split("<")[0] for launch in recorded] == ["pack_kernel"] * tf32 + launches
    assert name in recorded[tf32].kernel
    (got,) = replay(recorded, [x, packed, bias], [y])
    wide = x.abs().double(), weight.abs().double(), bias.abs().double()
    terms = torch.nn.functional.conv2d(*wide, padding=pad)
    eps = torch.finfo(dtype).eps * (dtype is not torch.float32) + 4 * weight[0].numel() ** 0.5 * 2**-23
    assert ((got.double() - y.double()).abs() <= eps * terms).all()


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float16, NHWC), (torch.bfloat16, NHWC), (torch.float32, NHWC), (torch.float32, NCHW)],
    ids=["f16", "bf16", "tf32-nhwc", "tf32-nchw"],
)
def test_every_tile(tile, dtype, layout):
    side, outputs = TILES[tile]
    name = f"{tile},{'true' if layout is NCHW else 'false'}".replace(" ", "")
    check((1, 16, side, side), outputs, 1 if side > 64 else 3, dtype, layout, ["conv2d_mma_kernel"], name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "tf32"])
def test_pieces(dtype, monkeypatch):
    monkeypatch.setitem(os.environ, "FASTCNN_SIMT_PROCESSORS", "2")
    check((1, 512, 6, 8), 24, 3, dtype, NHWC, ["conv2d_mma_kernel", "conv2d_mma_finish"], "64,64")


@pytest.mark.parametrize("outputs", [24, 72], ids=["64x64", "128x128"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["f16", "bf16", "tf32"])
def test_weight_gradient(dtype, outputs):
    torch.manual_seed(0)
    ops, accuracy = library.load(), 1 + TF32 * (dtype is torch.float32)
    x, grad = (torch.randn(2, c, 9, 11).to(dtype).to(memory_format=NHWC) for c in (40, outputs))
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    dw, recorded = record(lambda: ops.conv2d_backward_weight(grad, x, (outputs, 40, 3, 3), *geometry, accuracy))
    names = [launch.kernel for launch in recorded]
    assert "conv2d_mma_weight_grad_kernel" in names[0]
    assert (",64,64,32,32" if outputs == 24 else ",128,128,64,64") in names[0]
    (got,) = replay(recorded, [grad, x], [dw])
    wide = grad.abs().double(), x.abs().double()
    terms = ops.conv2d_backward_weight(*wide, (outputs, 40, 3, 3), *geometry, 1)
    eps = torch.finfo(dtype).eps * (dtype is not torch.float32) + 4 * (2 * 9 * 11) ** 0.5 * 2**-23
    assert ((got.double() - dw.double()).abs() <= eps * terms).all()
