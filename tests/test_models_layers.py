"""Every network's layers, one by one, as the specification writes them (spec/architectures.md, 1.1 to 1.11).

96@11/4p0g2: a convolution of 96 filters, kernel 11, stride 4, padding 0, groups 2, with bias ('n': without); R: ReLU;
M3/2c: max pooling with ceil_mode, A: average ('x': borders count less); L: local response normalization of the paper,
'Lc': Caffe's, 'L.001': mean of 0.001; BN: batch normalization; D.5: dropout; F: linear; G: global average.
"""

import pytest
import torch
from torch import nn

from fastcnn import nn as fnn
from fastcnn.models import alexnet, get_model, list_models
from fastcnn.models.layers import record_calls
from fastcnn.models.verify import example_batch, relative_error
from tests.cases.networks import fill, values
from tests.model_checks import on_meta, parameter_count


def size(value):
    pair = value if isinstance(value, tuple) else (value, value)
    return str(pair[0]) if pair[0] == pair[1] else "x".join(map(str, pair))


def window(letter, pool):
    padding = "" if size(pool.padding) == "0" else f"p{size(pool.padding)}"
    border = "" if getattr(pool, "count_include_pad", True) or not padding else "x"
    return f"{letter}{size(pool.kernel_size)}/{size(pool.stride)}{padding}" + "c" * pool.ceil_mode + border


def norm(lrn):
    known = {
        (5, 1e-4, 0.75, 2.0, "sum"): "L",
        (5, 1e-4, 0.75, 1.0, "mean"): "Lc",
        (5, 1e-3, 0.75, 1.0, "mean"): "L.001",
    }
    name = known[lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.alpha_mode]
    return ("R " if lrn.activation else "") + name + ("" if lrn.groups == 1 else f"g{lrn.groups}")


