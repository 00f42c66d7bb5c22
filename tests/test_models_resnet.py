"""ResNet, Wide ResNet, ResNeXt and the plain nets for ImageNet, against the specification and torchvision."""

import pytest
import torch
from torch import nn

from fastcnn.models import get_model, list_models, resnet, resnet18, resnet50
from fastcnn.models.layers import record_calls
from fastcnn.models.verify import relative_error
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

# parameters and multiplications: spec/architectures.md, 1.10
NETWORKS = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "plain18": (11_515_688, None),
    "plain34": (21_623_848, None),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x4d": (44_177_704, None),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
}
SMALL = ("resnet18", "resnet50", "plain18", "plain34", "resnext50_32x4d")
TORCHVISION = [name for name in NETWORKS if not name.startswith("plain") and name != "resnext101_32x4d"]


def torchvision(name):
    models = pytest.importorskip("torchvision.models", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):
        return models.get_model(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(name):
    parameters, macs = NETWORKS[name]
    assert name in list_models()
    assert parameter_count(on_meta(name)) == parameters
    if macs:
        assert multiplications(name, 224) == macs


@pytest.mark.parametrize(("name", "factor"), [("resnet34", 1), ("plain18", 1), ("resnet50", 4), ("resnext50_32x4d", 4)])
def test_shapes(name, factor):
    """Spec, 1.10: the stem to 56x56, then 64, 128, 256, 512 maps, four times that from bottlenecks."""
    shapes = output_shapes(name, 224, ["maxpool", "layer1", "layer2", "layer3", "layer4", "fc"])
    assert shapes == {
        "maxpool": (64, 56, 56),
        "layer1": (64 * factor, 56, 56),
        "layer2": (128 * factor, 28, 28),
        "layer3": (256 * factor, 14, 14),
        "layer4": (512 * factor, 7, 7),
        "fc": (1000,),
    }


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_state_dict(name):
    assert_same_state_dict(name, torchvision(name))


@pytest.mark.parametrize(
    "name", [n if "101" not in n and "152" not in n else pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION]
)
def test_equals_torchvision(name):
    assert_same_logits(name, torchvision(name), torch.randn(2, 3, 64, 64))


@pytest.mark.slow
def test_equals_timm():
    timm = pytest.importorskip("timm", reason="compares with timm, which is not installed")
    with torch.device("meta"):
        peer = timm.create_model("resnext101_32x4d")
    assert_same_state_dict("resnext101_32x4d", peer)
    assert_same_logits("resnext101_32x4d", peer, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("BasicBlock", {}),
        ("Bottleneck", {}),
        ("Bottleneck", {"groups": 8, "width_per_group": 4}),
    ],
)
def test_trains_as_torchvision(block, options):
    peers = pytest.importorskip("torchvision.models.resnet", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):
        ours = resnet.ResNet(getattr(resnet, block), (1, 2, 1, 1), 10, **options)
        peer = peers.ResNet(getattr(peers, block), [1, 2, 1, 1], 10, **options)
    assert_trains_alike(ours, peer, torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_gradients(name):
    assert_gradients(name, 32, 1000)


@pytest.mark.parametrize(("name", "options"), [("resnet18", {"shortcut": "none"}), ("resnet18", {"shortcut": "pad"})])
def test_trains(name, options):
    model = filled(on_meta(name, num_classes=7, **options), torch.float64)
    assert_trains(model, torch.randn(3, 3, 33, 40).double(), classes=7)


@torch.no_grad()
def test_hooks_see_every_layer():
    """With hooks on its layers a network runs them one by one, to the same logits; the ReLU's own hook counts, too."""
    model = filled(on_meta("resnet50")).eval()
    x = torch.randn(2, 3, 64, 64)
    fused = model(x)
    with record_calls(model) as calls:
        assert relative_error(model(x), fused) < 1e-5
    # 53 convolutions with a normalization each, 49 ReLUs; pooling twice and the classifier
    assert len(calls) == 2 * 53 + 49 + 3
    seen = []
    model.layer1[0].relu.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    assert len(seen) == 3


@torch.no_grad()
def test_replaced_activation():
    """A ReLU that somebody replaced is what runs."""
    model = filled(on_meta("resnet18")).eval()
    block, x = model.layer1[0], torch.randn(1, 64, 9, 9)
    block.relu = nn.SiLU()
    y = block.relu(block.bn1(block.conv1(x)))
    assert relative_error(block(x), block.relu(block.bn2(block.conv2(y)) + x)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 75, 224])
def test_other_sizes(size):
    assert resnet18(num_classes=5).eval()(torch.randn(1, 3, size, size + 1)).shape == (1, 5)


def test_stride_in_the_first_convolution():
    """Spec, 1.10 and 7.8: the paper's placement, with as many parameters."""
    model = on_meta("resnet50", stride_in_1x1=True)
    assert parameter_count(model) == 25_557_032
    block = model.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    block = on_meta("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@torch.no_grad()
def test_zero_initialised_block_is_the_identity():
    """Spec, T21: after the sum there is a ReLU, which changes nothing where the input has been through one."""
    for model in (resnet18(zero_init_residual=True), resnet50(zero_init_residual=True)):
        channels = model.layer1[1].conv1.in_channels
        x = torch.randn(2, channels, 8, 8)
        assert torch.equal(model.layer1[1].eval()(x), x.relu())
        assert torch.equal(model.layer1[1].train()(x), x.relu())


def test_initial_values():
    model = resnet18()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            # the least of the convolutions has 8,192 weights: 1/sqrt(2 * 8192) is 0.8 %
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.04)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@torch.no_grad()
def test_padding_shortcut():
    """Option A: a subsampled identity, with zeros for the new channels."""
    x = torch.randn(2, 64, 7, 7)
    shortcut = on_meta("resnet18", shortcut="pad").layer2[0].downsample(x)
    assert shortcut.shape == (2, 128, 4, 4)
    assert torch.equal(shortcut[:, :64], x[..., ::2, ::2])
    assert (shortcut[:, 64:] == 0).all()


def test_rejects_unknown_shortcut():
    with pytest.raises(ValueError, match="expected shortcut to be one of projection, pad, none, but got 'conv'"):
        get_model("resnet18", shortcut="conv")
