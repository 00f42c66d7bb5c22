"""Triton's ops under opcheck, torch.compile and torch.export, with CUDA tensors without data and the C++ kernels."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import fastcnn.functional as F
from fastcnn import _library
from fastcnn.ops import conv2d as convolution

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
LAST = torch.channels_last


def leaf(*size, dtype=torch.float32, device="cpu"):
    x = torch.randn(size, dtype=dtype, device=device)
    return (x.contiguous(memory_format=LAST) if len(size) == 4 else x).requires_grad_()


def samples(device="cpu", dtype=torch.float64):
    """Every op's arguments: odd sizes, strides, all that is optional and nothing of it."""
    make = lambda *size: leaf(*size, dtype=dtype, device=device)
    x, weight, narrow = make(2, 6, 5, 4), make(7, 6, 1, 1), make(8, 3, 3, 3)
    rest = ((1, 1), False, False)
    pointwise, grouped = ops.pointwise_conv2d.default, ops.grouped_conv2d.default
    yield pointwise, (x, weight, None, None, None, None, None, *rest)
    residual = make(2, 7, 3, 2)
    yield pointwise, (x, weight, make(7), make(7), residual, make(6), make(6), (2, 2), True, False)
    yield ops.pointwise_conv2d_stats.default, (x, weight, make(7), make(6), make(6), (1, 1), False)
    yield ops.pointwise_conv2d_stats.default, (x, weight, None, None, None, (2, 1), False)
    out = torch.zeros(2, 7, 5, 4, dtype=dtype, device=device).contiguous(memory_format=LAST)
    plain = (x.detach(), weight.detach())
    yield ops.pointwise_conv2d_into.default, (*plain, None, None, None, None, None, *rest, out)
    yield grouped, (x, narrow, make(8), make(8), None, (2, 1), (1, 1), (1, 1), 2, True, False)


# Of float64 the gradients can be checked against differences; the C++ kernels compute it.
@pytest.mark.parametrize(("op", "args"), [pytest.param(*s, id=f"{s[0]._opname}{i}") for i, s in enumerate(samples())])
def test_opcheck(op, args):
    opcheck(op, args)


def test_gradients_of_both_orders():
    op, args = list(samples())[1]
    inputs = tuple(t for t in args if isinstance(t, torch.Tensor))
    call = lambda *tensors: op(*tensors, *args[len(tensors) :])
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_torch_func():
    x, weight = torch.randn(3, 2, 4, 5, 5).double(), torch.randn(6, 4, 1, 1).double()
    from fastcnn.kernels.pointwise import pointwise

    call = lambda x, w: pointwise(x, w, None, None, None, None, None, (1, 1), True, False)
    wanted = torch.stack([torch.nn.functional.conv2d(each, weight).relu() for each in x])
    torch.testing.assert_close(torch.func.vmap(call, (0, None))(x, weight), wanted)
    dw = torch.func.grad(lambda w: call(x[0], w).sum())(weight)
    want = torch.func.grad(lambda w: torch.nn.functional.conv2d(x[0], w).relu().sum())(weight)
    torch.testing.assert_close(dw, want)


def layer(x, w, b, v):
    """A 1x1 convolution, its residual and a grouped convolution."""
    y = F.conv2d(x, w, b, activation="relu", residual=x)
    return F.conv2d(y, v, padding=1, groups=4)


def arguments(device="cuda", dtype=torch.float16, requires_grad=False):
    make = lambda *size: torch.randn(size, dtype=dtype, device=device).requires_grad_(requires_grad)
    x = make(2, 64, 9, 7).detach().contiguous(memory_format=LAST).requires_grad_(requires_grad)
    return x, make(64, 64, 1, 1), make(64), make(64, 16, 3, 3)


