"""Inception v3, v4 and the Inception-ResNets: the spec's numbers, torchvision's and timm's networks."""

import pytest
import torch
from torch import nn

from fastcnn.models import inception_v3
from fastcnn.models.inception_v3 import InceptionOutputs
from fastcnn.models.verify import fixed_seed
from tests.cases.networks import (
    check_same,
    check_trains,
    fill,
    multiplications,
    on_meta,
    output_shapes,
    parameter_count,
    values,
)

# spec/architectures.md 1.8 and 1.9
PARAMETERS = {
    "inception_v3": 27_161_264,
    "inception_v4": 42_679_816,
    "inception_resnet_v1": 22_756_328,
    "inception_resnet_v2": 55_843_464,
}
MULTIPLICATIONS = {
    "inception_v3": 5_713_216_096,
    "inception_v4": 12_253_974_624,
    "inception_resnet_v2": 13_155_794_016,
}
SHAPES = {
    "inception_v3": {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2b_3x3": (64, 147, 147),
        "maxpool1": (64, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "maxpool2": (192, 35, 35),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    },
    "inception_v4": {
        "features.3": (160, 73, 73),
        "features.4": (192, 71, 71),
        "features.5": (384, 35, 35),
        "features.9": (384, 35, 35),
        "features.10": (1024, 17, 17),
        "features.17": (1024, 17, 17),
        "features.18": (1536, 8, 8),
        "features.21": (1536, 8, 8),
    },
    "inception_resnet_v1": {
        "conv2d_4a": (192, 71, 71),
        "conv2d_4b": (256, 35, 35),
        "repeat": (256, 35, 35),
        "mixed_6a": (896, 17, 17),
        "repeat_1": (896, 17, 17),
        "mixed_7a": (1792, 8, 8),
        "repeat_2": (1792, 8, 8),
    },
    "inception_resnet_v2": {
        "maxpool_5a": (192, 35, 35),
        "mixed_5b": (320, 35, 35),
        "repeat": (320, 35, 35),
        "mixed_6a": (1088, 17, 17),
        "repeat_1": (1088, 17, 17),
        "mixed_7a": (2080, 8, 8),
        "block8": (2080, 8, 8),
        "conv2d_7b": (1536, 8, 8),
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameter_count(on_meta(name)) == PARAMETERS[name]


def test_auxiliary_parameters():
    assert parameter_count(on_meta("inception_v3").AuxLogits) == 3_326_696
    assert parameter_count(on_meta("inception_v3", aux_logits=False)) == 23_834_568


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_multiplications(name):
    assert multiplications(on_meta(name), 3, 299, 299) == MULTIPLICATIONS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    shapes = output_shapes(on_meta(name, num_classes=7), 3, 299, 299)
    assert {layer: shapes[layer] for layer in SHAPES[name]} == SHAPES[name]
    assert shapes[""] == (7,)
    small = output_shapes(on_meta(name, num_classes=7), 3, 75, 75)
    assert small[""] == (7,)


def test_inception_resnet_scales():
    """10, 20, 9 + 1 blocks of scales .17, .10, .20 and, without ReLU, 1; v1 has 5, 10, 5."""
    for name, counts in (("inception_resnet_v1", (5, 10, 5)), ("inception_resnet_v2", (10, 20, 9))):
        model = on_meta(name)
        for part, count, scale in zip(("repeat", "repeat_1", "repeat_2"), counts, (0.17, 0.10, 0.20)):
            blocks = list(getattr(model, part))
            assert [(block.scale, block.relu is not None) for block in blocks] == [(scale, True)] * count
    assert model.block8.scale == 1.0
    assert model.block8.relu is None
    assert on_meta("inception_resnet_v1", scales=(1.0, 1.0, 1.0)).repeat[0].scale == 1.0


# In float32 and float64, half a minute each on two busy cores; test_torchvision trains v3 always.
SLOW_TRAINING = [False, pytest.param(True, marks=pytest.mark.slow)]


# 107x107: maps of 2x2 at last, the fewest whose statistics over a batch are more than two signs
@pytest.mark.parametrize("train", [False, True])
def test_torchvision(train):
    torchvision = pytest.importorskip("torchvision")
    theirs = on_meta(torchvision.models.Inception3, aux_logits=False, transform_input=True, init_weights=False)
    ours = on_meta("inception_v3", aux_logits=False, transform_input=True)
    check_same(ours, theirs, torch.randn(4, 3, 107, 107), train)


@pytest.mark.parametrize("train", SLOW_TRAINING)
def test_torchvision_with_auxiliary(train):
    torchvision = pytest.importorskip("torchvision")
    theirs = on_meta(torchvision.models.Inception3, init_weights=False)
    check_same(on_meta("inception_v3"), theirs, torch.randn(3 if train else 1, 3, 299, 299), train)


@pytest.mark.parametrize("train", SLOW_TRAINING)
@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_timm(name, train):
    timm = pytest.importorskip("timm")
    theirs = on_meta(timm.create_model, name)
    check_same(on_meta(name), theirs, torch.randn(4, 3, 107, 107), train)


@pytest.mark.parametrize("name", PARAMETERS)
def test_trains(name):
    options = {"aux_logits": False} if name == "inception_v3" else {}
    check_trains(on_meta(name, **options), torch.randn(4, 3, 107, 107))


def test_trains_with_auxiliary():
    """0.3 of the auxiliary loss in training, whose least input is 299x299; none in eval mode."""
    model = on_meta("inception_v3", num_classes=10)
    fill(model, values(model)).train()
    x, target = torch.randn(2, 3, 299, 299), torch.tensor([3, 4])
    output = model(x)
    assert isinstance(output, InceptionOutputs)
    cross_entropy = nn.functional.cross_entropy
    want = cross_entropy(output.logits, target) + 0.3 * cross_entropy(output.aux_logits, target)
    loss = model.loss(output, target)
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with pytest.raises(RuntimeError):
        model(x[..., :200, :200])
    with torch.no_grad():
        assert model.eval()(x[:1, :, :107, :107]).shape == (1, 10)
        assert model(x[0, :, :107, :107]).shape == (10,)


def test_initial_values():
    with fixed_seed(0):
        model = inception_v3(num_classes=10)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            std = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}.get(name, 0.1)
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
            assert layer.eps == 1e-3
