"""ZFNet: the spec's numbers, and the networks against their layers in order."""

import pytest
import torch
from torch import nn

from fastcnn.models import zfnet
from fastcnn.models.verify import fixed_seed, relative_error
from tests.cases.networks import (
    check_trains,
    fill,
    multiplications,
    on_meta,
    output_shapes,
    parameter_count,
    values,
)

# spec/architectures.md 1.3
PARAMETERS = {"zfnet": 62_357_608, "zfnet_cs231n": 107_627_624, "zfnet512": 87_250_536}
LAYERS = {
    "zfnet": {
        "conv1": 14_208,
        "conv2": 614_656,
        "conv3": 885_120,
        "conv4": 1_327_488,
        "conv5": 884_992,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    },
    "zfnet_cs231n": {
        "conv1": 14_208,
        "conv2": 614_656,
        "conv3": 1_180_160,
        "conv4": 4_719_616,
        "conv5": 4_719_104,
        "fc6": 75_501_568,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    },
}
MULTIPLICATIONS = {"zfnet": 1_168_032_896, "zfnet_cs231n": 2_476_704_896}
WIDTHS = {"zfnet": (384, 384, 256), "zfnet_cs231n": (512, 1024, 512), "zfnet512": (512, 512, 512)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameter_count(on_meta(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_layer_parameters(name):
    counts = {child: parameter_count(layer) for child, layer in on_meta(name).named_children()}
    assert {child: count for child, count in counts.items() if count} == LAYERS[name]


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_multiplications(name):
    assert multiplications(on_meta(name), 3, 224, 224) == MULTIPLICATIONS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes(name):
    """Claim 62: 110, 55, 26, 13, 6."""
    shapes = output_shapes(on_meta(name, num_classes=7), 3, 224, 224)
    third, fourth, fifth = WIDTHS[name]
    assert shapes["conv1"] == (96, 110, 110)
    assert shapes["pool1"] == (96, 55, 55)
    assert shapes["conv2"] == (256, 26, 26)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == (third, 13, 13)
    assert shapes["conv4"] == (fourth, 13, 13)
    assert shapes["conv5"] == (fifth, 13, 13)
    assert shapes["pool5"] == (fifth, 6, 6)
    assert shapes["fc6"] == (4096,)
    assert shapes["fc7"] == ((1024,) if name == "zfnet512" else (4096,))
    assert shapes[""] == (7,)


@torch.no_grad()
def test_order():
    """Convolution, ReLU, pooling, normalization with the paper's alpha, which is 5e-4 / 5."""
    model = on_meta("zfnet", num_classes=3)
    fill(model, values(model)).eval()
    x = torch.randn(1, 3, 224, 224) * 30
    want = x
    for name in ("conv1", "conv2"):
        want = nn.functional.max_pool2d(getattr(model, name)(want).relu(), 3, 2, ceil_mode=True)
        want = nn.functional.local_response_norm(want, 5, 5e-4, 0.75, 2.0)
    for name in ("conv3", "conv4", "conv5"):
        want = getattr(model, name)(want).relu()
    want = nn.functional.max_pool2d(want, 3, 2).flatten(1)
    for name in ("fc6", "fc7"):
        want = getattr(model, name)(want).relu()
    assert relative_error(model(x), model.fc8(want)) < 1e-5
    for size in (180, 300):
        with pytest.raises(RuntimeError, match="expected 224x224 input"):
            model(torch.zeros(1, 3, size, size))
    with pytest.raises(RuntimeError, match=r"expected \(N, 3, H, W\) input, but got input of size \(3, 224, 224\)"):
        model(x[0])


@pytest.mark.parametrize("name", PARAMETERS)
def test_trains(name):
    model = on_meta(name)
    with torch.device("meta"):  # narrow, to leave the test's time to the convolutions
        model.fc6, model.fc7, model.fc8 = nn.Linear(WIDTHS[name][2] * 36, 16), nn.Linear(16, 16), nn.Linear(16, 10)
    check_trains(model, torch.randn(2, 3, 224, 224))


def test_initial_values_and_radius():
    with fixed_seed(0):
        model = zfnet(num_classes=10)
    for layer in model.children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert not layer.bias.any()
    weight = model.conv1.weight.data
    weight[:40] *= 30  # to a root mean square of 0.3
    before = weight.clone()
    model.renormalise()
    rms = weight.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms[:40], torch.full((40,), 0.1))
    torch.testing.assert_close(weight[:40] / rms[:40, None, None, None] * 0.1, weight[:40])
    assert torch.equal(weight[40:], before[40:])
    weight[0] = 0
    model.renormalise()
    assert not weight[0].any()
