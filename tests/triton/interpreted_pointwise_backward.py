"""The gradients of pointwise convolution in Triton's interpreter, against float64."""

import pytest
import torch
from fastcnn.kernels import pointwise_backward, reductions, tiles_backward
from torch.library import opcheck

from tests.triton.gradients import LAYERS, ODD, assert_close, references, tensors

ops = torch.ops.fastcnn
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(x, weight, grad, y, stride):
    (dx, dw), (size_x, size_w) = references(x, weight, grad, stride, y)
    got = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, stride, y, False)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == grad.dtype
    assert_close(got, dx, size_x, grad.shape[1])
    got = ops.pointwise_conv2d_backward_weight(grad, x, stride, y, False)
    assert got.shape == weight.shape
    assert got.dtype == grad.dtype
    assert_close(got, dw, size_w, grad[:, 0].numel())


@pytest.mark.parametrize(("case", "size"), LAYERS, ids=[case.name for case, _ in LAYERS])
def test_named_layers(case, size, monkeypatch):
    # The large tiles of large maps, which are also fewer operations of the interpreter's.
    monkeypatch.setattr(pointwise_backward, "processors", lambda x: 1)
    stride = (case.stride, case.stride)
    for dtype in (torch.float32, torch.float16):
        x, weight, grad, y = tensors(dtype, 1, case.in_channels, case.out_channels, size, size, stride)
        check(x, weight, grad, y if case.out_channels < 256 else None, stride)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", ODD, ids=str)
def test_odd_sizes(sizes, dtype):
    x, weight, grad, y = tensors(dtype, *sizes)
    for mask in (None, y):
        check(x, weight, grad, mask, sizes[-1])


def test_slices_of_channels_are_read_in_place(monkeypatch):
    x, weight, grad, y = tensors(torch.float32, 2, 24, 20, 5, 3, (1, 1), slack=6)
    assert not grad.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "contiguous", forbidden(torch.Tensor.contiguous))
    dx = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (1, 1), y, False)
    dw = ops.pointwise_conv2d_backward_weight(grad, x, (1, 1), y, False)
    sums, _ = ops.pointwise_conv2d_backward_reduce(grad, y, None, None, None)
    monkeypatch.undo()
    (wanted_x, wanted_w), (size_x, size_w) = references(x, weight, grad, (1, 1), y)
    assert_close(dx, wanted_x, size_x, 20)
    assert_close(dw, wanted_w, size_w, 30)
    g = torch.where(y <= 0, 0, grad).double()
    assert_close(sums, g.sum((0, 2, 3)), g.abs().sum((0, 2, 3)), 30)


def forbidden(contiguous):
    def checked(t, *args, **kwargs):
        assert t.dim() != 4, "a tensor of pixels was copied"
        return contiguous(t, *args, **kwargs)

    return checked


@pytest.mark.parametrize("layout", ["nchw", "expanded", "transposed"])
def test_other_layouts(layout):
    x, weight, grad, y = tensors(torch.float32, 2, 12, 20, 5, 3, (1, 1))
    if layout == "nchw":
        x, grad, y = (t.contiguous() for t in (x, grad, y))
    elif layout == "expanded":  # the gradient of a sum
        grad = torch.ones(1).expand(grad.shape)
    else:
        x, grad, y = (
            t.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3) for t in (x, grad, y)
        )
    check(x, weight, grad, y, (1, 1))


@pytest.mark.parametrize("masked", [False, True])
def test_offsets_of_64_bits(masked, monkeypatch):
    for module in (pointwise_backward, reductions):
        monkeypatch.setattr(module, "needs_int64", lambda *tensors: True)
    x, weight, grad, y = tensors(torch.float32, 2, 20, 33, 5, 7, (2, 1))
    check(x, weight, grad, y if masked else None, (2, 1))
    sums, _ = ops.pointwise_conv2d_backward_reduce(grad, None, None, None, None)
    assert_close(sums, grad.double().sum((0, 2, 3)), grad.double().abs().sum((0, 2, 3)), 35)


def test_many_pixels_are_cut_and_added_in_order():
    """Equal bits every run, and the pieces' sums are all there."""
    x, weight, grad, y = tensors(torch.float16, 3, 16, 16, 41, 37, (1, 1))
    tile = tiles_backward.weight_gradient(3 * 41 * 37, 16, 16, torch.float16, False, True, 108)
    assert tile.splits > 4
    assert tile.splits * tile.per_split >= 3 * 41 * 37 > (tile.splits - 1) * tile.per_split
    first = ops.pointwise_conv2d_backward_weight(grad, x, (1, 1), y, False)
    check(x, weight, grad, y, (1, 1))
    assert first.equal(ops.pointwise_conv2d_backward_weight(grad, x, (1, 1), y, False))


