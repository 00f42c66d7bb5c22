"""Pre-activation residual networks and Wide ResNets, against the specification and timm."""

import pytest
import torch
from torch import nn

from fastcnn.models import get_model, list_models, resnetv2_18
from fastcnn.models.layers import record_calls
from fastcnn.models.resnetv2 import PreActBasic, PreActBottleneck, ResNetV2
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

# spec/architectures.md, 1.10
PARAMETERS = {
    "resnetv2_18": 11_687_720,
    "resnetv2_34": 21_795_880,
    "resnetv2_50": 25_549_352,
    "resnetv2_101": 44_541_480,
    "resnetv2_152": 60_185_128,
    "resnetv2_164": 1_703_258,
    "resnetv2_1001": 10_327_706,
    "wrn_28_10": 36_479_194,
    "wrn_16_8": 10_961_370,
    "wrn_40_4": 8_949_210,
}
TIMM = ["resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152"]
SMALL = ("resnetv2_18", "resnetv2_50", "resnetv2_164", "wrn_28_10", "wrn_40_4")


def timm(name):
    models = pytest.importorskip("timm", reason="compares with timm, which is not installed")
    with torch.device("meta"):
        return models.create_model(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert name in list_models()
    assert parameter_count(on_meta(name)) == PARAMETERS[name]


def test_parameters_for_a_hundred_classes():
    assert parameter_count(on_meta("wrn_28_10", num_classes=100)) == 36_536_884


def test_multiplications():
    assert multiplications("resnetv2_50", 224) == 4_089_184_256


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnetv2_18", 224, {"stem": (64, 56, 56), "stages.1": (128, 28, 28), "stages.3": (512, 7, 7)}),
        ("resnetv2_50", 224, {"stem": (64, 56, 56), "stages.1": (512, 28, 28), "stages.3": (2048, 7, 7)}),
        ("resnetv2_164", 32, {"stem": (16, 32, 32), "stages.1": (128, 16, 16), "stages.2": (256, 8, 8)}),
        ("wrn_28_10", 32, {"stem": (16, 32, 32), "stages.0": (160, 32, 32), "stages.2": (640, 8, 8)}),
    ],
)
def test_shapes(name, size, expected):
    assert output_shapes(name, size, expected) == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_example_batch(name):
    assert example_batch(name, 1)[0].shape[-1] == (224 if name in TIMM else 32)


@pytest.mark.parametrize("name", TIMM)
def test_timms_state_dict(name):
    assert_same_state_dict(name, timm(name))


@pytest.mark.parametrize(
    "name",
    ["resnetv2_18", "resnetv2_50", *(pytest.param(n, marks=pytest.mark.slow) for n in TIMM if n[-2:] not in "1850")],
)
def test_equals_timm(name):
    assert_same_logits(name, timm(name), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("basic", [True, False])
def test_trains_as_timm(basic):
    pytest.importorskip("timm", reason="compares with timm, which is not installed")
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2 as Peer

    channels, block = (96, 128, 128, 256), PreActBasic if basic else PreActBottleneck
    common = {"num_classes": 10, "bottle_ratio": 1.0 if basic else 0.25, "basic": basic}
    with torch.device("meta"):
        peer = Peer([1, 2, 1, 1], channels, conv_layer=create_conv2d, norm_layer=BatchNormAct2d, **common)
        ours = ResNetV2(block, (1, 2, 1, 1), channels, 10)
    assert_trains_alike(ours, peer, torch.randn(4, 3, 32, 32))


def test_trains():
    assert_trains(filled(on_meta("wrn_16_8"), torch.float64), torch.randn(2, 3, 9, 12).double())


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in PARAMETERS])
def test_gradients(name):
    assert_gradients(name, 32 if name in TIMM else 4, 1000 if name in TIMM else 10)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_164"])
def test_hooks_see_every_layer(name):
    model = filled(on_meta(name)).eval()
    x = torch.randn(2, 3, 32, 32)
    fused = model(x)
    with record_calls(model) as calls:
        # float32 either way; a residual network adds its blocks' rounding errors up
        assert relative_error(model(x), fused) < 1e-4
    seen = {call.name for call in calls}
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)} <= seen


@torch.no_grad()
@pytest.mark.parametrize("block", [PreActBasic, PreActBottleneck])
def test_block_without_branch_is_the_identity(block):
    """Spec, T21 and claim 74: with zero weights a pre-activation block gives exactly its input."""
    layer, x = block(16, 16, 1), torch.randn(2, 16, 7, 5)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()
    for training in (True, False):
        assert torch.equal(layer.train(training)(x), x)


@torch.no_grad()
def test_zero_init_last():
    model = resnetv2_18(zero_init_last=True)
    x = torch.randn(1, 64, 8, 8)
    assert torch.equal(model.stages[0](x), x)
    assert (model.head.fc.bias == 0).all()
    # 512,000 weights: their standard deviation is known to 0.1 %
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_dropout_between_the_convolutions():
    model = filled(on_meta("wrn_16_8", dropout=0.3)).train()
    block = model.stages[0].blocks[1]
    seen = []
    block.conv2.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = torch.randn(4, 128, 16, 16)
    block(x)
    dropped = (seen[0] == 0).float().mean().item()
    with torch.no_grad():
        block.drop.p = 0.0
        block(x)
    zero = (seen[1] == 0).float().mean().item()
    # of 131,072 elements those that the ReLU left: the share of zeros is known to 1 / (2 sqrt(131072)) = 0.14 %
    assert dropped == pytest.approx(zero + 0.3 * (1 - zero), abs=0.01)
    assert seen[0].max().item() == pytest.approx(seen[1].max().item() / 0.7, rel=0.2)


def test_rejects_unknown_stem():
    with pytest.raises(ValueError, match="expected stem to be 'imagenet' or 'cifar', but got 'deep'"):
        get_model("resnetv2_18", stem="deep")
