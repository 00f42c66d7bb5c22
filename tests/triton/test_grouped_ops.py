"""Grouped convolution's ops outside of the interpreter: the C++ kernels' on CPU, and CUDA tensors without data."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

import fastcnn.kernels  # noqa: F401  registers the ops

import triton
from fastcnn.ops.conv2d import reference
from triton.backends.compiler import GPUTarget

pytestmark = pytest.mark.cpu
ops = torch.ops.fastcnn
LAST = torch.channels_last
GEOMETRY = ((2, 1), (1, 0), (1, 2), 3)  # stride, padding, dilation, groups


def operands(dtype=torch.float64, device="cpu"):
    """x, weight, scale, shift, residual; the gradient and a ReLU's output."""
    sizes = ((2, 6, 5, 6), (9, 2, 3, 2), (9,), (9,), *3 * ((2, 9, 3, 4),))
    made = [torch.randn(size, dtype=dtype, device=device) for size in sizes]
    return [t.contiguous(memory_format=LAST) if t.dim() == 4 else t for t in made]


def calls(**where):
    x, weight, scale, shift, residual, g, y = operands(**where)
    leaves = [t.requires_grad_() for t in (x, weight, scale, shift, residual)]
    yield ops.grouped_conv2d.default, (*leaves, *GEOMETRY, True, False)
    yield ops.grouped_conv2d.default, (x, weight, None, None, None, *GEOMETRY, False, False)
    yield ops.grouped_conv2d_stats.default, (x, weight, *GEOMETRY, False)
    yield ops.grouped_conv2d_backward_input.default, (g, weight.detach(), x.shape, *GEOMETRY, y.relu(), False)
    yield ops.grouped_conv2d_backward_weight.default, (g, x.detach(), weight.shape, *GEOMETRY, None, False)


@pytest.mark.parametrize(("op", "args"), [pytest.param(*each, id=f"{each[0]._opname}{i}") for i, each in
                                          enumerate(calls())])  # fmt: skip
def test_opcheck(op, args):
    opcheck(op, args)


def test_values_on_cpu():
    x, weight, scale, shift, residual, *_ = operands()
    y = ops.grouped_conv2d(x, weight, scale, shift, residual, *GEOMETRY, True, False)
    z = reference(x, weight, None, None, *GEOMETRY, False)
    wanted = (z * scale.view(-1, 1, 1) + shift.view(-1, 1, 1) + residual).relu()
    torch.testing.assert_close(y, wanted)
    assert y.is_contiguous(memory_format=LAST)
    _, mean, variance = ops.grouped_conv2d_stats(x, weight, *GEOMETRY, False)
    torch.testing.assert_close(mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(variance, z.var((0, 2, 3), correction=0))


def test_gradients_of_both_orders():
    """Of all operands, against differences; with a scale, whose gradient comes from the weight's."""
    leaves = [t[:1] if t.dim() == 4 and i != 1 else t for i, t in enumerate(operands()[:5])]
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]

    def call(*tensors):
        return ops.grouped_conv2d(*tensors, *GEOMETRY, True, False)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
    assert torch.autograd.gradcheck(lambda x, w: ops.grouped_conv2d_stats(x, w, *GEOMETRY, False), leaves[:2])


@pytest.mark.parametrize("which", range(5))
def test_cuda_launches_are_seen(which, monkeypatch):
    """Compiled for CUDA, each op is its launches, and one graph. Which tensors a kernel writes torch reads
    off its TTIR, for which Triton wants to know a chip."""
    chip = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", chip)
    names = []

    def backend(module, inputs):
        names.extend(node.name for node in module.graph.nodes if "triton_kernel_wrapper" in node.name)
        return module.forward

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        op, args = list(calls(dtype=torch.float16, device="cuda"))[which]
        call = torch.compile(lambda *given: op(*given), backend=aot_autograd(fw_compiler=backend), fullgraph=True)
        out = call(*args)
    assert len(names) == (1, 1, 2, 1, 2)[which], names  # statistics and weight gradients have a second launch
    for each in out if isinstance(out, tuple) else (out,):
        assert each.device.type == "cuda"
        assert each.dim() == 1 or op._opname.endswith("weight") or each.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("residual", [False, True])
def test_a_shifts_gradient_masks_as_it_sums(residual):
    """No pass of its own masks the gradient, unless the residual's gradient is that; of a second order torch sums."""
    x, weight, shift = torch.randn(2, 24, 6, 5), torch.randn(24, 4, 3, 3), torch.randn(24, requires_grad=True)
    r = torch.randn(2, 24, 6, 5, requires_grad=True) if residual else None
    y = ops.grouped_conv2d(x, weight, None, shift, r, (1, 1), (1, 1), (1, 1), 6, True, False)
    g, called = torch.randn_like(y), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func._opname)
            return func(*args, **(kwargs or {}))

    with Watch():
        found = torch.autograd.grad(y, shift if r is None else (shift, r), g, retain_graph=True)
    assert "pointwise_conv2d_backward_reduce" in called
    assert ("threshold_backward" in called) == residual
    twice = torch.autograd.grad(y, shift, g, create_graph=True)[0]
    torch.testing.assert_close(found[0], twice)
    torch.testing.assert_close(found[0], (g * (y > 0)).sum((0, 2, 3)))
