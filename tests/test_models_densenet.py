"""DenseNet, against the specification and torchvision."""

import pytest
import torch
from torch import nn

from fastcnn.models import DenseNet, densenet40_12, densenet_bc_100_12, get_model, list_models
from fastcnn.models.verify import example_batch, relative_error
from tests.model_checks import (
    assert_gradients,
    assert_same_logits,
    assert_same_state_dict,
    assert_trains,
    assert_trains_alike,
    filled,
    multiplications,
    on_meta,
    output_shapes,
    parameter_count,
)

# spec/architectures.md, 1.11
PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "densenet40_12": 1_019_722,
    "densenet_bc_100_12": 769_162,
}
TORCHVISION = ["densenet121", "densenet169", "densenet201", "densenet161"]


def torchvision(name):
    models = pytest.importorskip("torchvision.models", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):
        return models.get_model(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert name in list_models()
    assert parameter_count(on_meta(name)) == PARAMETERS[name]
    assert example_batch(name, 1)[0].shape[-1] == (224 if name in TORCHVISION else 32)


def test_multiplications():
    assert multiplications("densenet121", 224) == 2_834_161_664


def test_shapes():
    """Spec, 1.11: 56, 28, 14, 7; each layer of a block adds 32 maps, each transition halves them."""
    names = [f"features.{name}" for name in ("pool0", "denseblock1", "transition1", "transition2", "transition3")]
    shapes = output_shapes("densenet121", 224, [*names, "features"])
    assert list(shapes.values()) == [
        (64, 56, 56),
        (64 + 6 * 32, 56, 56),
        (128, 28, 28),
        ((128 + 12 * 32) // 2, 14, 14),
        ((256 + 24 * 32) // 2, 7, 7),
        (1024, 7, 7),
    ]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_state_dict(name):
    assert_same_state_dict(name, torchvision(name))


@pytest.mark.parametrize(
    "name", ["densenet121", *(pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION if n != "densenet121")]
)
def test_equals_torchvision(name):
    assert_same_logits(name, torchvision(name), torch.randn(2, 3, 64, 64))


def test_trains_as_torchvision():
    peers = pytest.importorskip("torchvision.models", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):
        ours = DenseNet((2, 3, 2, 2), 8, 16, 10)
        peer = peers.DenseNet(8, (2, 3, 2, 2), 16, num_classes=10)
    assert_trains_alike(ours, peer, torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize(
    "name", ["densenet121", *(pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION if n != "densenet121")]
)
def test_gradients(name):
    assert_gradients(name, 32, 1000)


@pytest.mark.parametrize("name", ["densenet40_12", "densenet_bc_100_12"])
def test_trains(name):
    assert_trains(filled(on_meta(name), torch.float64), torch.randn(2, 3, 8, 11).double())


def test_trains_with_dropout():
    assert_trains(filled(on_meta("densenet40_12", drop_rate=0.2), torch.float64), torch.randn(2, 3, 8, 8).double())


@torch.no_grad()
def test_densenet40_layer_by_layer():
    """Against the paper's description, written out with stock functions: BN, ReLU, 3x3; 1x1 and averages between."""
    model = filled(on_meta("densenet40_12")).eval()
    conv, relu = nn.functional.conv2d, nn.functional.relu
    features = model.features
    x = torch.randn(2, 3, 32, 32)
    y = conv(x, features.conv0.weight, padding=1)
    assert y.shape == (2, 16, 32, 32)
    for i in (1, 2, 3):
        for layer in features.get_submodule(f"denseblock{i}").children():
            y = torch.cat((y, conv(relu(layer.norm1(y)), layer.conv1.weight, padding=1)), 1)
        assert y.shape[1] == 16 + i * 12 * 12
        if i < 3:
            transition = features.get_submodule(f"transition{i}")
            y = nn.functional.avg_pool2d(conv(relu(transition.norm(y)), transition.conv.weight), 2)
    want = model.classifier(relu(features.norm5(y)).mean((2, 3)))
    # forty layers of float32 sums of at most 9 * 448 terms, each off by at most 63 half-ulps, twice (both results)
    assert relative_error(model(x), want) < 2 * 40 * 63 * 2**-24


def test_initial_values():
    model = densenet_bc_100_12()
    layer = model.features.denseblock3.denselayer16
    # kaiming: 2 over the number of inputs; 48 * 330 and 12 * 432 weights: 0.6 % and 1 % for a standard deviation
    assert layer.conv1.weight.std().item() == pytest.approx((2 / layer.conv1.in_channels) ** 0.5, rel=0.04)
    assert layer.conv2.weight.std().item() == pytest.approx((2 / (9 * 48)) ** 0.5, rel=0.05)
    assert (model.classifier.bias == 0).all()


@torch.no_grad()
def test_other_sizes():
    assert densenet40_12(num_classes=100).eval()(torch.randn(1, 3, 21, 36)).shape == (1, 100)


def test_rejects_unknown_stem():
    with pytest.raises(ValueError, match="expected stem to be 'imagenet' or 'cifar', but got 'deep'"):
        get_model("densenet121", stem="deep")
