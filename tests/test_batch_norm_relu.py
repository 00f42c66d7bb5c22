"""batch_norm_relu against its formula in float64, and against PyTorch's two operations."""

import itertools

import pytest
import torch

import fastcnn
import fastcnn.functional as F
import fastcnn.models
from fastcnn.ops import batch_norm_relu as norm

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Of a DenseNet and a residual network, then single elements, primes, whole and broken vectors.
SHAPES = ((2, 256, 14, 14), (3, 64, 28, 28), (1, 1, 1, 1), (2, 17, 7, 11), (5, 37, 1, 13), (1, 16, 4, 4))


def tensors(shape, dtype=torch.float32, layout=torch.contiguous_format, affine=True):
    """Input, running mean and variance, weight and bias; statistics are float32 beside 16 bits."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, dtype=torch.float64, generator=generator)
    of = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var, weight, bias = draw(shape[1]), draw(shape[1]).exp(), draw(shape[1]), draw(shape[1])
    x = draw(*shape).to(dtype).to(memory_format=layout)
    return x, mean.to(of), var.to(of), *((weight.to(of), bias.to(of)) if affine else (None, None))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, dtype, layout):
    for affine, relu in itertools.product((True, False), repeat=2):
        x, mean, var, weight, bias = args = tensors(shape, dtype, layout, affine)
        y = norm.ops.raw(*args, 1e-5, relu)
        want = norm.reference(*args, 1e-5, relu)
        assert y.dtype == dtype
        assert y.stride() == x.stride()
        # Factor and term, made in double, round to the accumulator, as do their product and sum; in float64 their
        # making rounds, too, by five operations here and there. Then y's own rounding.
        roundings = 10 if dtype == torch.float64 else 3
        scale = (1 if weight is None else weight.double()) / (var.double() + 1e-5).sqrt()
        terms = (x.double() * scale.view(-1, 1, 1)).abs() + (mean.double() * scale).abs().view(-1, 1, 1)
        terms = terms if bias is None else terms + bias.double().abs().view(-1, 1, 1)
        accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
        rounding = torch.finfo(dtype).eps / 2 * want.abs() + torch.finfo(dtype).smallest_normal
        assert not y.isnan().any()
        assert ((y.double() - want).abs() <= roundings * accumulator * terms + rounding).all()


def test_face():
    for relu, affine in itertools.product(("relu", None), (True, False)):
        args = tensors((2, 6, 9, 8), torch.float64, affine=affine)
        y = F.batch_norm_relu(*args, activation=relu, eps=1e-3)
        with fastcnn._config.disabled():
            want = F.batch_norm_relu(*args, activation=relu, eps=1e-3)
        torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-13)
    x, *rest = args
    assert torch.equal(F.batch_norm_relu(x[0], *rest), F.batch_norm_relu(x, *rest)[0])
    assert F.batch_norm_relu(x[:0], *rest).shape == (0, 6, 9, 8)
    for view in (x.transpose(2, 3), x[..., ::2], x[:1].expand(3, -1, -1, -1)):
        assert torch.equal(F.batch_norm_relu(view, *rest), F.batch_norm_relu(view.contiguous(), *rest))
    strided = [None if t is None else torch.stack((t, t), 1)[:, 0] for t in rest]
    assert torch.equal(F.batch_norm_relu(x, *strided), F.batch_norm_relu(x, *rest))
    halves = [None if t is None else t.bfloat16() for t in rest]
    widened = [None if t is None else t.double() for t in halves]
    assert torch.equal(F.batch_norm_relu(x, *halves), F.batch_norm_relu(x, *widened))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_reach_what_they_reach_in_pytorch(value, layout):
    x, mean, var, weight, bias = tensors((2, 5, 4, 4), layout=layout)
    x[0, 1, 2, 3] = x[1, 4, 0, 0] = value
    y = F.batch_norm_relu(x, mean, var, weight, bias)
    want = torch.nn.functional.batch_norm(x, mean, var, weight, bias).relu()
    torch.testing.assert_close(y, want, equal_nan=True)


def test_training_and_gradients_run_pytorchs_own():
    x, mean, var, weight, bias = tensors((4, 6, 5, 5))
    weight.requires_grad_()
    statistics = [[mean.clone(), var.clone()] for _ in range(2)]
    y = F.batch_norm_relu(x, *statistics[0], weight, bias, training=True, momentum=0.3)
    z = torch.nn.functional.batch_norm(x, *statistics[1], weight, bias, True, 0.3).relu()
    assert torch.equal(y, z)
    assert all(map(torch.equal, *statistics))
    assert not torch.equal(statistics[0][0], mean)
    (gradient,) = torch.autograd.grad(F.batch_norm_relu(x, mean, var, weight, bias).sum(), weight)
    (want,) = torch.autograd.grad(torch.nn.functional.batch_norm(x, mean, var, weight, bias).relu().sum(), weight)
    assert torch.equal(gradient, want)


@pytest.mark.cpu  # explain names the kernels of the CPU
def test_explain_tells_the_roads_apart():
    _, *rest = tensors((2, 6, 5, 5))
    rows = fastcnn.explain(lambda t: F.batch_norm_relu(t, *rest), (2, 6, 5, 5)).rows
    assert [row.op for row in rows] == ["batch_norm_relu"]
    assert fastcnn.cpu_capability() in rows[0].kernel
    with torch.enable_grad():
        rows = fastcnn.explain(lambda t: F.batch_norm_relu(t, *rest, training=True), (2, 6, 5, 5)).rows
    assert [(row.op, row.kernel) for row in rows] == [("native_batch_norm", "stock PyTorch (ATen)")]


@pytest.mark.cpu  # explain names the kernels of the CPU
def test_explain_names_the_normalization_of_a_network():
    model = fastcnn.models.get_model("densenet40_12")
    rows = fastcnn.explain(model, (1, 3, 32, 32)).rows
    where = {row.where: row.op for row in rows}
    assert where["features.denseblock1.denselayer1.norm1"] == "batch_norm_relu"
    assert where["features.transition1.norm"] == "batch_norm_relu"
    assert [row.where for row in rows if row.op == "native_batch_norm"] == ["features.norm5"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_opcheck_and_gradients(relu, affine, layout):
    x, mean, var, weight, bias = tensors((2, 3, 4, 5), torch.float64, layout, affine)
    torch.library.opcheck(norm.ops.raw, (x, mean, var, weight, bias, 1e-5, relu))
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    torch.library.opcheck(norm.ops.op.op, (x, mean, var, weight, bias, 1e-5, relu))
    f = lambda x, *vectors: norm.ops.op.op(x, mean, var, *(vectors or (None, None)), 1e-5, relu)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_transforms():
    _, *rest = tensors((2, 6, 4, 4))
    f = lambda x: F.batch_norm_relu(x * 2, *rest).tanh()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 7, 10):
        x = torch.randn(2, 6, size, size, requires_grad=True)
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(f(x).sum(), x))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), f(x))

    class Module(torch.nn.Module):
        def forward(self, x):
            return f(x)

    x = x.detach()
    exported = torch.export.export(Module(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.batch_norm_relu.default) in str(exported.graph)
    x3 = torch.cat([x, x[:1]])
    torch.testing.assert_close(exported.module()(x3), f(x3))
    many = torch.randn(3, 2, 6, 5, 5)
    torch.testing.assert_close(torch.vmap(f)(many), torch.stack([f(t) for t in many]))
    loss = lambda x: F.batch_norm_relu(x, *rest).square().sum()
    expected = torch.stack([torch.func.grad(loss)(v) for v in many])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(many), expected)


def test_autocast_keeps_the_inputs_dtype_as_pytorch_does():
    x, *rest = tensors((2, 6, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.batch_norm_relu(x, *rest).dtype == torch.nn.functional.batch_norm(x, *rest).dtype == torch.float32
        assert F.batch_norm_relu(x.bfloat16(), *rest).dtype == torch.bfloat16


V = torch.ones(4)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "activation to be None or 'relu', but got 'gelu'",
         lambda x: F.batch_norm_relu(x, V, V, V, V, activation="gelu")),
        (RuntimeError, "running_mean and running_var to be defined", lambda x: F.batch_norm_relu(x, None, None)),
        (RuntimeError, r"Expected 3D \(unbatched\) or 4D", lambda x: F.batch_norm_relu(x[0, 0], V, V)),
        (RuntimeError, r"expected running_mean to have 4 elements, but got running_mean of size \[3\]",
         lambda x: F.batch_norm_relu(x, V[:3], V)),
        (RuntimeError, r"expected running_var to have 4 elements", lambda x: F.batch_norm_relu(x, V, V[:3])),
        (RuntimeError, r"expected weight to have 4 elements", lambda x: F.batch_norm_relu(x, V, V, V[:1])),
        (RuntimeError, r"expected bias to have 4 elements", lambda x: F.batch_norm_relu(x, V, V, V, V[None])),
        (RuntimeError, "float32, float64, float16 or bfloat16", lambda x: F.batch_norm_relu(x, V.int(), V)),
        (RuntimeError, "weight on meta", lambda x: F.batch_norm_relu(x, V, V, V.to("meta"))),
        (RuntimeError, "4D input", lambda x: norm.ops.raw(x[0], V, V, V, V, 1e-5, True)),
        (ValueError, "more than 1 value per channel", lambda x: F.batch_norm_relu(x[..., :1, :1], V, V, training=True)),
    ],
)  # fmt: skip
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call(torch.zeros(1, 4, 3, 3))
