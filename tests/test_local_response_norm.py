"""local_response_norm against its formula in float64."""

import itertools

import pytest
import torch

import fastcnn
import fastcnn.functional as F
from fastcnn import nn
from fastcnn.ops import local_response_norm as lrn

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ARGS = (5, 2e-2, 0.75, 2.0, 1, False)  # size, alpha of the sum, beta, k, groups, relu

# Channels and pixels below, at and above a vector of 4, 8 and 16 lanes, primes, and planes of several strips.
SHAPES = ((2, 96, 5, 7), (1, 1, 3, 3), (2, 3, 2, 1), (1, 7, 1, 1), (2, 17, 13, 11), (1, 34, 1, 3), (1, 6, 41, 61))


def unit(dtype):
    """Unit roundoff."""
    return torch.finfo(dtype).eps / 2


def assert_within(got, want, bound):
    """|got - want| <= bound, element by element, and one rounding where got is half precision."""
    rounding = unit(got.dtype) * want.abs() if got.dtype in (torch.float16, torch.bfloat16) else 0.0
    slack = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    excess = (got.double() - want).abs() - (bound + rounding + slack)
    assert not got.isnan().any()
    assert excess.max() <= 0, f"exceeds its bound by {excess.max()}"


def forward_bound(want, dtype, size, beta):
    """s is a sum of size+1 positive terms, squares rounded once: relative error at most (size+3)u, beta times that in
    s^-beta; the inverse power itself is good to 2.5u (pow: 2u) and one more product follows."""
    return (beta * (size + 3) + 4) * accumulator_unit(dtype) * want.abs()


def accumulator_unit(dtype):
    return unit(torch.float64 if dtype == torch.float64 else torch.float32)


def backward_bound(x, g, dtype, size, alpha, beta, k, groups, relu):
    """Errors against the same formula with absolute values: its terms may cancel, their errors do not. The second term
    has s^-(beta+1), a sum of `size` terms and 8 more roundings."""
    x = x.double().relu() if relu else x.double().abs()
    s = k + alpha * lrn.window_sum(x * x, size // 2, (size - 1) // 2, groups)
    g = g.double().abs()
    terms = lrn.window_sum(g * x * s ** -(beta + 1), (size - 1) // 2, size // 2, groups)
    magnitude = g * s**-beta + 2 * abs(alpha) * beta * x * terms
    return ((beta + 1) * (size + 3) + size + 8) * accumulator_unit(dtype) * magnitude


def check_both_ways(shape, layout, dtype, args):
    size, _, beta, *_ = args
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype).to(memory_format=layout)
    g = torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)
    exact = x.double().requires_grad_()
    want = lrn.reference(exact, *args)
    y = lrn.ops.raw(x, *args)
    assert y.dtype == dtype
    assert y.stride() == torch.empty_like(x).stride()
    assert_within(y, want.detach(), forward_bound(want.detach(), dtype, size, beta))
    (want_dx,) = torch.autograd.grad(want, exact, g.double())
    dx = lrn.ops.backward(g, x, *args)
    assert dx.stride() == y.stride()
    assert_within(dx, want_dx, backward_bound(x, g, dtype, *args))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, dtype, layout):
    check_both_ways(shape, layout, dtype, ARGS)


@pytest.mark.parametrize("shape", [(2, 9, 13, 13), (1, 7, 5, 7)])
@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_begins_anywhere(dtype, offset, shape):
    """x and g each begin elsewhere in a sector, and every plane does."""
    count = torch.Size(shape).numel()
    memory = [torch.randn(offset * i + count, dtype=torch.float64).to(dtype) for i in (1, 2)]
    x, g = (t[-count:].view(shape) for t in memory)
    exact = x.double().requires_grad_()
    want = lrn.reference(exact, *ARGS)
    assert_within(lrn.ops.raw(x, *ARGS), want.detach(), forward_bound(want.detach(), dtype, 5, 0.75))
    (want_dx,) = torch.autograd.grad(want, exact, g.double())
    assert_within(lrn.ops.backward(g, x, *ARGS), want_dx, backward_bound(x, g, dtype, *ARGS))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 9, 40])
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.3, 2.0])
def test_windows_and_powers(size, beta, layout):
    for dtype, (groups, relu) in itertools.product((torch.float32, torch.float64), ((1, False), (3, True))):
        check_both_ways((2, 21, 3, 6), layout, dtype, (size, 0.1, beta, 1.5, groups, relu))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.3])
