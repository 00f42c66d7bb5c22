"""The figures behind the claims: spec, section 4, A7 to A10 and A12."""

import math

import pytest
import torch

from fastcnn.analysis import measure

CHAIN = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")


def test_vgg16s_memory():
    """A7: 60.95 MB, 58.13 MiB."""
    figures = measure.summary("vgg16")
    assert figures.activation_bytes == 60_950_432
    assert round(figures.activation_bytes / 2**20, 2) == 58.13
    assert sum(layer.bytes for layer in figures.layers if not layer.in_place) + 4 * 150_528 == 60_950_432
    data = figures.to_dict()
    assert data["activation_bytes"] == 60_950_432
    assert data["flops"] == 2 * 15_470_264_320
    assert sum(layer["flops"] for layer in data["layers"]) == data["flops"]


@pytest.mark.parametrize(
    ("module", "macs", "weights"),
    [
        (measure.naive_inception, [25_690_112, 346_816_512, 481_689_600], 1_089_536),
        (
            measure.bottleneck_inception,
            [25_690_112, 12_845_056, 86_704_128, 12_845_056, 120_422_400, 12_845_056],
            346_112,
        ),
    ],
)
def test_inception(module, macs, weights):
    """A8."""
    assert measure.inception_macs(module()) == macs
    assert measure.weights(module()) == weights


def test_alexnets_receptive_fields():
    """A9: by the formula and by the gradient's support."""
    layers = measure.layers("alexnet")
    assert [layers[name].receptive_field for name in CHAIN] == [11, 19, 51, 67, 99, 131, 163, 195]
    assert [measure.receptive_field("alexnet", name) for name in CHAIN] == [11, 19, 51, 67, 99, 131, 163, 195]


def test_vgg16s_receptive_field():
    """A9."""
    assert measure.layers("vgg16")["features.30"].receptive_field == 212
    assert measure.receptive_field("vgg16", "features.30") == 212


@pytest.mark.parametrize("name", ["zfnet", "alexnet_owt", "vgg11", "nin_imagenet"])
def test_receptive_fields_by_gradient(name):
    """Every layer whose field, in the middle, lies within the image."""
    layers = [
        layer
        for layer in measure.summary(name).layers
        if layer.type in ("Conv2d", "MaxPool2d") and layer.receptive_field and layer.receptive_field < 120
    ]
    assert len(layers) >= 5
    for layer in layers:
        assert measure.receptive_field(name, layer.name) == layer.receptive_field, layer.name


def test_gradient_support_sees_holes_and_strides():
    """Dilation 2 spreads three taps over five rows, and a stride spreads those behind it."""
    plain, dilated = torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 3, dilation=2)
    strided = torch.nn.Conv2d(1, 1, 3, stride=2)
    twins = [measure._geometry(layer) for layer in (dilated, strided, plain)]
    assert measure.gradient_support(torch.nn.Sequential(twins[0]), 15) == 5
    assert measure.gradient_support(torch.nn.Sequential(*twins[1:]), 31) == 3 + 2 * 2


def test_receptive_field_of_an_unknown_layer():
    with pytest.raises(ValueError, match="expected last to be a layer of alexnet, but got 'conv6'"):
        measure.receptive_field("alexnet", "conv6")


def test_parameter_shares():
    """A12: fc6 61.9 %, fc7 27.5 %, conv3 1.45 %."""
    shares = measure.parameter_shares("alexnet")
    assert [round(100 * shares[name], digits) for name, digits in (("fc6", 1), ("fc7", 1), ("conv3", 2))] == [
        61.9,
        27.5,
        1.45,
    ]
    assert math.isclose(sum(shares.values()), 1)


def test_lenets_connections():
    """LeNet-5's paper counts 122,304, 5,880, 151,600, 2,000, 48,120 and 10,164; the RBF layer has 840."""
    assert measure.connections("lenet5") == 122_304 + 5_880 + 151_600 + 2_000 + 48_120 + 10_164 + 840
