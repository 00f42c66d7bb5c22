"""Network in Network and SqueezeNet: the spec's numbers, torchvision's SqueezeNets, initial values."""

import pytest
import torch
from torch import nn

from fastcnn import nn as fnn
from fastcnn.models import get_model
from fastcnn.models._blocks import FusedSequential
from fastcnn.models.layers import record_calls
from fastcnn.models.verify import fixed_seed, relative_error, verify
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

# spec/architectures.md 1.4 and 1.11
PARAMETERS = [
    ("nin_seed", 100, 81_960),
    ("nin_cifar", 10, 966_986),
    ("nin_cifar", 100, 984_356),
    ("nin_imagenet", 1000, 7_595_176),
    ("squeezenet1_0", 1000, 1_248_424),
    ("squeezenet1_1", 1000, 1_235_496),
]
SIZE = {"nin_seed": 32, "nin_cifar": 32, "nin_imagenet": 224, "squeezenet1_0": 224, "squeezenet1_1": 224}
# Of the layers that change the size, in order.
SHAPES = {
    "nin_seed": [(16, 30, 30), (64, 28, 28), (100, 26, 26)],
    "nin_cifar": [(192, 32, 32), (96, 16, 16), (192, 8, 8)],
    "nin_imagenet": [(96, 54, 54), (96, 27, 27), (256, 13, 13), (384, 6, 6)],
    "squeezenet1_0": [(96, 109, 109), (96, 54, 54), (256, 27, 27), (512, 13, 13)],
    "squeezenet1_1": [(64, 111, 111), (64, 55, 55), (128, 27, 27), (256, 13, 13)],
}


@pytest.mark.parametrize(("name", "num_classes", "count"), PARAMETERS)
def test_parameters(name, num_classes, count):
    assert parameter_count(on_meta(name, num_classes=num_classes)) == count
    if (name, num_classes) != ("nin_cifar", 100):
        assert parameter_count(on_meta(name)) == count  # the default


def test_nin_seed_layers():
    counts = [parameter_count(layer) for layer in on_meta("nin_seed").features]
    assert counts == [448, 272, 9_280, 4_160, 57_700, 10_100]  # claim 65


def test_multiplications():
    assert multiplications(on_meta("squeezenet1_1"), 3, 224, 224) == 349_151_936


def test_alexnet_has_50_times_the_parameters():
    alexnet = parameter_count(on_meta("alexnet"))  # claim 37
    assert alexnet / parameter_count(on_meta("squeezenet1_0")) == pytest.approx(48.8, abs=0.05)
    assert alexnet / parameter_count(on_meta("squeezenet1_1")) == pytest.approx(49.3, abs=0.05)
    assert 4 * parameter_count(on_meta("squeezenet1_0")) == pytest.approx(4.99e6, abs=0.01e6)  # claim 38: in float32


@pytest.mark.parametrize("name", SIZE)
def test_shapes(name):
    model = on_meta(name, num_classes=7)
    shapes = output_shapes(model, 3, SIZE[name], SIZE[name])
    sizes = []
    for i in range(len(model.features)):
        shape = shapes.get(f"features.{i}")
        if shape and (not sizes or shape[1:] != sizes[-1][1:]):
            sizes.append(shape)
    assert sizes == SHAPES[name]
    assert shapes[""] == (7,)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_torchvision(name, train):
    torchvision = pytest.importorskip("torchvision")
    check_same(on_meta(name), on_meta(getattr(torchvision.models, name)), torch.randn(2, 3, 97, 111), train)


@pytest.mark.parametrize("name", SIZE)
def test_trains(name):
    size = min(SIZE[name], 128)
    check_trains(on_meta(name), torch.randn(2, 3, size, size))


@torch.no_grad()
@pytest.mark.parametrize("name", ["nin_seed", "nin_cifar", "nin_imagenet"])
def test_nin_order(name):
    """Every convolution is rectified, but nin_seed's last one; Caffe's networks rectify that, too."""
    model = on_meta(name, num_classes=7)
    fill(model, values(model)).eval()
    x = torch.randn(2, 3, SIZE[name], SIZE[name])
    want = x
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        want = nn.functional.conv2d(want, layer.weight, layer.bias, layer.stride, layer.padding)
        want = want if name == "nin_seed" and i == len(convolutions) - 1 else want.relu()
        pooled = (name != "nin_seed") and i % 3 == 2 and i < len(convolutions) - 1
        if pooled:
            pool = nn.functional.avg_pool2d if name == "nin_cifar" and i == 5 else nn.functional.max_pool2d
            want = pool(want, 3, 2, ceil_mode=True)
    want = want.mean((2, 3))
    assert relative_error(model(x), want) < 1e-5
    assert relative_error(model(x[0]), want[0]) < 1e-5  # no batch


def test_initial_values():
    with fixed_seed(0):
        nin, squeezenet = get_model("nin_cifar"), get_model("squeezenet1_1")
    for layer in nin.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.05, rel=0.06)
            assert not layer.bias.any()
    for layer in squeezenet.modules():
        if isinstance(layer, nn.Conv2d):
            bound = (6 / layer.weight[0].numel()) ** 0.5
            if layer is squeezenet.classifier[1]:
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            else:
                assert 0.95 * bound < layer.weight.abs().max().item() <= bound
            assert not layer.bias.any()


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 64), ("nin_seed", 16)])
def test_verify(name, size):
    model = on_meta(name, num_classes=10)
    fill(model, values(model))
    result = verify(model, torch.randn(2, 3, size, size), torch.tensor([0, 3]), name=name)
    assert result.passed, result.worst


def test_rejects():
    model = on_meta("squeezenet1_0")
    fill(model, values(model))
    for shape in ((1, 1, 64, 64), (1, 3, 8, 8), (64, 64)):
        with pytest.raises(RuntimeError):
            model(torch.zeros(shape))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fused_layers_are_the_modules(batch_norm):
    """The same result where hooks have every module called, in both modes; and a replaced module is called."""
    norm = [nn.BatchNorm2d(8)] if batch_norm else []
    model = FusedSequential(fnn.Conv2d(3, 8, 3), *norm, nn.ReLU(), fnn.Conv2d(8, 4, 1), fnn.MaxPool2d(2))
    x = torch.randn(2, 3, 9, 9)
    for train in (True, False):
        model.train(train)
        state = {key: t.clone() for key, t in model.state_dict().items()}
        fused = model(x)
        trained = {key: t.clone() for key, t in model.state_dict().items()}
        model.load_state_dict(state)
        with record_calls(model) as calls:
            torch.testing.assert_close(model(x), fused)
        assert [call.name for call in calls] == [str(i) for i in range(len(model))]
        for key, t in model.state_dict().items():
            torch.testing.assert_close(t, trained[key])
    model[0].__class__ = Doubled
    want = (2 * model[0]._conv_forward(x, model[0].weight, None)) + 2 * model[0].bias[:, None, None]
    for layer in list(model)[1:]:
        want = layer(want)
    torch.testing.assert_close(model(x), want)