def test_special_bases(beta, layout):
    """x / base^beta as torch has it where base is zero, subnormal, at the ends of the range, negative, not finite."""
    values = [1.0, -2.0, 0.0, 3e38, -1e-38, 1e-45, torch.nan, torch.inf]
    x = torch.tensor(values).repeat(3).view(1, 24, 1, 1).expand(2, 24, 3, 5).contiguous(memory_format=layout)
    bases = [0.0, 1e-45, 1e-40, 1.1754944e-38, 2e-38, 1e-30, 1.0, 1e20, 3.4e38, torch.inf, -torch.inf, torch.nan, -1.0]
    for k in bases:
        y = F.local_response_norm(x, 1, 0.0, beta, k)
        base = (torch.full_like(x, k) + 0 * (x * x)).double()
        want = (x.double() / base**beta).float()
        # 3 units in the last place: 2.5u and two roundings, one of them of the reference; a subnormal loses one more.
        torch.testing.assert_close(y, want, rtol=3 * torch.finfo(torch.float32).eps, atol=3e-45, equal_nan=True)


def test_overflow_of_the_squares():
    x = torch.tensor([1e30, 1.0, 1.0, 1.0, 1.0, 1.0]).view(1, 6, 1, 1)
    torch.testing.assert_close(F.local_response_norm(x, 3), torch.nn.functional.local_response_norm(x, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 4, 5])
def test_equals_torch(size, layout):
    x = torch.randn(2, 19, 6, 5, dtype=torch.float64).to(memory_format=layout)
    want = torch.nn.functional.local_response_norm(x, size, 0.3, 0.75, 1.5)
    y = F.local_response_norm(x, size, 0.3, 0.75, 1.5)
    torch.testing.assert_close(y, want, rtol=1e-14, atol=0)
    assert y.stride() == want.stride()
    assert torch.equal(nn.LocalResponseNorm(size, 0.3, 0.75, 1.5)(x), y)


@pytest.mark.parametrize("shape", [(3, 6, 9), (2, 6, 3, 2, 4), (2, 6, 1, 2, 3, 2), (2, 6, 0), (0, 6, 3, 3)])
def test_dimensions(shape):
    """3-D is (N, C, L), as torch has it, not an unbatched image."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, want = F.local_response_norm(x, 3, 0.5), torch.nn.functional.local_response_norm(x, 3, 0.5)
    torch.testing.assert_close(y, want, rtol=1e-14, atol=0)
    g = torch.randn_like(y)
    got, expected = (torch.autograd.grad(t, x, g, materialize_grads=True) for t in (y, want))
    torch.testing.assert_close(got, expected)


def test_non_contiguous():
    x = torch.randn(4, 20, 7, 8)
    for view in (x[:, ::2], x.transpose(2, 3), x[..., 1::3], x[:1].expand(3, -1, -1, -1), x.flip(1)):
        torch.testing.assert_close(
            F.local_response_norm(view, 5), F.local_response_norm(view.contiguous(), 5), rtol=0, atol=0
        )


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_stock_composition(mode):
    """What FASTCNN_DISABLE runs is the same function."""
    x = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    for groups, activation in itertools.product((1, 3), (None, "relu")):
        kwargs = {"alpha_mode": mode, "groups": groups, "activation": activation}
        y = F.local_response_norm(x, 5, 0.2, k=2.0, **kwargs)
        with fastcnn._config.disabled():
            want = F.local_response_norm(x, 5, 0.2, k=2.0, **kwargs)
        torch.testing.assert_close(y, want, rtol=1e-14, atol=0)
        alpha = 0.2 / 5 if mode == "mean" else 0.2
        want = lrn.reference(x, 5, alpha, 0.75, 2.0, groups, activation == "relu")
        torch.testing.assert_close(y, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("args", [ARGS, (4, 0.3, 0.5, 1.0, 2, False), (3, 0.3, 0.6, 1.0, 2, True)])
def test_opcheck_and_gradients(args, layout):
    torch.manual_seed(1)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(lrn.ops.raw, (x.detach(), *args))
    torch.library.opcheck(lrn.ops.norm.op, (x, *args))
    torch.library.opcheck(lrn.ops.backward.op, (torch.randn_like(x).requires_grad_(), x, *args))

    size, alpha, beta, k, groups, relu = args

    def face(z):
        activation = "relu" if relu else None
        return F.local_response_norm(z, size, alpha * size, beta, k, groups=groups, activation=activation)

    for f in (lambda z: lrn.ops.norm.op(z, *args), face):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_second_order_in_half_precision(dtype):
    """Computed in float32 and rounded once: gradients of half precision are float32's, rounded."""
    x = torch.randn(2, 8, 3, 3).to(dtype).float()
    v, g = torch.randn_like(x).to(dtype).float(), torch.randn_like(x).to(dtype).float()
    want = lrn.second_order(v, g, x, *ARGS)
    got = lrn.second_order(v.to(dtype), g.to(dtype), x.to(dtype), *ARGS)
    for a, b in zip(got, want):
        assert torch.equal(a, b.to(dtype))


