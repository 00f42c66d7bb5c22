"""dropout, stochastic_depth and drop_path: which elements are left out, how often, and what becomes of the others."""

import math

import pytest
import torch

import fastcnn.functional as F
from fastcnn import nn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def seeded(f, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return f(*args, **kwargs)


def assert_rate(kept, p):
    """The share of ones among independent draws: within 5 standard deviations of p."""
    assert abs(kept.double().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / kept.numel())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_dropout(p, dtype):
    x = torch.rand(40, 500).to(dtype) + 1
    inverted, paper = (seeded(F.dropout, x, p, mode=mode) for mode in ("inverted", "paper"))
    assert torch.equal(inverted, seeded(torch.nn.functional.dropout, x, p))
    assert paper.dtype == dtype
    assert torch.equal(paper != 0, inverted != 0)
    assert torch.equal(paper, torch.where(paper != 0, x, 0))
    assert_rate(paper != 0, 1 - p)
    assert F.dropout(x, p, False) is x or torch.equal(F.dropout(x, p, False), x)
    assert torch.equal(F.dropout(x, p, False, mode="paper"), x * (1 - p))
    for training in (True, False):
        y = x.clone()
        assert seeded(F.dropout, y, p, training, True, mode="paper") is y
        assert torch.equal(y, seeded(F.dropout, x, p, training, mode="paper"))


def test_dropout_gradients():
    x = torch.rand(3, 7, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        f = lambda z, training=training: seeded(F.dropout, z, 0.4, training, mode="paper") ** 2
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", ["inverted", "paper"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_stochastic_depth(layout, scaling, dtype):
    x = (torch.rand(4000, 3, 2, 2).to(dtype) + 1).to(memory_format=layout)
    y = seeded(F.stochastic_depth, x, 0.3, "row", scaling=scaling)
    assert y.stride() == x.stride()
    noise = seeded(lambda: torch.empty(4000, 1, 1, 1, dtype=dtype).bernoulli_(0.7))  # torchvision's draw
    assert torch.equal(y, x * (noise / 0.7 if scaling == "inverted" else noise))
    assert_rate(noise, 0.7)
    many = [seeded(F.stochastic_depth, x[:3], 0.3, "batch", scaling=scaling, seed=seed) for seed in range(400)]
    for y in many:
        assert (y == 0).all() or (y != 0).all()
    assert_rate(torch.tensor([bool((y != 0).all()) for y in many]), 0.7)
    eval = F.stochastic_depth(x, 0.3, "row", False, scaling=scaling)
    assert torch.equal(eval, x if scaling == "inverted" else x * 0.7)


@pytest.mark.parametrize("mode", ["batch", "row"])
def test_stochastic_depth_at_the_ends(mode):
    x = torch.rand(3, 4)
    assert F.stochastic_depth(x, 0.0, mode) is x
    for scaling in ("inverted", "paper"):
        assert not F.stochastic_depth(x, 1.0, mode, scaling=scaling).any()
    assert F.stochastic_depth(x[:0], 0.5, mode).shape == (0, 4)


def powers(n, count, dtype=torch.float64):
    """Inputs whose sums tell which of them are in it."""
    return [torch.full((n, 2), 2.0**i, dtype=dtype) for i in range(count)]


def survivors(y, count):
    """(N, count): which inputs a mean of `powers` holds; the mean of k of them is their sum over k."""
    for subset in range(1, 2**count):
        held = torch.tensor([bool(subset >> i & 1) for i in range(count)])
        if math.isclose(subset / held.sum().item(), y, rel_tol=1e-6):
            return held
    raise AssertionError(f"{y} is no mean")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("p", [0.0, 0.15, 0.6, 1.0])
def test_local_drop_path(p, count):
    y = seeded(F.drop_path, powers(3000, count), p, mode="row")
    assert torch.equal(y[:, 0], y[:, 1])
    held = torch.stack([survivors(v.item(), count) for v in y[:, 0]])
    assert held.any(1).all()
    # Kept on its own with 1-p; or drawn to remain, one time in `count`, when all are left out.
    rate = 1 - p + p**count / count
    for i in range(count):
        assert_rate(held[:, i], rate)
    together = seeded(F.drop_path, powers(5, count), p)
    assert (together == together[0]).all()


@pytest.mark.parametrize("mode", ["batch", "row"])
def test_global_drop_path(mode):
    if mode == "row":
        y = seeded(F.drop_path, powers(3000, 3), sampling="global", mode=mode)[:, 0]
    else:
        y = torch.stack([seeded(F.drop_path, powers(2, 3), sampling="global", seed=s)[1, 1] for s in range(1000)])
    for i in range(3):
        assert_rate(y == 2.0**i, 1 / 3)


def test_one_column():
    """Chosen by the network: the same at every join, training or not; joins without it are the mean."""
    inputs = powers(4, 3)
    for training in (True, False):
        for column in range(3):
            assert torch.equal(F.drop_path(inputs, 0.9, training, column=column), inputs[column])
            assert torch.equal(F.drop_path(inputs, 0.9, training, column=torch.tensor(column)), inputs[column])
        assert torch.allclose(F.drop_path(inputs, 0.9, training, column=3), torch.tensor(7 / 3, dtype=torch.float64))
        rows = F.drop_path(inputs, 0.9, training, column=torch.tensor([2, 0, 5, 1]))
        assert torch.allclose(rows[:, 0], torch.tensor([4, 1, 7 / 3, 2], dtype=torch.float64))
    assert torch.allclose(F.drop_path(inputs, training=False), torch.tensor(7 / 3, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize("sampling", ["local", "global"])
def test_drop_path_gradients(sampling, mode):
    inputs = [torch.rand(3, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    f = lambda *x: seeded(F.drop_path, x, 0.5, sampling=sampling, mode=mode) ** 2
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_drop_path_dtypes_and_layouts(dtype):
    inputs = [torch.rand(2, 3, 4, 4).to(dtype).to(memory_format=torch.channels_last) for _ in range(3)]
    for y in (F.drop_path(inputs, mode="row"), F.drop_path(inputs, training=False), F.drop_path(inputs)):
        assert y.dtype == dtype
        assert y.stride() == inputs[0].stride()


FUNCTIONS = {
    "dropout": lambda x: F.dropout(x, 0.5, mode="paper"),
    "stochastic_depth": lambda x: F.stochastic_depth(x, 0.5, "row"),
    "drop_path-local": lambda x: F.drop_path([x, 2 * x, 4 * x], 0.5, mode="row"),
    "drop_path-global": lambda x: F.drop_path([x, 2 * x, 4 * x], sampling="global", mode="row"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(name):
    f, x = FUNCTIONS[name], torch.rand(40, 6) + 1
    assert torch.equal(seeded(f, x), seeded(f, x))
    assert not torch.equal(seeded(f, x), seeded(f, x, seed=1))
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(seeded(compiled, x), seeded(compiled, x))
    assert not torch.equal(compiled(x), compiled(x))
    batch = x.expand(3, 40, 6)
    for inputs in (batch, batch.clone()):
        same = torch.vmap(f, randomness="same")(inputs)
        assert torch.equal(same[0], same[1])
        different = torch.vmap(f, randomness="different")(inputs)
        assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(f)(batch)
    gradient = seeded(torch.func.grad(lambda t: f(t).sum()), x)
    torch.testing.assert_close(gradient * x, seeded(f, x))  # all are linear


def test_modules():
    x = torch.rand(6, 5)
    assert repr(nn.Dropout(0.2)) == repr(torch.nn.Dropout(0.2))
    assert isinstance(nn.Dropout(), torch.nn.Dropout)
    assert repr(nn.Dropout(0.2, mode="paper")) == "Dropout(p=0.2, inplace=False, mode=paper)"
    assert repr(nn.StochasticDepth(0.2, "row")) == "StochasticDepth(p=0.2, mode=row)"
    assert repr(nn.StochasticDepth(0.2, "row", scaling="paper")) == "StochasticDepth(p=0.2, mode=row, scaling=paper)"
    assert repr(nn.DropPath()) == "DropPath(p=0.15, sampling=local, mode=batch)"
    for module, f in (
        (nn.Dropout(0.4, mode="paper"), lambda x, on: F.dropout(x, 0.4, on, mode="paper")),
        (nn.StochasticDepth(0.4, "row"), lambda x, on: F.stochastic_depth(x, 0.4, "row", on)),
        (nn.DropPath(0.4, mode="row"), lambda x, on: F.drop_path(x, 0.4, on, mode="row")),
    ):
        argument = [x, 2 * x] if isinstance(module, nn.DropPath) else x
        for training in (True, False):
            module.train(training)
            assert torch.equal(seeded(module, argument), seeded(f, argument, training))
        assert not module.state_dict()
    assert torch.equal(nn.DropPath()([x, 2 * x], column=1), 2 * x)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.dropout(X, 1.5), ValueError, "between 0 and 1, but got 1.5"),
        (lambda: F.dropout(X, -0.5, mode="paper"), ValueError, "between 0 and 1, but got -0.5"),
        (lambda: F.dropout(X, math.nan, mode="paper"), ValueError, "between 0 and 1, but got nan"),
        (lambda: F.dropout(X, mode="mean"), ValueError, "expected mode to be 'inverted' or 'paper', but got 'mean'"),
        (lambda: F.stochastic_depth(X, 2, "row"), ValueError, "between 0 and 1, but got 2"),
        (lambda: F.stochastic_depth(X, 0.5, "all"), ValueError, "expected mode to be 'batch' or 'row', but got 'all'"),
        (lambda: F.stochastic_depth(X, 0.5, "row", scaling=""), ValueError, "expected scaling to be"),
        (lambda: F.drop_path([]), ValueError, "expected at least one input"),
        (
            lambda: F.drop_path([X, X[:1]]),
            RuntimeError,
            r"size \[2, 3\], but got inputs\[1\] of size \[1, 3\]",
        ),
        (lambda: F.drop_path([X], 1.1), ValueError, "between 0 and 1, but got 1.1"),
        (lambda: F.drop_path([X], sampling="all"), ValueError, "expected sampling to be 'local' or 'global'"),
        (lambda: F.drop_path([X], mode="all"), ValueError, "expected mode to be 'batch' or 'row'"),
        (lambda: F.drop_path([X], column=-1), ValueError, "expected column of at least 0, but got -1"),
        (lambda: F.drop_path([X], column=torch.zeros(3)), RuntimeError, r"column to be one or 2, .* size \[3\]"),
        (lambda: nn.Dropout(2), ValueError, "between 0 and 1"),
        (lambda: nn.Dropout(mode="x"), ValueError, "Dropout: expected mode"),
        (lambda: nn.StochasticDepth(-1, "row"), ValueError, "between 0 and 1"),
        (lambda: nn.StochasticDepth(0.1, "x"), ValueError, "StochasticDepth: expected mode"),
        (lambda: nn.DropPath(sampling="x"), ValueError, "DropPath: expected sampling"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message) as refused:
        call()
    assert type(refused.value) is error