def targets(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def test_compile_sees_the_launches(monkeypatch):
    """One graph; behind AOTAutograd the backend gets the launches themselves, forward and backward. Which tensors a
    kernel writes torch reads off its TTIR, for which Triton wants to know a chip."""
    chip = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", chip)
    seen = []

    def backend(module, inputs):
        seen.extend(node.name for node in module.graph.nodes if "triton_kernel_wrapper" in node.name)
        return module.forward

    def gradients(g, x, w):
        """By the ops themselves: the engine that would call them wants a GPU, even of tensors without data."""
        dx = ops.pointwise_conv2d_backward_input(g, w, x.shape, (1, 1), None, False)
        return dx, ops.pointwise_conv2d_backward_weight(g, x, (1, 1), None, False)

    aot = aot_autograd(fw_compiler=backend)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x, weight, *rest = arguments()
        out = torch.compile(layer, backend=aot, fullgraph=True)(x, weight, *rest)
        assert out.shape == (2, 64, 9, 7)
        assert out.is_contiguous(memory_format=LAST)
        assert len(seen) == 2
        dx, dw = torch.compile(gradients, backend=aot, fullgraph=True)(out, x, weight)
        assert (dx.shape, dw.shape) == (x.shape, weight.shape)
    assert len(seen) >= 4


def test_make_fx_keeps_the_arguments():
    with FakeTensorMode():
        module = make_fx(layer)(*arguments())
    assert [t for t in targets(module.graph) if "fastcnn" in t] == [
        "fastcnn.pointwise_conv2d.default",
        "fastcnn.grouped_conv2d.default",
    ]


def training(x, w, v, mean, var):
    """The same two convolutions, each with batch normalization in training, the second with a residual."""
    y = F.conv2d_bn_relu(x, w, None, mean, var, None, None, training=True)
    return F.conv2d_bn_relu(y, v, None, mean, var, None, None, padding=1, groups=4, training=True, residual=x)


def test_training_is_one_graph():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x, weight, _, narrow = arguments()
        tensors = x, weight, narrow, *(torch.zeros(64, device="cuda") for _ in range(2))
        found = [t for t in targets(make_fx(training)(*tensors).graph) if "fastcnn" in t]
        y = torch.compile(training, backend="eager", fullgraph=True)(*tensors)
    assert y.is_contiguous(memory_format=LAST)
    assert found == [
        "fastcnn.pointwise_conv2d_stats.default",
        "fastcnn._normalize_conv2d.default",
        "fastcnn.grouped_conv2d_stats.default",
        "fastcnn._normalize_conv2d.default",
    ]


def test_export_has_the_ops():
    """Exported programs hold the ops, which can be saved, not the launches."""

    class Layer(torch.nn.Module):
        def forward(self, *tensors):
            return layer(*tensors)

    with FakeTensorMode(allow_non_fake_inputs=True):
        program = torch.export.export(Layer(), arguments())
    found = [t for t in targets(program.graph) if t.startswith("fastcnn")]
    assert found == ["fastcnn.pointwise_conv2d.default", "fastcnn.grouped_conv2d.default"]


def test_compiled_on_the_cpu():
    """The ops' own calls compile to the C++ kernels."""
    x, weight = torch.randn(2, 6, 5, 4).contiguous(memory_format=LAST), torch.randn(7, 6, 1, 1)
    call = lambda x, w: ops.pointwise_conv2d(x, w, None, None, None, None, None, (2, 2), True, False)
    y = torch.compile(call, backend="aot_eager", fullgraph=True)(x, weight)
    want = convolution.reference(x, weight, None, None, (2, 2), (0, 0), (1, 1), 1, True)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gpus", "interpret", "wanted"), [(0, "0", False), (1, "0", True), (0, "1", True)])
def test_who_imports_triton_kernels(gpus, interpret, wanted):
    """import fastcnn alone does not, unless there is a GPU or the kernels are to be interpreted."""
    program = (
        f"import sys, torch; torch.cuda.device_count = lambda: {gpus}; import fastcnn; "
        "print('fastcnn.kernels' in sys.modules)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(wanted), done.stderr


def test_an_unusable_triton_is_named():
    """The package imports without it and says so."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import fastcnn.kernels; print(fastcnn.kernels.MISSING)\n"
        "from fastcnn.ops import _triton; print(_triton.why_not())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == 2 * [
        "Triton's kernels cannot be loaded: ModuleNotFoundError('import of triton halted; None in sys.modules')"
    ], done.stderr
