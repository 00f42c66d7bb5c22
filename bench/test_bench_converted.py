"""Other people's networks after fastcnn.convert_, against the same network as it was; in evaluation mode."""

import copy
from dataclasses import dataclass

import pytest
import torch

import fastcnn
from bench._rows import FORMATS, parametrize, rows

torchvision = pytest.importorskip("torchvision", reason="the networks are torchvision's")

# As convert_'s own check, of the largest output: what rounding in some 50 layers of float32 adds up to.
SAME_OUTPUT = 1e-3


@dataclass(frozen=True)
class ConvertedCase:
    """A classifier of torchvision.models and the size of its square RGB images."""

    name: str
    size: int = 224


NETWORKS = [
    *map(ConvertedCase, ("alexnet", "vgg11", "vgg16", "vgg19", "vgg11_bn", "vgg16_bn", "googlenet")),
    ConvertedCase("inception_v3", 299),
    *map(ConvertedCase, ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d")),
    *map(ConvertedCase, ("densenet121", "densenet161", "squeezenet1_0", "squeezenet1_1", "mobilenet_v2", "mnasnet1_0")),
]


@pytest.mark.network
@parametrize(rows(NETWORKS, (1, 16)), rows([ConvertedCase("resnet18", 64)]))
def test_converted(row, time_in_turns):
    torch.manual_seed(0)
    stock = torchvision.models.get_model(row.case.name, weights=None).eval()
    for module in stock.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    stock = stock.to(memory_format=FORMATS[row.layout])
    fast = copy.deepcopy(stock)
    x = torch.randn(row.batch, 3, row.case.size, row.case.size).to(memory_format=FORMATS[row.layout])
    report = fastcnn.convert_(fast, example=x[:1])
    with torch.no_grad():
        want, got = stock(x), fast(x)
        found = float((got - want).abs().max() / want.abs().max())
        if not found <= SAME_OUTPUT:
            pytest.fail(f"not timed, the converted network differs: {row}: {found:.1e}", pytrace=False)
        more = {"difference": found, "replaced": report.replaced, "modules": len(report.modules)}
        time_in_turns(lambda: (fast(x),), lambda: (stock(x),), row, "converted network", more, checked=(got,))