def word(module):
    if isinstance(module, nn.Conv2d):
        text = f"{module.out_channels}@{size(module.kernel_size)}"
        text += "" if size(module.stride) == "1" else f"/{size(module.stride)}"
        text += "" if size(module.padding) == "0" else f"p{size(module.padding)}"
        text += "" if module.groups == 1 else f"g{module.groups}"
        return text + ("n" if module.bias is None else "")
    if isinstance(module, fnn.LocallyConnected2d):
        return f"local{module.out_channels}@{size(module.kernel_size)}p{size(module.padding)}"
    if isinstance(module, nn.LocalResponseNorm):
        return norm(module)
    if isinstance(module, nn.BatchNorm2d):
        return {(1e-5, 0.1): "BN", (1e-3, 0.1): "BN.001"}[module.eps, module.momentum]
    if isinstance(module, nn.MaxPool2d):
        return window("M", module)
    if isinstance(module, nn.AvgPool2d):
        return window("A", module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return "G" if size(module.output_size) == "1" else f"A->{size(module.output_size)}"
    if isinstance(module, nn.Dropout):
        return f"D{module.p:g}".replace("0.", ".")
    if isinstance(module, nn.Linear):
        return f"F{module.out_features}"
    return {nn.ReLU: "R", nn.Flatten: ""}[type(module)]


def written(model, shape):
    """The layers in the order of their calls; a fused block's ReLU is an argument of its own."""
    wrappers = {id(m.bn): m.activation for m in model.modules() if isinstance(m, fnn.ConvBNReLU2d)}
    with torch.no_grad(), record_calls(model) as calls:
        model(torch.empty(shape, device="meta"))
    words = []
    for call in calls:
        words.append(word(call.module))
        if wrappers.get(id(call.module)) == "relu":
            words.append("R")
    return " ".join(w for w in words if w)


FC = "F4096 R D.5 F4096 R D.5 F1000"
ALEXNET = "96@11/4 R L{g} M3/2 256@5p2{t} R L{g} M3/2 384@3p1 R 384@3p1{t} R 256@3p1{t} R M3/2 " + FC
ZFNET = "96@7/2p1 M3/2c R L 256@5/2 M3/2c R L {0}@3p1 R {1}@3p1 R {2}@3p1 R M3/2 F{3} R D.5 F{4} R D.5 F1000"
MLP = "{0} R {1}@1 R {2}@1 R"


def vgg(stages, first="R"):
    words = []
    for stage in stages:
        words += [f"{width} R" if "@" in width else f"{width}@3p1 R" for width in stage.split()] + ["M2/2"]
    return " ".join(words).replace(" R", f" {first}", 1) + " A->7 " + FC


def fire(s, e):
    return f"{s}@1 R {e}@1 R {e}@3p1 R"


VGG = {
    "vgg11": ("64", "128", "256 256", "512 512", "512 512"),
    "vgg13": ("64 64", "128 128", "256 256", "512 512", "512 512"),
    "vgg16_1": ("64 64", "128 128", "256 256 256@1", "512 512 512@1", "512 512 512@1"),
    "vgg16": ("64 64", "128 128", "256 256 256", "512 512 512", "512 512 512"),
    "vgg19": ("64 64", "128 128", "256 256 256 256", "512 512 512 512", "512 512 512 512"),
}

# A maximum and the ReLU behind it may change places, which changes no value: so the networks that normalize after
# pooling are computed.
LAYERS = {
    "alexnet": ALEXNET.format(g="g2", t="g2"),
    "bvlc_alexnet": ALEXNET.format(g="c", t="g2").replace("R M3/2 F", "R M3/2c F"),
    "alexnet_1gpu": "48@11/4 R L M3/2 128@5p2 R L M3/2 192@3p1 R 192@3p1 R 256@3p1 R M3/2 " + FC,
    "alexnet_cs231n": "96@11/4 M3/2 R L 256@5p2 M3/2 R L 384@3p1 R 384@3p1 R 256@3p1 R M3/2 " + FC,
    "alexnet_owt": "64@11/4p2 R M3/2 192@5p2 R M3/2 384@3p1 R 256@3p1 R 256@3p1 R M3/2 A->6 "
    "D.5 F4096 R D.5 F4096 R F1000",
    "conv_local_13pct": "64@5p2 R M3/2c 64@5p2 R M3/2c local32@3p1 R local32@3p1 R F10",
    "conv_local_11pct": "64@5p2 R L.001 M3/2c 64@5p2 R L.001 M3/2c local32@3p1 R local32@3p1 R F10",
    "zfnet": ZFNET.format(384, 384, 256, 4096, 4096),
    "zfnet_cs231n": ZFNET.format(512, 1024, 512, 4096, 4096),
    "zfnet512": ZFNET.format(512, 512, 512, 4096, 1024),
    "nin_seed": "16@3 R 16@1 R 64@3 R 64@1 R 100@3 R 100@1 G",
    "nin_cifar": f"{MLP.format('192@5p2', 160, 96)} M3/2c D.5 {MLP.format('192@5p2', 192, 192)} A3/2c D.5 "
    f"{MLP.format('192@3p1', 192, 10)} G",
    "nin_imagenet": f"{MLP.format('96@11/4', 96, 96)} M3/2c {MLP.format('256@5p2', 256, 256)} M3/2c "
    f"{MLP.format('384@3p1', 384, 384)} M3/2c D.5 {MLP.format('1024@3p1', 1024, 1000)} G",
    **{name: vgg(stages) for name, stages in VGG.items()},
    **{f"{name}_bn": vgg(stages).replace("p1 R", "p1 BN R") for name, stages in VGG.items() if name != "vgg16_1"},
    "vgg11_lrn": vgg(VGG["vgg11"], "R L"),
    "squeezenet1_0": f"96@7/2 R M3/2c {fire(16, 64)} {fire(16, 64)} {fire(32, 128)} M3/2c {fire(32, 128)} "
    f"{fire(48, 192)} {fire(48, 192)} {fire(64, 256)} M3/2c {fire(64, 256)} D.5 1000@1 R G",
    "squeezenet1_1": f"64@3/2 R M3/2c {fire(16, 64)} {fire(16, 64)} M3/2c {fire(32, 128)} {fire(32, 128)} M3/2c "
    f"{fire(48, 192)} {fire(48, 192)} {fire(64, 256)} {fire(64, 256)} D.5 1000@1 R G",
}


def inception(one, r3, three, r5, five, pool, large="{}@5p2"):
    return f"{one}@1 R {r3}@1 R {three}@3p1 R {r5}@1 R {large.format(five)} R M3/1p1c {pool}@1 R"


GOOGLENET = [
    "64@7/2p3 R M3/2c Lc 64@1 R 192@3p1 R Lc M3/2c",
    inception(64, 96, 128, 16, 32, 32),
    inception(128, 128, 192, 32, 96, 64),
    "M3/2c",
    inception(192, 96, 208, 16, 48, 64),
    inception(160, 112, 224, 24, 64, 64),
    inception(128, 128, 256, 24, 64, 64),
    inception(112, 144, 288, 32, 64, 64),
    inception(256, 160, 320, 32, 128, 128),
    "M3/2c",
    inception(256, 160, 320, 32, 128, 128),
    inception(384, 192, 384, 48, 128, 128),
    "G D.4 F1000",
]


def bn(words):
    """Each convolution without bias, with BN of eps 0.001 and ReLU."""
    return " ".join(w if "@" not in w else f"{w}n BN.001 R" for w in words.split())


def mixed(one, a, b, c, d, pool):
    """Inception v2: 1x1; a@1, b@3; c@1, d@3, d@3; pooling."""
    kind, width = pool.split()
    window = "A3/1p1x" if kind == "avg" else "M3/1p1"
    return bn(f"{one}@1 {a}@1 {b}@3p1 {c}@1 {d}@3p1 {d}@3p1 {window} {width}@1")


def reduction(a, b, c, d):
    return bn(f"{a}@1 {b}@3/2p1 {c}@1 {d}@3p1 {d}@3/2p1 M3/2c")


INCEPTION_V2 = [
    bn("64@7/2p3 M3/2c 64@1 192@3p1 M3/2c"),
    mixed(64, 64, 64, 64, 96, "avg 32"),
    mixed(64, 64, 96, 64, 96, "avg 64"),
    reduction(128, 160, 64, 96),
    mixed(224, 64, 96, 96, 128, "avg 128"),
    mixed(192, 96, 128, 96, 128, "avg 128"),
    mixed(160, 128, 160, 128, 160, "avg 96"),
    mixed(96, 128, 192, 160, 192, "avg 96"),
    reduction(128, 192, 192, 256),
    mixed(352, 192, 320, 160, 224, "avg 128"),
    mixed(352, 192, 320, 192, 224, "max 128"),
    "G F1000",
]
BLOCK35 = bn("32@1 32@1 32@3p1 32@1 32@3p1 32@3p1") + " 256@1 R"
BLOCK17 = bn("128@1 128@1 128@1x7p0x3 128@7x1p3x0") + " 896@1 R"
BLOCK8 = bn("192@1 192@1 192@1x3p0x1 192@3x1p1x0") + " 1792@1 R"
INCEPTION_RESNET_V1 = [
    bn("32@3/2 32@3 64@3p1 M3/2 80@1 192@3 256@3/2"),
    *[BLOCK35] * 5,
    bn("384@3/2 192@1 192@3p1 256@3/2 M3/2"),
    *[BLOCK17] * 10,
    bn("256@1 384@3/2 256@1 256@3/2 256@1 256@3p1 256@3/2 M3/2"),
    *[BLOCK8] * 5,
    "G D.2 F1000",
]


def pre_activated(widths, width, stride=1, projection=False):
    """A block of ResNet v2: its convolutions, each behind BN and ReLU; the projection takes the first ReLU's output."""
    shortcut = f"{width}@1{f'/{stride}' if stride > 1 else ''}n " if projection else ""
    words = [f"{w}n" for w in widths]
    if len(widths) == 2:
        words[1] = "D0 " + words[1]
    return "BN R " + shortcut + " BN R ".join(words)


def wide(width, count, stride):
    first = f"{width}@3{'/2' if stride == 2 else ''}p1"
    blocks = [pre_activated([first, f"{width}@3p1"], width, stride, True)]
    return blocks + [pre_activated([f"{width}@3p1"] * 2, width)] * (count - 1)


def narrow(width, count, stride):
    first = [f"{width}@1", f"{width}@3{'/2' if stride == 2 else ''}p1", f"{4 * width}@1"]
    again = [f"{width}@1", f"{width}@3p1", f"{4 * width}@1"]
    return [pre_activated(first, 4 * width, stride, True)] + [pre_activated(again, 4 * width)] * (count - 1)


def aggregated(width, groups, count, stride):
    """A stage of ResNeXt-29, 64 channels per group and a quarter of the stage's width in its first stage."""
    inner, step = groups * width // 4, "/2" if stride == 2 else ""
    branch = f"{inner}@1n BN R {inner}@3{{}}p1g{groups}n BN R {{}}{width}@1n BN R"
    return [branch.format(step, f"{width}@1{step}n BN "), *[branch.format("", "")] * (count - 1)]


def three_stages(stage, widths, *args):
    """On 32x32, 16x16 and 8x8 maps."""
    return " ".join(block for width, stride in zip(widths, (1, 2, 2)) for block in stage(width, *args, stride))


LAYERS.update(
    googlenet=" ".join(GOOGLENET),
    inception_v2=" ".join(INCEPTION_V2),
    inception_resnet_v1=" ".join(INCEPTION_RESNET_V1),
    resnetv2_164=f"16@3p1n {three_stages(narrow, (16, 32, 64), 18)} BN R G 10@1",
    wrn_16_8=f"16@3p1n {three_stages(wide, (128, 256, 512), 2)} BN R G 10@1",
    wrn_28_10=f"16@3p1n {three_stages(wide, (160, 320, 640), 4)} BN R G 10@1",
    wrn_40_4=f"16@3p1n {three_stages(wide, (64, 128, 256), 6)} BN R G 10@1",
    resnext29_8x64d=f"64@3p1n BN R {three_stages(aggregated, (256, 512, 1024), 8, 3)} G F10",
    resnext29_16x64d=f"64@3p1n BN R {three_stages(aggregated, (256, 512, 1024), 16, 3)} G F10",
)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert written(on_meta(name).eval(), example_batch(name, 1)[0].shape) == LAYERS[name]


def test_a_layer_that_differs_is_seen():
    for change in ({"lrn_groups": 1}, {"norm_first": False}, {"dropout": 0.4}, {"towers": 1}, {"whole_pool5": True}):
        model = on_meta("alexnet", **change).eval()
        assert written(model, (1, 3, 227, 227)) != LAYERS["alexnet"], change
    model = on_meta("zfnet").eval()
    model.conv1.padding = (2, 2)  # whose maps have the same sizes
    assert written(model, (1, 3, 223, 223)) != LAYERS["zfnet"]


def test_googlenets_auxiliary_classifiers():
    model = on_meta("googlenet").train()
    for head, channels in ((model.aux1, 512), (model.aux2, 528)):
        assert written(head, (1, channels, 14, 14)) == "A5/3 128@1 R F1024 R D.7 F1000"


# Dropout of the networks above is in their lines; spec, 1.6 and 1.8 to 1.11.
DROPOUT = {
    "googlenet_tv": {0.7: 2, 0.2: 1},
    "inception_v3": {0.5: 1},
    "inception_v4": {0.2: 1},
    "inception_resnet_v2": {0.2: 1},
    "fractalnet20": {0.1: 7, 0.2: 7, 0.3: 7, 0.4: 7},
}


@pytest.mark.parametrize("name", [name for name in list_models() if name not in LAYERS])
def test_dropout_and_batch_normalization(name):
    """Dropout rates, and everywhere BN's eps 1e-5 (Inception 1e-3) and momentum 0.1, from 1 and 0."""
    found = {}
    for module in on_meta(name).modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            found[module.p] = found.get(module.p, 0) + 1
        elif isinstance(module, nn.BatchNorm2d):
            assert module.eps == (1e-3 if "inception" in name or "googlenet" in name else 1e-5)
            assert module.momentum == 0.1
            assert module.affine
            assert module.track_running_stats
    assert found == DROPOUT.get(name, {})


@pytest.mark.parametrize("name", ["alexnet", "alexnet_cs231n", "alexnet_1gpu", "bvlc_alexnet"])
def test_alexnet_needs_a_batch(name):
    """Without one, normalization would take the rows of its maps for channels."""
    with pytest.raises(RuntimeError, match=r"alexnet: expected \(N, 3, H, W\) input, but got .*\(3, 227, 227\)"):
        on_meta(name)(torch.empty(3, 227, 227, device="meta"))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet5", (2, 1, 40, 50), r"lenet5: expected 32x32 input, of which c5 makes 1x1, but got c5 \(2, 120, 3, 5\)"),
        ("lenet5_dense", (1, 28 + 8, 36), "expected 32x32 input"),
        (
            "inception_v2",
            (1, 3, 208, 224),
            r"multiples of 32, so that maps can be halved, but got maps \(1, 576, 13, 14",
        ),
    ],
)
def test_sizes_that_do_not_fit(name, shape, message):
    with pytest.raises(RuntimeError, match=message):
        on_meta(name).eval()(torch.empty(shape, device="meta"))