def test_nan_passes_the_mask_of_relu():
    x, weight, grad, y = tensors(torch.float32, 1, 4, 3, 2, 2, (1, 1))
    grad[0, 1, 0, 0], y[0, 1, 0, 0] = 2.0, torch.nan
    grad[0, 0, 1, 1], y[0, 0, 1, 1] = torch.inf, 0.0
    dx = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (1, 1), y, False)
    g = torch.ops.aten.threshold_backward(grad, y, 0)
    torch.testing.assert_close(dx, torch.einsum("nohw,oc->nchw", g, weight[:, :, 0, 0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "batch", "size"), [(1, 1, 1), (37, 3, 7), (256, 2, 9), (64, 4, 33)])
def test_reduce(channels, batch, size, dtype):
    grad, z = torch.randn(2, batch, channels, size, size).to(dtype)
    z, y = (z * 2 + 30).to(dtype), torch.randn_like(grad).relu()
    mean, rstd = z.float().mean((0, 2, 3)), torch.rand(channels) + 0.5
    for mask in (None, y):
        sums, products = ops.pointwise_conv2d_backward_reduce(grad, mask, z, mean, rstd)
        g = grad.double() if mask is None else torch.where(mask <= 0, 0, grad).double()
        wanted = (g * (z.double() - mean.double().view(-1, 1, 1))) * rstd.double().view(-1, 1, 1)
        terms = batch * size * size
        assert_close(sums, g.sum((0, 2, 3)), g.abs().sum((0, 2, 3)), terms)
        # Three roundings of each product besides: of the difference, the product and the factor.
        assert_close(products, wanted.sum((0, 2, 3)), wanted.abs().sum((0, 2, 3)), terms + 3)
    sums, nothing = ops.pointwise_conv2d_backward_reduce(grad, None, None, None, None)
    assert nothing.numel() == 0
    assert_close(sums, grad.double().sum((0, 2, 3)), grad.double().abs().sum((0, 2, 3)), terms)


def test_no_pixels_and_no_channels():
    x, weight, grad, _ = tensors(torch.float32, 0, 3, 5, 2, 2, (1, 1))
    assert ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (1, 1), None, False).shape == x.shape
    assert not ops.pointwise_conv2d_backward_weight(grad, x, (1, 1), None, False).any()
    x, weight, grad, _ = tensors(torch.float32, 2, 3, 0, 2, 2, (1, 1))
    assert not ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (1, 1), None, False).any()


@pytest.mark.parametrize("masked", [False, True])
def test_second_gradients(masked):
    """Each backward op's own gradients against torch's of the same formulas."""
    x, weight, grad, y = tensors(torch.float32, 2, 5, 7, 4, 3, (2, 1))
    mask = (y > 0) if masked else torch.ones_like(y, dtype=torch.bool)
    y = y if masked else None

    def conv_input(g, w):
        return torch.nn.grad.conv2d_input(x.shape, w, g * mask, (2, 1))

    def conv_weight(g, x):
        return torch.nn.grad.conv2d_weight(x, weight.shape, g * mask, (2, 1))

    pairs = (
        (lambda g, w: ops.pointwise_conv2d_backward_input(g, w, x.shape, (2, 1), y, False), conv_input, (grad, weight)),
        (lambda g, v: ops.pointwise_conv2d_backward_weight(g, v, (2, 1), y, False), conv_weight, (grad, x)),
    )
    for run, stock, operands in pairs:
        ours, theirs = ([t.detach().clone().requires_grad_() for t in operands] for _ in range(2))
        got = torch.autograd.grad(run(*ours).square().sum(), ours)
        wanted = torch.autograd.grad(stock(*theirs).square().sum(), theirs)
        for a, b in zip(got, wanted):  # sums of at most 24 terms, twice
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_functorch():
    x, weight, grad, y = tensors(torch.float32, 2, 5, 7, 4, 3, (1, 1))
    many = torch.stack([grad, 2 * grad, -grad])

    def dx(g):
        return pointwise_backward.backward_input(g, weight, list(x.shape), [1, 1], y, False)

    torch.testing.assert_close(torch.func.vmap(dx)(many), torch.stack([dx(g) for g in many]))
    _, pull = torch.func.vjp(dx, grad)
    d = torch.randn(x.shape)
    torch.testing.assert_close(pull(d)[0], torch.nn.functional.conv2d(d, weight) * (y > 0))


def test_schemas():
    x, weight, grad, y = tensors(torch.float32, 2, 5, 7, 4, 3, (2, 1))
    opcheck(
        ops.pointwise_conv2d_backward_input.default,
        (grad, weight, list(x.shape), [2, 1], y, False),
        test_utils=("test_schema", "test_faketensor"),
    )
    opcheck(
        ops.pointwise_conv2d_backward_weight.default,
        (grad, x, [2, 1], y, False),
        test_utils=("test_schema", "test_faketensor"),
    )
    c = torch.randn(7)
    for arguments in ((grad, y, grad, c, c), (grad, None, None, None, None)):
        opcheck(ops.pointwise_conv2d_backward_reduce.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_does_not_fit_is_refused():
    x, weight, grad, y = tensors(torch.float32, 2, 5, 7, 4, 3, (2, 1))
    with pytest.raises(RuntimeError, match=r"expected a gradient of size \[2, 7, 4, 3\] .* but got \[2, 7, 2, 3\]"):
        ops.pointwise_conv2d_backward_input(grad, weight, x.shape, (1, 1), None, False)
    with pytest.raises(RuntimeError, match=r"expected y to be as the gradient"):
        ops.pointwise_conv2d_backward_weight(grad, x, (2, 1), y[:1], False)
    with pytest.raises(RuntimeError, match=r"expected a weight of size \(O, C, 1, 1\)"):
        ops.pointwise_conv2d_backward_input(grad, weight.expand(-1, -1, 3, 3), x.shape, (2, 1), None, False)
    with pytest.raises(RuntimeError, match=r"on Triton, but got torch.float64"):
        ops.pointwise_conv2d_backward_weight(grad.double(), x.double(), (2, 1), None, False)
    with pytest.raises(RuntimeError, match="expected z, mean and rstd, or none of them"):
        ops.pointwise_conv2d_backward_reduce(grad, None, grad, None, None)
