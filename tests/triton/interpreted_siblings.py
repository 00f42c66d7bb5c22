"""Several 1x1 convolutions of one tensor as one launch, in Triton's interpreter, against float64."""

import pytest
import torch
from fastcnn.kernels import pointwise_siblings
from torch.library import opcheck

from fastcnn.ops.conv2d import reference
from tests.cases import find
from tests.triton.gradients import assert_close

ops = torch.ops.fastcnn
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INCEPTION_3A = [find(f"googlenet.3a.{name}") for name in ("1x1", "3x3_reduce", "5x5_reduce")]
# (inputs, outputs of each branch): one; two; four with a width of 1; more than a launch takes.
ODD = ((5, (3,)), (19, (7, 33)), (32, (16, 1, 70, 5)), (17, (4, 9, 2, 31, 20)))


def tensors(dtype, inputs, outputs, size, batch=2):
    x = torch.randn(batch, inputs, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(o, inputs, 1, 1).to(dtype) for o in outputs]
    biases = [torch.randn(o).to(dtype) for o in outputs] if len(outputs) != 2 else []
    return x, weights, biases


def branches(x, weights, biases, relu, absolute=False):
    """Each branch in float64; absolute: of magnitudes."""
    x, *both = (t.double().abs() if absolute else t.double() for t in (x, *weights, *biases))
    weights, biases = both[: len(weights)], both[len(weights) :] or [None] * len(weights)
    return [reference(x, w, b, None, (1, 1), (0, 0), (1, 1), 1, relu) for w, b in zip(weights, biases)]


def check(x, weights, biases, relu):
    wanted, size = branches(x, weights, biases, relu), branches(x, weights, biases, False, absolute=True)
    ys = ops.pointwise_conv2d_siblings(x, weights, biases, relu, False)
    assert len(ys) == len(weights)
    cat = ops.pointwise_conv2d_siblings_cat(x, weights, biases, relu, False)
    assert cat.is_contiguous(memory_format=torch.channels_last)
    for y, part, want, magnitude in zip(ys, cat.split([w.shape[0] for w in weights], 1), wanted, size, strict=True):
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, want, magnitude, x.shape[1] + 1)
        assert part.equal(y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inception(dtype, monkeypatch):
    """GoogLeNet's 3a, of whose 1x1 convolutions all but the pooled branch's read the same tensor."""
    monkeypatch.setattr(pointwise_siblings, "processors", lambda x: 1)
    x, weights, biases = tensors(dtype, 192, [case.out_channels for case in INCEPTION_3A], (7, 4))
    assert [tuple(w.shape) for w in weights] == [case.weight_shape for case in INCEPTION_3A]
    check(x, weights, biases, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), ODD, ids=str)
def test_odd_sizes(inputs, outputs, dtype):
    for size in ((1, 1), (7, 5)):
        check(*tensors(dtype, inputs, outputs, size), size == (7, 5))


def test_slice_of_channels_and_nchw_are_read():
    x, weights, biases = tensors(torch.float32, 20, (6, 9), (5, 3))
    check(torch.randn(2, 31, 5, 3).contiguous(memory_format=torch.channels_last)[:, 4:24], weights, biases, True)
    check(x.contiguous(), weights, biases, False)


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(pointwise_siblings, "needs_int64", lambda *tensors: True)
    check(*tensors(torch.float32, 19, (7, 33), (5, 3)), True)
    check_gradients(torch.float32, 19, (7, 33), True)


