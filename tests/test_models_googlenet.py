"""GoogLeNet, torchvision's GoogLeNet and BN-Inception: the spec's numbers, torchvision's network, auxiliary losses."""

import pytest
import torch
from torch import nn

from fastcnn.models import googlenet
from fastcnn.models._blocks import ConvReLU2d
from fastcnn.models.googlenet import Inception
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

# spec/architectures.md 1.6: output channels and parameters of each module
MODULES = {
    "3a": (256, 163_696),
    "3b": (480, 388_736),
    "4a": (512, 376_176),
    "4b": (512, 449_160),
    "4c": (512, 510_104),
    "4d": (528, 605_376),
    "4e": (832, 868_352),
    "5a": (832, 1_043_456),
    "5b": (1024, 1_444_080),
}
SIZES = {"3": 28, "4": 14, "5": 7}
# 1.7: output channels, and the size after each module
BN_INCEPTION = {
    "3a": (256, 28),
    "3b": (320, 28),
    "3c": (576, 14),
    "4a": (576, 14),
    "4b": (576, 14),
    "4c": (576, 14),
    "4d": (576, 14),
    "4e": (1024, 7),
    "5a": (1024, 7),
    "5b": (1024, 7),
}


def test_parameters():
    model = on_meta("googlenet")
    for name, (_, count) in MODULES.items():
        assert parameter_count(getattr(model, f"inception{name}")) == count
    assert parameter_count(model.aux1) == 3_188_840
    assert parameter_count(model.aux2) == 3_190_888
    assert parameter_count(model) == 13_378_280
    assert parameter_count(on_meta("googlenet", aux_logits=False)) == 6_998_552
    assert parameter_count(on_meta("googlenet_tv")) == 13_004_888
    assert parameter_count(on_meta("googlenet_tv", aux_logits=False)) == 6_624_904
    assert parameter_count(on_meta("inception_v2")) == 11_194_984
    assert parameter_count(on_meta("googlenet", num_classes=10)) == 13_378_280 - 990 * (1025 + 1025 + 1025)


def test_multiplications():
    assert multiplications(on_meta("googlenet"), 3, 224, 224) == 1_582_671_872
    assert multiplications(on_meta("googlenet_tv"), 3, 224, 224) == 1_498_376_192


@pytest.mark.parametrize("name", ["googlenet", "googlenet_tv"])
def test_shapes(name):
    shapes = output_shapes(on_meta(name, num_classes=7), 3, 224, 224)
    assert shapes["conv1"] == (64, 112, 112)
    assert shapes["maxpool1"] == shapes["conv2"] == (64, 56, 56)
    assert shapes["conv3"] == (192, 56, 56)
    assert shapes["maxpool2"] == (192, 28, 28)
    for module, (channels, _) in MODULES.items():
        size = SIZES[module[0]]
        assert shapes[f"inception{module}"] == (channels, size, size)
    assert shapes[""] == (7,)
    assert "aux1" not in shapes  # eval mode needs none


def test_inception_v2_shapes():
    shapes = output_shapes(on_meta("inception_v2", num_classes=7), 3, 224, 224)
    assert shapes["conv1"] == (64, 112, 112)
    assert shapes["maxpool1"] == (64, 56, 56)
    assert shapes["maxpool2"] == (192, 28, 28)
    for module, (channels, size) in BN_INCEPTION.items():
        assert shapes[f"inception{module}"] == (channels, size, size)
    assert shapes[""] == (7,)


def test_bottleneck_module():
    """A8, claims 31 and 32: reduced to 64 before 3x3 and 5x5, and 64 after the pooling."""
    with torch.device("meta"):
        module = Inception(256, 128, 64, 192, 64, 96, 64, block=ConvReLU2d, large_kernel=5)
    assert multiplications(module, 256, 28, 28) == 271_351_808
    assert output_shapes(module, 256, 28, 28)[""] == (480, 28, 28)
    assert sum(p.numel() for p in module.parameters() if p.dim() == 4) == 346_112


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("options", [{}, {"aux_logits": False, "transform_input": True}], ids=["aux", "plain"])
def test_torchvision(options, train):
    torchvision = pytest.importorskip("torchvision")
    theirs = on_meta(torchvision.models.GoogLeNet, init_weights=False, **options)
    check_same(on_meta("googlenet_tv", **options), theirs, torch.randn(4, 3, 96, 112), train)


