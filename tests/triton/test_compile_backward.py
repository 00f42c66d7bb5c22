"""The gradients' ops and siblings under opcheck and torch.compile: C++ kernels, and CUDA tensors without data."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from fastcnn import _library

pytest.importorskip("triton")
import triton
from fastcnn import kernels
from triton.backends.compiler import GPUTarget

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not _library.cuda_ops, reason=_library.cuda_missing),
    pytest.mark.skipif(kernels.MISSING is not None, reason=str(kernels.MISSING)),
]
ops = torch.ops.fastcnn


def leaf(*size, dtype=torch.float64, device="cpu"):
    x = torch.randn(size, dtype=dtype, device=device)
    return (x.contiguous(memory_format=torch.channels_last) if len(size) == 4 else x).requires_grad_()


def branches(**how):
    """x, weights and biases of two branches."""
    weights, biases = [leaf(3, 5, 1, 1, **how), leaf(4, 5, 1, 1, **how)], [leaf(3, **how), leaf(4, **how)]
    return leaf(2, 5, 4, 3, **how), weights, biases


def samples():
    x, weight, g = leaf(2, 5, 4, 3), leaf(7, 5, 1, 1), leaf(2, 7, 2, 3)
    y, c = g.detach().relu(), torch.rand(7, dtype=torch.float64)
    for mask in (None, y):
        yield ops.pointwise_conv2d_backward_input.default, (g, weight, [2, 5, 4, 3], [2, 1], mask, False)
        yield ops.pointwise_conv2d_backward_weight.default, (g, x, [2, 1], mask, False)
    yield ops.pointwise_conv2d_backward_reduce.default, (g.detach(), y, y, c, c)
    yield ops.pointwise_conv2d_backward_reduce.default, (g.detach(), None, None, None, None)
    x, weights, biases = branches()
    yield ops.pointwise_conv2d_siblings.default, (x, weights, biases, True, False)
    yield ops.pointwise_conv2d_siblings_cat.default, (x, weights, [], False, False)
    grads = [leaf(2, 3, 4, 3), leaf(2, 4, 4, 3)]
    ys = [g.detach().relu() for g in grads]
    yield ops.pointwise_conv2d_siblings_backward_input.default, (grads, weights, ys, False)


@pytest.mark.parametrize(("op", "args"), [pytest.param(*s, id=f"{s[0]._opname}{i}") for i, s in enumerate(samples())])
def test_opcheck(op, args):
    opcheck(op, args)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("cat", [False, True])
def test_gradients_of_both_orders(cat, relu):
    x, weights, biases = branches()
    op = ops.pointwise_conv2d_siblings_cat if cat else ops.pointwise_conv2d_siblings

    def call(x, v, w, a, b):
        out = op(x, [v, w], [a, b], relu, False)
        return out if cat else tuple(out)

    assert torch.autograd.gradcheck(call, (x, *weights, *biases))
    assert torch.autograd.gradgradcheck(call, (x, *weights, *biases))


def test_compile_sees_the_launches(monkeypatch):
    chip = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", chip)
    seen = []

    def backend(module, inputs):
        seen.extend(node.name for node in module.graph.nodes if "triton_kernel_wrapper" in node.name)
        return module.forward

    def module(x, weights, biases):
        a, b = ops.pointwise_conv2d_siblings(x, weights, biases, True, False)
        whole = ops.pointwise_conv2d_siblings_cat(x, weights, [], False, False)
        dx = ops.pointwise_conv2d_siblings_backward_input([a, b], weights, [a, b], False)
        return whole, dx, *ops.pointwise_conv2d_backward_reduce(whole, None, None, None, None)

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x, weights, biases = branches(dtype=torch.bfloat16, device="cuda")
        compiled = torch.compile(module, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
        whole, dx, sums, nothing = compiled(x, weights, biases)
    assert (whole.shape, dx.shape, sums.shape, nothing.shape) == ((2, 7, 4, 3), x.shape, (7,), (0,))
    assert len(seen) == 5  # the sums are two launches