@torch.no_grad()
def test_sixth_convolution():
    """AlexNet with a 3x3 convolution of 256 channels, rectified, behind pool5 (spec, 1.2)."""
    model = on_meta("alexnet", sixth=True, num_classes=7)
    assert parameter_count(model) == parameter_count(on_meta("alexnet", num_classes=7)) + 256 * (9 * 256 + 1)
    line = written(model.eval(), (1, 3, 227, 227))
    assert line == LAYERS["alexnet"].replace("M3/2 F", "M3/2 256@3p1 R F").replace("F1000", "F7")
    fill(model, values(model))
    pooled = []
    model.pool5.register_forward_hook(lambda module, args, output: pooled.append(output))
    y = model(torch.randn(2, 3, 227, 227) * 30)
    conv = model.conv6
    z = nn.functional.conv2d(pooled[0], conv.weight, conv.bias, padding=1).relu().flatten(1)
    z = model.fc8(model.fc7(model.fc6(z).relu()).relu())
    assert relative_error(y, z) < 1e-5


def test_sixth_convolutions_initial_values():
    conv = alexnet(sixth=True, num_classes=2).conv6
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not conv.bias.any()


def test_alexnets_keys_stay():
    assert list(on_meta("alexnet").state_dict()) == [
        f"{layer}.{kind}"
        for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("name", list_models())
def test_the_parameters_that_num_classes_changes(name):
    """Those of the last layer of the network and of its auxiliary classifiers, and no others."""
    if name == "lenet5":
        with pytest.raises(ValueError, match="codes for 10 classes, but got num_classes=7"):
            get_model(name, num_classes=7)
        return
    default, other = on_meta(name).state_dict(), on_meta(name, num_classes=7).state_dict()
    assert list(default) == list(other)
    changed = [key for key in default if default[key].shape != other[key].shape]
    assert {other[key].shape[0] for key in changed} == {7}
    heads = {"googlenet": 3, "googlenet_tv": 3, "inception_v3": 2}.get(name, 1)
    assert len(changed) == 2 * heads


def fan_out_std(conv):
    return (2 / (conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1])) ** 0.5


