"""ResNet-20 to 110, the plain nets, stochastic depth and ResNeXt-29 for CIFAR, against the specification."""

import pytest
import torch
from torch import nn

from fastcnn.models import get_model, list_models, plain20, resnet20, resnet110_stochastic
from fastcnn.models.resnet_cifar import StochasticBlock
from fastcnn.models.verify import example_batch, relative_error, verify
from tests.model_checks import assert_gradients, assert_trains, filled, on_meta, output_shapes, parameter_count

# spec/architectures.md, 1.10
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "plain20": 269_722,
    "plain56": 853_018,
    "resnet110_stochastic": 1_727_962,  # 1.11
    "resnext29_8x64d": 34_426_698,
    "resnext29_16x64d": 68_155_210,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert name in list_models()
    assert parameter_count(on_meta(name)) == PARAMETERS[name]
    assert example_batch(name, 1)[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("name", "factor"), [("resnet20", 1), ("plain56", 1), ("resnext29_8x64d", 16)])
def test_shapes(name, factor):
    """Spec, 1.10: 16, 32, 64 maps at 32x32, 16x16, 8x8; of ResNeXt-29 256, 512, 1024."""
    shapes = output_shapes(name, 32, ["layer1", "layer2", "layer3", "fc"])
    expected = {"layer1": (16 * factor, 32, 32), "layer2": (32 * factor, 16, 16), "layer3": (64 * factor, 8, 8)}
    assert shapes == {**expected, "fc": (10,)}


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet56", 56), ("resnet110", 110), ("plain20", 20)])
def test_depth(name, depth):
    """Spec, 1.10: 6n+2 convolutions and linear layers; option A has no others."""
    layers = [module for module in on_meta(name).modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet110_stochastic"])
def test_trains(name):
    assert_trains(filled(on_meta(name), torch.float64), torch.randn(2, 3, 13, 16).double())


@pytest.mark.parametrize(
    "name",
    ["resnet32", "resnet44", "resnet56", "resnet110", "plain56", "resnext29_8x64d"]
    + [pytest.param("resnext29_16x64d", marks=pytest.mark.slow)],
)
def test_gradients(name):
    assert_gradients(name, 4, 10)


def test_verify():
    x, target = example_batch("resnet20", 2)
    result = verify(resnet20(), x[..., ::2, ::2], target, name="resnet20")
    assert result.passed, result.worst


@torch.no_grad()
def test_resnet20_layer_by_layer():
    """Against the paper's description, written out with stock functions."""
    model = filled(on_meta("resnet20")).eval()
    x = torch.randn(2, 3, 32, 32)
    y = model.bn1(nn.functional.conv2d(x, model.conv1.weight, padding=1)).relu()
    for i, stage in enumerate((model.layer1, model.layer2, model.layer3)):
        for j, block in enumerate(stage):
            stride = 2 if i and j == 0 else 1
            branch = block.bn1(nn.functional.conv2d(y, block.conv1.weight, stride=stride, padding=1)).relu()
            branch = block.bn2(nn.functional.conv2d(branch, block.conv2.weight, padding=1))
            if stride == 2:
                y = torch.cat((y[..., ::2, ::2], torch.zeros_like(y[..., ::2, ::2])), 1)
            y = (branch + y).relu()
    want = model.fc(y.mean((2, 3)))
    # twenty layers of float32 sums of at most 576 terms, each off by at most sqrt(576) half-ulps, twice (both results)
    assert relative_error(model(x), want) < 2 * 20 * 24 * 2**-24


@torch.no_grad()
def test_identity_layers_change_nothing():
    """Spec, T23: a plain network with blocks of Dirac convolutions added gives the same output as without."""
    shallow, deep = filled(on_meta("plain20")).eval(), filled(on_meta("plain56")).eval()
    for name in ("conv1", "bn1", "fc"):
        deep.get_submodule(name).load_state_dict(shallow.get_submodule(name).state_dict())
    for name in ("layer1", "layer2", "layer3"):
        for i, block in enumerate(deep.get_submodule(name)):
            if i < 3:
                block.load_state_dict(shallow.get_submodule(f"{name}.{i}").state_dict())
                continue
            for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                nn.init.dirac_(conv.weight)
                bn.reset_parameters()
                bn.eps = 0.0
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(deep(x), shallow(x), rtol=1e-5, atol=1e-6)


def stochastic_blocks(model):
    return [module for module in model.modules() if isinstance(module, StochasticBlock)]


def test_survival_rates():
    """Spec, T24: p_l = 1 - l / L (1 - p_L), p_L = 0.5; of L = 54 blocks (3L - 1) / 4 are expected to be active."""
    blocks = stochastic_blocks(resnet110_stochastic())
    assert len(blocks) == 54
    assert blocks[0].survival == pytest.approx(1 - 0.5 / 54)
    assert blocks[-1].survival == 0.5
    assert sum(block.survival for block in blocks) == pytest.approx(40.25)


def test_skipped_blocks_are_not_computed():
    model = resnet110_stochastic().train()
    active = []
    for block in stochastic_blocks(model):
        block.conv1.register_forward_hook(lambda *_: active.append(1))
    batches = 8
    with torch.no_grad():
        for _ in range(batches):
            model(torch.randn(2, 3, 4, 4))
    # the variance of a batch's count is the sum of p (1 - p), 8.9 for these 54 blocks; four standard deviations
    assert len(active) / batches == pytest.approx(40.25, abs=4 * (8.9 / batches) ** 0.5)
    active.clear()
    model.eval()(torch.randn(2, 3, 4, 4))
    assert len(active) == 54


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scaling", ["paper", "inverted"])
def test_stochastic_block(scaling, stride):
    """Spec, section 2: training R(b f(x) + x), testing R(p f(x) + x); inverted: divided by p in training."""
    block = StochasticBlock(4, 4 * stride, stride, "pad")
    block.survival, block.scaling = 0.5, scaling
    x = torch.randn(3, 4, 6, 6).relu()
    identity = block.identity(x)

    def branch():
        return block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))

    block.train()
    wanted = (branch() * (1 if scaling == "paper" else 2) + identity).relu()
    outcomes = [block(x) for _ in range(40)]
    skipped = [torch.equal(y, identity) for y in outcomes]
    assert 0 < sum(skipped) < 40
    for y, skip in zip(outcomes, skipped):
        assert skip or relative_error(y, wanted) < 1e-5
    block.eval()
    assert relative_error(block(x), (branch() * (0.5 if scaling == "paper" else 1) + identity).relu()) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_survival": 1.5}, "drop probability has to be between 0 and 1"),
        ({"scaling": "both"}, "expected scaling to be 'inverted' or 'paper', but got 'both'"),
        ({"shortcut": "add"}, "expected shortcut to be one of projection, pad, none, but got 'add'"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        get_model("resnet110_stochastic", **options)


@torch.no_grad()
def test_other_sizes_and_unbatched():
    for build in (resnet20, plain20):
        model = build(num_classes=3).eval()
        assert model(torch.randn(1, 3, 40, 17)).shape == (1, 3)
        x = torch.randn(3, 32, 32)
        assert torch.allclose(model(x), model(x[None])[0], atol=1e-5)