def check_gradients(dtype, inputs, outputs, relu):
    x, weights, biases = tensors(dtype, inputs, outputs, (5, 4))
    for cat in (False, True):
        leaves = [t.detach().clone().requires_grad_() for t in (x, *weights, *biases)]
        op = ops.pointwise_conv2d_siblings_cat if cat else ops.pointwise_conv2d_siblings
        ys = op(leaves[0], leaves[1 : 1 + len(weights)], leaves[1 + len(weights) :], relu, False)
        ys = ys.split(list(outputs), 1) if cat else ys
        grads = [torch.randn_like(y) for y in ys]
        got = torch.autograd.grad(ys, leaves, grads)
        masked = [torch.where(y <= 0, 0, g).double() if relu else g.double() for y, g in zip(ys, grads)]

        def linear(x, weights, grads):
            x, *weights = (t.detach().double().requires_grad_() for t in (x, *weights))
            zs = branches_of(x, weights)
            return torch.autograd.grad(zs, (x, *weights), grads)

        wanted = linear(x, weights, masked)
        size = linear(x.abs(), [w.abs() for w in weights], [g.abs() for g in masked])
        # Above four branches, the sums of several launches are rounded to the type and added.
        launches = -(-len(outputs) // 4)
        extra = (launches - 1) * 2 * torch.finfo(dtype).eps / 2.0**-24
        assert_close(got[0], wanted[0], size[0], sum(outputs) + extra)
        for g, want, magnitude in zip(got[1:], wanted[1:], size[1:]):
            assert_close(g, want, magnitude, x[:, 0].numel())
        sums = [m.sum((0, 2, 3)) for m, _ in zip(masked, biases)]
        sizes = [m.abs().sum((0, 2, 3)) for m, _ in zip(masked, biases)]
        for g, want, magnitude in zip(got[1 + len(weights) :], sums, sizes, strict=True):
            assert_close(g, want, magnitude, x[:, 0].numel())


def branches_of(x, weights):
    return [reference(x, w, None, None, (1, 1), (0, 0), (1, 1), 1, False) for w in weights]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), ODD, ids=str)
def test_gradients(inputs, outputs, dtype, relu):
    check_gradients(dtype, inputs, outputs, relu)


def test_only_what_is_wanted_gets_a_gradient():
    x, (v, w), _ = tensors(torch.float32, 5, (3, 4), (2, 2))
    w.requires_grad_()
    one, two = ops.pointwise_conv2d_siblings(x, [v, w], [], True, False)
    (g,) = torch.autograd.grad(two.sum(), w)
    torch.testing.assert_close(g, torch.nn.grad.conv2d_weight(x, w.shape, (two > 0).float()))
    assert one.requires_grad  # of one op, whichever branch needs it


def test_second_gradients():
    x, weights, _ = tensors(torch.float64, 3, (4, 2), (3, 2))
    x, weights = x.float(), [w.float() for w in weights]
    grads = [torch.randn(2, w.shape[0], 3, 2) for w in weights]
    ours, theirs = ([t.detach().clone().requires_grad_() for t in (*grads, *weights)] for _ in range(2))
    dx = ops.pointwise_conv2d_siblings_backward_input(ours[:2], ours[2:], [], False)
    stock = sum(torch.nn.grad.conv2d_input(x.shape, w, g) for g, w in zip(theirs[:2], theirs[2:]))
    got, wanted = (torch.autograd.grad(v.square().sum(), ts) for v, ts in ((dx, ours), (stock, theirs)))
    for a, b in zip(got, wanted):  # sums of at most 12 terms, twice
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_schemas():
    x, weights, _ = tensors(torch.float32, 5, (3, 4), (2, 3))
    arguments = (x, weights, [torch.randn(3), torch.randn(4)], True, False)
    for op in (ops.pointwise_conv2d_siblings.default, ops.pointwise_conv2d_siblings_cat.default):
        opcheck(op, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    ys = [torch.randn(2, o, 2, 3) for o in (3, 4)]
    opcheck(
        ops.pointwise_conv2d_siblings_backward_input.default,
        (ys, weights, ys, False),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_what_does_not_fit_is_refused():
    x, weights, _ = tensors(torch.float32, 5, (3, 4), (2, 3))
    with pytest.raises(RuntimeError, match=r"expected weights of size \(O, 5, 1, 1\), but got \[3, 4, 1, 1\]"):
        ops.pointwise_conv2d_siblings(x, [weights[0][:, :4], weights[1]], [], True, False)
    with pytest.raises(RuntimeError, match=r"expected a bias of size \[3\], but got \[2\]"):
        ops.pointwise_conv2d_siblings_cat(x, weights, [torch.zeros(2), torch.zeros(4)], True, False)
    with pytest.raises(RuntimeError, match="at least one weight and as many or no biases"):
        ops.pointwise_conv2d_siblings(x, weights, [torch.zeros(3)], True, False)
    with pytest.raises(RuntimeError, match=r"on Triton, but got torch.float64"):
        ops.pointwise_conv2d_siblings(x.double(), [w.double() for w in weights], [], True, False)