# Spec, 1.6 (torchvision's), 1.7 to 1.10; the networks that are not here have a test with their family's.
@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("googlenet_tv", lambda conv: 0.01),
        ("inception_v2", lambda conv: 0.1),
        ("inception_resnet_v1", lambda conv: 0.1),
        ("resnetv2_18", fan_out_std),
        ("resnet20", fan_out_std),
        ("plain20", fan_out_std),
        ("wrn_16_8", fan_out_std),
    ],
)
def test_initial_values(name, std):
    model = get_model(name)
    for module in model.modules():
        if module is getattr(getattr(model, "head", None), "fc", None):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)  # timm's
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            # six standard deviations of the estimate; a kernel of the first layers has only some hundred weights
            assert module.weight.std().item() == pytest.approx(std(module), rel=6 / (2 * module.weight.numel()) ** 0.5)
            assert abs(module.weight.mean().item()) < 6 * std(module) / module.weight.numel() ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


# One network of each family whose architecture has no fixed size, at one that is odd where it may be.
SIZES = {
    "alexnet_owt": (199, 263), "bvlc_alexnet": (224, 224), "vgg11": (97, 131), "vgg11_lrn": (32, 32),
    "nin_seed": (27, 40), "nin_cifar": (45, 31), "nin_imagenet": (227, 301), "squeezenet1_0": (150, 201),
    "squeezenet1_1": (99, 64), "googlenet": (193, 230), "googlenet_tv": (150, 97), "inception_v2": (160, 256),
    "inception_v3": (75, 140), "inception_v4": (131, 75), "inception_resnet_v1": (75, 99),
    "inception_resnet_v2": (99, 75), "resnet18": (33, 50), "resnext50_32x4d": (65, 100), "resnetv2_18": (97, 40),
    "resnet20": (17, 9), "wrn_16_8": (21, 30), "resnext29_8x64d": (11, 24), "fractalnet20": (35, 64),
    "densenet121": (67, 90), "densenet40_12": (19, 44),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes(name):
    model = on_meta(name, num_classes=7).eval()
    channels = example_batch(name, 1)[0].shape[1]
    assert SIZES[name] != tuple(example_batch(name, 1)[0].shape[2:])
    assert model(torch.empty(2, channels, *SIZES[name], device="meta")).shape == (2, 7)