def test_transforms():
    f = lambda x: F.local_response_norm(x * 2, 5, 0.1, groups=2, activation="relu").sin()
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 6, 9):
        x = torch.randn(2, 8, size, size, requires_grad=True)
        torch.testing.assert_close(compiled(x), f(x))
        gradient = torch.autograd.grad(compiled(x).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(f(x).sum(), x))
    module = torch.nn.Module()
    module.forward = f
    exported = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert str(torch.ops.fastcnn.local_response_norm.default) in str(exported.graph)
    torch.testing.assert_close(exported.module()(torch.cat([x, x]).detach()), f(torch.cat([x, x]).detach()))
    b = torch.randn(3, 2, 8, 5, 5)
    torch.testing.assert_close(
        torch.vmap(f, in_dims=1, out_dims=1)(b.movedim(0, 1)), torch.stack([f(t) for t in b]).movedim(0, 1)
    )
    gradient = torch.func.grad(lambda t: f(t).sum())
    torch.testing.assert_close(torch.vmap(gradient)(b), torch.stack([gradient(t) for t in b]))


def test_autocast_keeps_the_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert F.local_response_norm(torch.randn(1, 8, 3, 3, dtype=dtype), 5).dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout):
    x = torch.randn(3, 40, 37, 41).to(memory_format=layout)
    g = torch.randn_like(x)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append((lrn.ops.raw(x, *ARGS), lrn.ops.backward(g, x, *ARGS)))
    finally:
        torch.set_num_threads(before)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


def test_module():
    m = nn.LocalResponseNorm(5, k=2.0, alpha_mode="sum", groups=2, activation="relu")
    assert isinstance(m, torch.nn.LocalResponseNorm)
    assert not m.state_dict()
    assert repr(m) == "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=2.0, alpha_mode=sum, groups=2, activation=relu)"
    assert repr(nn.LocalResponseNorm(5)) == repr(torch.nn.LocalResponseNorm(5))
    x = torch.randn(1, 8, 3, 3)
    want = F.local_response_norm(x, 5, k=2.0, alpha_mode="sum", groups=2, activation="relu")
    assert torch.equal(m(x), want)


@pytest.mark.parametrize(
    ("error", "message", "shape", "kwargs"),
    [
        (ValueError, r"Expected 3D or higher dimensionality\s+input \(got 2 dimensions\)", (4, 4), {}),
        (RuntimeError, "expected size of at least 1, but got 0", (1, 4, 2, 2), {"size": 0}),
        (RuntimeError, "expected size of at least 1, but got -3", (1, 4, 2, 2), {"size": -3}),
        (
            ValueError,
            "expected an odd size with alpha_mode='sum', but got 4",
            (1, 4, 2, 2),
            {"size": 4, "alpha_mode": "sum"},
        ),
        (ValueError, "expected alpha_mode to be 'mean' or 'sum', but got 'max'", (1, 4, 2, 2), {"alpha_mode": "max"}),
        (ValueError, "expected activation to be None or 'relu', but got 'tanh'", (1, 4, 2, 2), {"activation": "tanh"}),
        (
            ValueError,
            r"expected groups to divide the channels of input \(4\), but got groups 3",
            (1, 4, 2, 2),
            {"groups": 3},
        ),
        (ValueError, "but got groups 0", (1, 4, 2, 2), {"groups": 0}),
    ],
)
def test_errors(error, message, shape, kwargs):
    with pytest.raises(error, match=message):
        F.local_response_norm(torch.zeros(shape), **{"size": 5, **kwargs})


def test_raw_errors():
    x = torch.zeros(1, 4, 2, 2)
    for bad, message in (
        ((x[0], *ARGS), r"^local_response_norm: expected 4D input \(N, C, H, W\), but got input of size \[4, 2, 2\]"),
        ((x, 0, *ARGS[1:]), "expected size of at least 1, but got 0"),
        ((x, *ARGS[:4], 3, False), "expected groups to divide"),
        ((x.int(), *ARGS), "expected a tensor of dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            lrn.ops.raw(*bad)
    with pytest.raises(
        RuntimeError, match=r"expected grad of size \[1, 4, 2, 2\], but got grad of size \[1, 4, 2, 3\]"
    ):
        lrn.ops.backward(torch.zeros(1, 4, 2, 3), x, *ARGS)
    with pytest.raises(RuntimeError, match=r"Input type \(Float\) and grad type \(Double\) should be the same"):
        lrn.ops.backward(x.double(), x, *ARGS)