@torch.no_grad()
def test_googlenet_order():
    """Stem, one module and an auxiliary classifier, written out."""
    model = on_meta("googlenet", num_classes=7)
    fill(model, values(model)).eval()

    def conv(x, block):
        layer = block.conv
        return nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding).relu()

    def pool(x):
        return nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm(x):
        return nn.functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0)

    x = torch.randn(1, 3, 224, 224) * 30
    want = conv(conv(norm(pool(conv(x, model.conv1))), model.conv2), model.conv3)
    want = pool(norm(want))
    module = model.inception3a
    branches = [conv(want, module.branch1)]
    branches += [conv(conv(want, branch[0]), branch[1]) for branch in (module.branch2, module.branch3)]
    branches += [conv(nn.functional.max_pool2d(want, 3, 1, 1), module.branch4[1])]
    want = torch.cat(branches, 1)
    assert module.branch3[1].conv.kernel_size == (5, 5)
    actual = []
    handle = model.inception3a.register_forward_hook(lambda module, args, output: actual.append(output))
    model(x)
    handle.remove()
    assert relative_error(actual[0], want) < 1e-5

    x = torch.randn(2, 512, 14, 14)
    aux = model.aux1
    want = conv(nn.functional.avg_pool2d(x, 5, 3), aux.conv).flatten(1)
    assert want.shape == (2, 2048)
    assert relative_error(aux(x), aux.fc2(aux.fc1(want).relu())) < 1e-5


@pytest.mark.parametrize(
    ("name", "batch", "size"), [("googlenet", 1, 224), ("googlenet_tv", 4, 96), ("inception_v2", 3, 96)]
)
def test_trains(name, batch, size):
    check_trains(on_meta(name), torch.randn(batch, 3, size, size))


def test_auxiliary_losses():
    """T20: 0.3 of each in training, none in eval mode, whose output does not depend on their weights."""
    model = on_meta("googlenet", num_classes=7)
    fill(model, values(model)).train()
    x, target = torch.randn(1, 3, 224, 224), torch.tensor([3])
    output = model(x)
    logits, aux2, aux1 = output
    cross_entropy = nn.functional.cross_entropy
    want = cross_entropy(logits, target) + 0.3 * cross_entropy(aux1, target) + 0.3 * cross_entropy(aux2, target)
    torch.testing.assert_close(model.loss(output, target), want)

    weight = model.inception4a.branch1.conv.weight
    with_aux = torch.autograd.grad(model.loss(output, target), weight, retain_graph=True)[0]
    without = torch.autograd.grad(model.loss(logits, target), weight)[0]
    assert relative_error(with_aux, without) > 1e-2

    before = model.eval()(x)
    torch.testing.assert_close(before, logits)
    torch.testing.assert_close(model.loss(before, target), cross_entropy(before, target))
    for parameter in (*model.aux1.parameters(), *model.aux2.parameters()):
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(model(x), before)


def test_sizes():
    model = on_meta("googlenet", num_classes=7)
    fill(model, values(model))
    x = torch.randn(2, 3, 65, 97)
    assert model.eval()(x).shape == (2, 7)
    with pytest.raises(RuntimeError, match=r"expected \(N, 3, H, W\) input, but got input of size \(3, 65, 97\)"):
        model(x[0])
    with pytest.raises(RuntimeError, match="auxiliary classifiers get 14x14 maps, as of 224x224, but got"):
        model.train()(torch.randn(2, 3, 192, 192))
    with pytest.raises(RuntimeError):
        model.eval()(torch.zeros(1, 4, 64, 64))


def test_initial_values():
    with fixed_seed(0):
        model = googlenet(aux_logits=False)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max().item() <= bound
            assert (layer.bias == 0.2).all()
