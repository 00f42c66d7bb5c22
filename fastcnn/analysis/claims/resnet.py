"""Residual networks; depths and outputs of all of them."""

import torch
from torch import nn

from fastcnn.models import get_model
from fastcnn.models.resnet import BasicBlock, Bottleneck
from fastcnn.models.resnetv2 import PreActBasic
from fastcnn.models.verify import fixed_seed

from .. import measure
from .._claim import Values, Verdict, claim


@claim(
    17,
    "Of the residual networks for ImageNet, those deeper than 50 layers are built of bottlenecks.",
    Verdict.WRONG,
    {"depths with bottlenecks": (101, 152)},
    {"depths with bottlenecks": (50, 101, 152)},
    remark="ResNet-50 is, too",
)
def depths_with_bottlenecks() -> Values:
    names = {depth: f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
    return {
        "depths with bottlenecks": tuple(
            depth
            for depth, name in names.items()
            if any(isinstance(module, Bottleneck) for module in measure.network(name).modules())
        )
    }


@claim(
    18,
    "GoogLeNet and the residual networks have no fully connected layer.",
    Verdict.WRONG,
    {"linear layers of GoogLeNet": 0, "linear layers of ResNet-50": 0},
    {
        "linear layers of GoogLeNet": 1,
        "their parameters": 1_025_000,
        "linear layers of ResNet-50": 1,
        "their parameters, ResNet-50": 2_049_000,
    },
    remark="one, the classifier; none before it",
)
def fully_connected_layers() -> Values:
    def linear(name: str, **options) -> list[nn.Linear]:
        return [m for m in measure.network(name, **options).modules() if isinstance(m, nn.Linear)]

    googlenet, resnet50 = linear("googlenet", aux_logits=False), linear("resnet50")
    return {
        "linear layers of GoogLeNet": len(googlenet),
        "their parameters": sum(map(measure.parameters, googlenet)),
        "linear layers of ResNet-50": len(resnet50),
        "their parameters, ResNet-50": sum(map(measure.parameters, resnet50)),
    }


@claim(
    33,
    "The deepest ResNet for ImageNet has 152 layers, GoogLeNet 22, VGG 16 to 19, AlexNet 8.",
    Verdict.EXACT,
    {"ResNet-152": 152, "GoogLeNet": 22, "VGG": (16, 19), "AlexNet": 8},
    remark="convolutions and linear layers on the longest path",
)
def depths() -> Values:
    return {
        "ResNet-152": measure.summary("resnet152").depth,
        "GoogLeNet": measure.summary("googlenet").depth,
        "VGG": (measure.summary("vgg16").depth, measure.summary("vgg19").depth),
        "AlexNet": measure.summary("alexnet").depth,
    }


@claim(
    34,
    "A network's output for an image is a one-hot vector of the classes.",
    Verdict.WRONG,
    {"classes that are not 0": 1},
    {"classes that are not 0": 1000, "sum": 1.0},
    remark="a softmax gives each class a probability; only labels are one-hot",
)
@torch.no_grad()
def probabilities() -> Values:
    with fixed_seed(0):
        model = get_model("squeezenet1_1").eval().double()
        output = model(torch.rand(1, 3, 64, 64, dtype=torch.float64)).softmax(-1)
    return {"classes that are not 0": int((output > 0).sum()), "sum": round(output.sum().item(), 9)}


@claim(
    74,
    "A residual block whose weights are zero is the identity.",
    Verdict.EXACT,
    {"largest difference from x, pre-activation": 0.0},
    {"largest difference from max(0, x), original": 0.0, "original block is the identity": False},
    remark="the pre-activation block; the original one is max(0, x), for the ReLU follows the sum",
)
@torch.no_grad()
def blocks_without_weights() -> Values:
    x = torch.linspace(-1, 1, 4 * 6 * 6, dtype=torch.float64).view(1, 4, 6, 6)
    outputs = []
    for block in (PreActBasic(4, 4, 1), BasicBlock(4, 4)):
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
        outputs.append(block.double().eval()(x))
    pre, original = outputs
    return {
        "largest difference from x, pre-activation": (pre - x).abs().max().item(),
        "largest difference from max(0, x), original": (original - x.relu()).abs().max().item(),
        "original block is the identity": torch.equal(original, x),
    }
