"""FractalNet, against the specification and its recursive definition."""

import pytest
import torch
from torch import nn

from fastcnn.models import FractalNet, fractalnet20, list_models
from fastcnn.models.verify import example_batch, relative_error
from tests.model_checks import assert_trains, filled, on_meta, output_shapes, parameter_count

SMALL = {"channels": (8, 12, 16), "dropout": (0.0, 0.1, 0.2)}


def small(**options):
    with torch.device("meta"):
        return FractalNet(**{**SMALL, **options})


def test_parameters():
    """Spec, 1.11."""
    assert "fractalnet20" in list_models()
    assert parameter_count(on_meta("fractalnet20")) == 33_734_922
    assert parameter_count(on_meta("fractalnet20", bias=False)) == 33_724_618
    assert example_batch("fractalnet20", 1)[0].shape == (1, 3, 32, 32)


def test_shapes():
    shapes = output_shapes("fractalnet20", 32, [f"blocks.{i}" for i in range(5)] + ["fc"])
    assert list(shapes.values()) == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1), (10,)]


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_depth(columns):
    """Spec, 1.11: 5 * 2**(C-1) convolutions in the deepest column; 2**C - 1 in a block of all columns."""
    model = on_meta("fractalnet20", columns=columns)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 5 * (2**columns - 1)
    model = filled(small(columns=columns, channels=(4,) * 5, dropout=(0.0,) * 5)).eval()
    for column in range(columns):
        run = []
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *_, run=run: run.append(1))
        model(torch.randn(1, 3, 32, 32), column=column)
        assert len(run) == 5 * 2 ** (columns - 1 - column)


def fractal(block, x):
    """f_C by its definition with stock functions: the columns' outputs, to be joined by the caller."""
    layer = block.layer
    here = layer.bn(nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)).relu()
    if block.columns == 1:
        return [here]
    inner = torch.stack(fractal(block.first, x)).mean(0)
    return [*fractal(block.second, inner), here]


@torch.no_grad()
@pytest.mark.parametrize("pool_columns", [False, True])
def test_evaluation_is_the_mean_of_the_columns(pool_columns):
    model = filled(small(pool_columns=pool_columns)).eval()
    x = torch.randn(2, 3, 16, 16)
    y = x
    for block in model.blocks:
        outputs = torch.stack(fractal(block.fractal, y))
        if pool_columns:
            y = torch.stack([nn.functional.max_pool2d(output, 2) for output in outputs]).mean(0)
        else:
            y = nn.functional.max_pool2d(outputs.mean(0), 2)
    want = model.fc(y.mean((2, 3)))
    # twelve layers of float32 sums of at most 144 terms, each off by at most 12 half-ulps, twice (both results)
    assert relative_error(model(x), want) < 2 * 12 * 12 * 2**-24 * 2
    assert want.std() > 0


@torch.no_grad()
def test_a_column_alone():
    """Spec, T26: each column is usable alone; the last is one convolution per block."""
    model = filled(small()).eval()
    x = y = torch.randn(2, 3, 16, 16)
    for block in model.blocks:
        layer = block.fractal.layer
        y = nn.functional.max_pool2d(layer.bn(layer.conv(y)).relu(), 2)
    assert relative_error(model(x, column=2), model.fc(y.mean((2, 3)))) < 1e-5
    outputs = [model(x, column=i) for i in range(3)]
    assert all(relative_error(outputs[i], outputs[j]) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


@torch.no_grad()
def test_global_sampling_draws_columns():
    model = filled(small(global_rate=1.0, dropout=(0.0,) * 3)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the draws alone are random
    x = torch.randn(2, 3, 16, 16)
    columns = [model(x, column=i) for i in range(3)]
    drawn = [next(i for i in range(3) if torch.equal(columns[i], y)) for y in (model(x) for _ in range(30))]
    assert set(drawn) == {0, 1, 2}


@torch.no_grad()
def test_each_sample_may_draw_its_own_column():
    model = filled(small(global_rate=1.0, per_sample=True, dropout=(0.0,) * 3)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.randn(24, 3, 16, 16)
    columns = torch.stack([model(x, column=i) for i in range(3)])
    distances = (columns - model(x)).norm(dim=-1)
    assert (distances.min(0).values < 1e-4 * columns.norm(dim=-1).min(0).values).all()
    assert distances.argmin(0).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"global_rate": 1.0}, {"global_rate": 0.0}, {"pool_columns": True}])
def test_trains(options):
    assert_trains(filled(small(**options), torch.float64), torch.randn(3, 3, 16, 17).double())


def test_fractalnet20_trains():
    model = filled(on_meta("fractalnet20", global_rate=0.0, drop_path=0.0)).train()
    y = model(torch.randn(2, 3, 32, 32))
    nn.functional.cross_entropy(y, torch.tensor([0, 1])).backward()
    assert y.shape == (2, 10)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_initial_values():
    """Glorot: within sqrt(6 / (fan_in + fan_out)), biases 0; dropout by block."""
    model = FractalNet(**SMALL)
    conv = model.blocks[2].fractal.layer.conv
    bound = (6 / (9 * (12 + 16))) ** 0.5
    assert 0.99 * bound < conv.weight.abs().max().item() <= bound
    assert (conv.bias == 0).all()
    blocks = on_meta("fractalnet20").blocks
    assert [block.fractal.layer.drop.p for block in blocks] == [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "expected columns to be at least 1, but got 0"),
        ({"dropout": (0.1,)}, r"expected dropout of 5 blocks, but got \(0.1,\)"),
        ({"global_rate": 2.0}, "expected global_rate to be between 0 and 1, but got 2.0"),
        ({"drop_path": -0.1}, "drop probability has to be between 0 and 1, but got -0.1"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        fractalnet20(**options)


def test_rejects_a_column_that_it_lacks():
    model = filled(small()).eval()
    for column in (-1, 3):
        with pytest.raises(ValueError, match=f"expected column to be from 0 to 2, but got {column}"):
            model(torch.randn(1, 3, 16, 16), column=column)
