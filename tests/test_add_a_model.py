"""docs/add-a-model.md: a network added as it says, and whether what it names is there."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastcnn
from fastcnn.cli import app
from fastcnn.models import VGG, _registry, get_model, list_models, vgg11, vgg11_lrn
from fastcnn.models._registry import Weights, load_weights, register_model
from fastcnn.models.verify import _SHAPES, example_batch
from fastcnn.nn.conv_bn import conv_bn_relu

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add-a-model.md"


class ToyNet(nn.Module):
    """Input: (N, 3, 48, 48). Output: (N, num_classes) logits."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = fastcnn.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.pool = fastcnn.nn.MaxPool2d(3, 2)
        self.conv2 = fastcnn.nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        x = conv_bn_relu(self.conv1, self.bn1, x, activation=self.relu)  # (N, 16, 48, 48)
        x = self.pool(x)  # (N, 16, 23, 23)
        x = conv_bn_relu(self.conv2, self.bn2, x, x, self.relu)  # (N, 16, 23, 23)
        return self.fc(x.mean((-2, -1)))


@pytest.fixture
def toynet(monkeypatch):
    monkeypatch.setattr(_registry, "_builders", dict(_registry._builders))
    monkeypatch.setitem(_SHAPES, "toynet", (3, 48, 48))

    @register_model
    def toynet(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> ToyNet:
        model = ToyNet(num_classes, **kwargs)
        load_weights(model, weights)
        return model

    return toynet


def run(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_know_it(toynet):
    data = json.loads(run("summary", "toynet", "--json"))
    assert data["parameters"] == 2_970
    assert [layer["output"] for layer in data["layers"] if layer["name"] == "pool"] == [[16, 23, 23]]
    assert json.loads(run("verify", "toynet", "--json"))["passed"]
    assert "conv2: conv2d" in run("explain", "toynet")
    assert json.loads(run("bench", "toynet", "--batch", "1", "--runs", "1", "--json"))["results"]


def test_targets_are_among_its_classes(toynet):
    """Though its input is not CIFAR's."""
    assert example_batch("toynet", 200)[1].max() == 9
    assert example_batch("nin_seed", 2000)[1].max() == 99
    assert example_batch("vgg11", 2)[1].max() > 99


def test_weights_and_classes(toynet):
    assert "toynet" in list_models()
    trained = get_model("toynet", num_classes=4)
    loaded = get_model("toynet", num_classes=4, weights=trained.state_dict())
    assert torch.equal(loaded.fc.weight, trained.fc.weight)


@pytest.mark.parametrize("name", list_models())
def test_the_page_tells_how_every_model_is_made(name):
    """Each is a function of the package's own name, and takes the page's arguments."""
    models = importlib.import_module("fastcnn.models")
    assert getattr(models, name) is _registry._builders[name]
    assert name in models.__all__
    with torch.device("meta"):
        model = get_model(name, num_classes=10, weights=None)
    assert type(model).__name__ in models.__all__


def test_what_the_page_names_is_there():
    if not PAGE.exists():
        pytest.skip("docs are not part of an installation")
    text = PAGE.read_text()
    paths = set(re.findall(r"`((?:fastcnn|tests)/[\w/.]+)`", text))
    assert len(paths) >= 6
    assert not [path for path in paths if not (ROOT / path).exists()]
    for path, names in {
        "fastcnn/nn/conv_bn.py": ["conv_bn_relu"],
        "fastcnn/models/_blocks.py": ["conv_relu", "FusedSequential"],
        "fastcnn/models/_registry.py": ["Weights", "load_weights", "register_model"],
        "fastcnn/models/vgg.py": ["vgg11", "vgg11_lrn"],
    }.items():
        assert all(hasattr(importlib.import_module(path[:-3].replace("/", ".")), name) for name in names)
    assert len(text.splitlines()) < 60


def test_vgg11_and_vgg11_lrn_differ_where_the_page_says():
    with torch.device("meta"):
        plain, normalized = vgg11(), vgg11_lrn()
    assert isinstance(plain, VGG)
    assert list(plain.state_dict()) == list(normalized.state_dict())
    differing = [i for i, (a, b) in enumerate(zip(plain.features, normalized.features)) if repr(a) != repr(b)]
    assert differing == [1]
    assert isinstance(plain.features[1], nn.ReLU)
    assert isinstance(normalized.features[1], fastcnn.nn.LocalResponseNorm)
    assert normalized.features[1].activation == "relu"
    assert repr(plain.classifier) == repr(normalized.classifier)
