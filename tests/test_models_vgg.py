"""VGG: the spec's numbers, torchvision's networks, the paper's initial values."""

import math

import pytest
import torch
from torch import nn

from fastcnn.models import VGG, vgg11
from fastcnn.models.verify import fixed_seed, relative_error
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

# spec/architectures.md 1.5
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_1": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
MULTIPLICATIONS = {
    "vgg11": 7_609_090_048,
    "vgg13": 11_308_466_176,
    "vgg16": 15_470_264_320,
    "vgg19": 19_632_062_464,
}
TORCHVISION = [f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameter_count(on_meta(name)) == PARAMETERS[name]
    assert parameter_count(on_meta(name, num_classes=10)) == PARAMETERS[name] - 990 * 4097


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_multiplications(name):
    assert multiplications(on_meta(name), 3, 224, 224) == MULTIPLICATIONS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes(name):
    """Sizes 112, 56, 28, 14, 7 after the poolings, and 25,088 features."""
    model = on_meta(name)
    shapes = output_shapes(model, 3, 224, 224)
    pools = [shapes[key] for key, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert pools == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert shapes[""] == (1000,)
    depth = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())
    assert depth == int(name[3:5])  # A7, claim 21


def test_vgg16_claims():
    model = on_meta("vgg16")
    weights = {name: p.numel() for name, p in model.named_parameters() if name.endswith("weight")}
    assert sum(weights.values()) == 138_344_128  # claim 8
    # claim 7: of each stage, and of each linear layer
    distinct = [
        1_728,
        36_864,
        73_728,
        147_456,
        294_912,
        589_824,
        1_179_648,
        2_359_296,
        102_760_448,
        16_777_216,
        4_096_000,
    ]
    assert list(dict.fromkeys(weights.values())) == distinct
    shapes = output_shapes(model, 3, 224, 224)
    layers = {
        name: shapes[name] for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    # A7: conv and linear outputs; and with the input and the poolings
    assert sum(math.prod(shape) for shape in layers.values()) == 13_556_712
    pools = [math.prod(shapes[name]) for name, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert 3 * 224 * 224 + 13_556_712 + sum(pools) == 15_237_608


def test_vgg16_1():
    shapes = {name: tuple(p.shape) for name, p in on_meta("vgg16_1").named_parameters()}
    assert shapes.keys() == {name for name, _ in on_meta("vgg16").named_parameters()}
    small = {name: shape[:2] for name, shape in shapes.items() if shape[2:] == (1, 1)}
    assert small == {
        "features.14.weight": (256, 256),
        "features.21.weight": (512, 512),
        "features.28.weight": (512, 512),
    }


def narrow(model):
    """The network with 16 hidden features, which leave most of the test's time to the convolutions."""
    with torch.device("meta"):
        for i, (inputs, outputs) in {0: (25088, 16), 3: (16, 16), 6: (16, 1000)}.items():
            model.classifier[i] = nn.Linear(inputs, outputs)
    return model


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    torchvision = pytest.importorskip("torchvision")
    theirs = on_meta(getattr(torchvision.models, name))
    ours = on_meta(name)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, 3, 96, 96)  # 3x3 maps at last, from which the pooling to 7x7 repeats
    check_same(narrow(ours), narrow(theirs), x, train=False)
    if name.endswith("_bn"):
        check_same(ours, theirs, x, train=True)


def test_torchvision_whole():
    torchvision = pytest.importorskip("torchvision")
    check_same(on_meta("vgg11"), on_meta(torchvision.models.vgg11), torch.randn(1, 3, 64, 64), train=False)


@pytest.mark.parametrize("name", PARAMETERS)
def test_trains(name):
    check_trains(narrow(on_meta(name)), torch.randn(3, 3, 64, 64))


@torch.no_grad()
def test_lrn():
    """Normalization after the first ReLU, everything else as without."""
    plain, normalised = on_meta("vgg11"), on_meta("vgg11_lrn")
    fill(plain, values(plain))
    fill(normalised, plain.state_dict())
    x = torch.randn(1, 3, 64, 64) * 30
    want = nn.functional.local_response_norm(plain.features[0](x).relu(), 5, 5e-4, 0.75, 2.0)
    want = plain.features[2:](want)
    assert relative_error(normalised.eval().features(x), want) < 1e-5
    assert relative_error(plain.features(x), want) > 1e-3


def test_initial_values():
    with fixed_seed(0):
        small = vgg11(num_classes=10)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.06)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert not layer.bias.any()
    with fixed_seed(0):
        small._initialise("paper")
    for layer in small.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.weight.std().item() == pytest.approx(0.1, rel=0.06)  # a variance of 0.01


def test_initialise_from():
    """T19: A's first four convolutions by stage, and the linear layers, bit by bit; the others stay."""
    source, model = on_meta("vgg11"), on_meta("vgg16")
    fill(source, values(source))
    fill(model, {key: torch.zeros(t.shape) for key, t in model.state_dict().items()})
    model.initialise_from(source)
    copies = {0: 0, 5: 3, 10: 6, 12: 8}  # vgg16's conv1_1, conv2_1, conv3_1, conv3_2 and vgg11's convolutions
    for i, layer in enumerate(model.features):
        if i in copies:
            assert torch.equal(layer.weight, source.features[copies[i]].weight)
            assert torch.equal(layer.bias, source.features[copies[i]].bias)
        elif isinstance(layer, nn.Conv2d):
            assert not layer.weight.any()
    for i in (0, 3, 6):
        assert torch.equal(model.classifier[i].weight, source.classifier[i].weight)
    other = on_meta("vgg11", num_classes=7)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.initialise_from(fill(other, values(other)))


def test_rejects():
    with pytest.raises(ValueError, match="expected configuration to be one of A, B, C, D, E, but got 'F'"):
        VGG("F")
    with pytest.raises(ValueError, match="expected init to be 'kaiming' or 'paper', but got 'xavier'"):
        vgg11(init="xavier")
    model = on_meta("vgg11")
    for shape in ((1, 1, 64, 64), (1, 3, 1, 64), (3, 64, 64)):
        with pytest.raises(RuntimeError):
            fill(model, values(model))(torch.zeros(shape))
