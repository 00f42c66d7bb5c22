"""The kernels of 1x1 convolution's gradients and of siblings as Triton compiles them for sm_80: their PTX, run with
every access checked."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from fastcnn.kernels import pointwise_backward, pointwise_siblings, reductions

from tests.triton.from_ptx import from_ptx
from tests.triton.gradients import assert_close, references, tensors

pytestmark = pytest.mark.cpu
ops = torch.ops.fastcnn
KINDS = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)]
NAMES = ["bf16", "f16", "tf32", "f32"]
# (batch, inputs, outputs, height, width, stride): whole blocks; primes; a stride whose cells the border cuts; one.
SIZES = [
    (1, 32, 64, 8, 4, (1, 1)),
    (2, 19, 37, 5, 3, (1, 1)),
    (1, 24, 17, 7, 6, (2, 2)),
    (1, 1, 1, 1, 1, (1, 1)),
]


def terms(count: int, tf32: bool) -> float:
    """What assert_close takes: TF32 truncates operands to 10 bits of mantissa, 2**-9 of a product for the two."""
    return count + (2.0**-9 / 2.0**-24 if tf32 else 0)


@pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=NAMES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients(dtype, tf32, sizes):
    x, weight, grad, y = tensors(dtype, *sizes)
    stride, y = sizes[-1], y if sizes[1] != 24 else None
    (dx, dw), (size_x, size_w) = references(x, weight, grad, stride, y)
    with from_ptx(processors=2) as launches:
        got_x = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, stride, y, tf32)
        got_w = ops.pointwise_conv2d_backward_weight(grad, x, stride, y, tf32)
    names = [launch.kernel.__name__ for launch in launches]
    assert names[:2] == ["pointwise_backward_input_kernel", "pointwise_backward_weight_kernel"]
    assert_close(got_x, dx, size_x, terms(grad.shape[1], tf32))
    assert_close(got_w, dw, size_w, terms(grad[:, 0].numel(), tf32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pieces_are_added(dtype):
    x, weight, grad, y = tensors(dtype, 3, 16, 16, 23, 17, (1, 1))
    (_, dw), (_, size) = references(x, weight, grad, (1, 1), y)
    with from_ptx() as launches:
        got = ops.pointwise_conv2d_backward_weight(grad, x, (1, 1), y, False)
    product, added = launches
    assert product.grid[1] == added.arguments["splits"] > 1
    assert_close(got, dw, size, grad[:, 0].numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("channels", "size"), [(64, 16), (37, 7), (1, 1)])
def test_reduce(dtype, channels, size):
    grad, z = torch.randn(2, 2, channels, size, size).to(dtype)
    y, mean, rstd = torch.randn_like(grad).relu(), torch.randn(channels), torch.rand(channels)
    with from_ptx():
        sums, products = ops.pointwise_conv2d_backward_reduce(grad, y, z, mean, rstd)
        alone, _ = ops.pointwise_conv2d_backward_reduce(grad, None, None, None, None)
    g = torch.where(y <= 0, 0, grad).double()
    wanted = g * (z.double() - mean.double().view(-1, 1, 1)) * rstd.double().view(-1, 1, 1)
    # Of a product the difference is rounded, too, whose terms may cancel.
    magnitude = g.abs() * (z.double().abs() + mean.double().abs().view(-1, 1, 1)) * rstd.double().view(-1, 1, 1)
    count = 2 * size * size
    assert_close(sums, g.sum((0, 2, 3)), g.abs().sum((0, 2, 3)), count)
    assert_close(alone, grad.double().sum((0, 2, 3)), grad.double().abs().sum((0, 2, 3)), count)
    assert_close(products, wanted.sum((0, 2, 3)), magnitude.sum((0, 2, 3)), count + 3)


@pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=NAMES)
@pytest.mark.parametrize(("inputs", "outputs"), [(32, (64, 16, 32)), (19, (7, 1, 33, 5))], ids=["whole", "primes"])
def test_siblings(dtype, tf32, inputs, outputs):
    x, _, _, _ = tensors(dtype, 2, inputs, 1, 5, 4, (1, 1))
    weights = [torch.randn(o, inputs, 1, 1).to(dtype) for o in outputs]
    biases = [torch.randn(o).to(dtype) for o in outputs]
    with from_ptx() as launches:
        ys = ops.pointwise_conv2d_siblings(x, weights, biases, True, tf32)
        cat = ops.pointwise_conv2d_siblings_cat(x, weights, biases, True, tf32)
        dx = ops.pointwise_conv2d_siblings_backward_input(ys, weights, ys, tf32)
    assert len(launches) == 3
    for w, b, y in zip(weights, biases, ys, strict=True):
        wanted = torch.nn.functional.conv2d(x.double(), w.double(), b.double()).relu()
        size = torch.nn.functional.conv2d(x.double().abs(), w.double().abs(), b.double().abs())
        assert_close(y, wanted, size, terms(inputs + 1, tf32))
    assert cat.equal(torch.cat(ys, 1))
    wide, both = torch.cat(ys, 1).double(), torch.cat(weights).double().transpose(0, 1)
    wanted, size = torch.nn.functional.conv2d(wide, both), torch.nn.functional.conv2d(wide.abs(), both.abs())
    assert_close(dx, wanted, size, terms(sum(outputs), tf32))


def test_slices_and_offsets_of_64_bits(monkeypatch):
    for module in (pointwise_backward, pointwise_siblings, reductions):
        monkeypatch.setattr(module, "needs_int64", lambda *tensors: True)
    x, weight, grad, y = tensors(torch.bfloat16, 2, 24, 20, 5, 3, (2, 1), slack=6)
    (dx, dw), (size_x, size_w) = references(x, weight, grad, (2, 1), y)
    with from_ptx() as launches:
        got_x = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (2, 1), y, False)
        got_w = ops.pointwise_conv2d_backward_weight(grad, x, (2, 1), y, False)
        sums, _ = ops.pointwise_conv2d_backward_reduce(grad, y, None, None, None)
        (z,) = ops.pointwise_conv2d_siblings(x, [weight], [], False, False)
    assert all(launch.arguments["WIDE"] for launch in launches if "WIDE" in launch.arguments)
    assert_close(got_x, dx, size_x, 20)
    assert_close(got_w, dw, size_w, grad[:, 0].numel())
    g = torch.where(y <= 0, 0, grad).double()
    assert_close(sums, g.sum((0, 2, 3)), g.abs().sum((0, 2, 3)), 30)
    wide, w = x.double(), weight.double()
    wanted, size = torch.nn.functional.conv2d(wide, w), torch.nn.functional.conv2d(wide.abs(), w.abs())
    assert_close(z, wanted, size, 24)
