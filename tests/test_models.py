"""The networks: their parameters, shapes, initial values and losses."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn._config import config
from fastcnn.models import (
    alexnet,
    alexnet_1gpu,
    alexnet_cs231n,
    alexnet_owt,
    bvlc_alexnet,
    get_model,
    lenet5,
    lenet5_dense,
    list_models,
)
from fastcnn.models._digit_codes import digit_codes
from fastcnn.models.layers import record_calls, time_alternated, time_layers
from fastcnn.models.lenet import C3_TABLE, rbf_loss
from fastcnn.models.verify import example_batch, fixed_seed, relative_error

ALEXNET = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
# torchvision.models.alexnet
ALEXNET_OWT = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
LENET5 = {
    "c1": (6, 1, 5, 5),
    "s2": (6,),
    "c3": (60, 5, 5),
    "s4": (16,),
    "c5": (120, 16, 5, 5),
    "f6": (84, 120),
}


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def weight_shapes(model):
    return {key.removesuffix(".weight"): tuple(t.shape) for key, t in model.state_dict().items() if "weight" in key}


@pytest.fixture(scope="module")
def big():
    with fixed_seed(0):
        return alexnet().eval()


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("lenet5", {}, 60_000),
        ("lenet5", {"head": "linear"}, 60_850),
        ("lenet5", {"head": "linear", "num_classes": 26}, 60_850 + 16 * 85),
        ("lenet5_dense", {}, 61_706),
        ("conv_local_13pct", {}, 1_901_386),
        ("conv_local_11pct", {}, 1_901_386),
        ("conv_local_11pct", {"num_classes": 100}, 1_901_386 + 90 * 2049),
        ("alexnet", {}, 60_965_224),
        ("alexnet", {"num_classes": 10}, 60_965_224 - 990 * 4097),
        ("alexnet_owt", {}, 61_100_840),
        ("alexnet_cs231n", {}, 62_378_344),
        ("alexnet_1gpu", {}, 59_798_312),
        ("bvlc_alexnet", {}, 60_965_224),
    ],
)
def test_parameter_count(name, options, count):
    with torch.device("meta"):
        assert parameter_count(get_model(name, **options)) == count


def test_layer_parameters():
    model = lenet5()
    counts = {name: parameter_count(layer) for name, layer in model.named_children()}
    assert counts == {"act": 0, "c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "out": 0}


@pytest.mark.parametrize(("build", "shapes"), [(alexnet, ALEXNET), (alexnet_owt, ALEXNET_OWT)])
def test_alexnet_state_dict(build, shapes):
    with torch.device("meta"):
        model = build()
    assert weight_shapes(model) == shapes
    assert set(model.state_dict()) == {f"{name}.{kind}" for name in shapes for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "count"),
    [("alexnet", 724_406_816), ("alexnet_cs231n", 1_135_256_096), ("bvlc_alexnet", 724_406_816)],
)
def test_multiplications(name, count):
    """Of the convolutions and linear layers, for one image; a FLOP counter counts each as two operations."""
    with torch.device("meta"):
        model, x = get_model(name).eval(), torch.empty(1, 3, 227, 227)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * count


def test_lenet5_state_dict():
    assert weight_shapes(lenet5()) == {**LENET5, "out": (10, 84)}
    assert weight_shapes(lenet5(head="linear")) == {**LENET5, "out": (10, 84)}
    keys = {f"{name}.{kind}" for name in LENET5 for kind in ("weight", "bias")}
    assert set(lenet5().state_dict()) == keys | {"out.weight"}
    assert weight_shapes(lenet5_dense()).keys() == {"c1", "c3", "c5", "f6", "out"}


def test_c3_table():
    links = list(itertools.chain(*C3_TABLE))
    assert len(links) == 60
    assert [links.count(i) for i in range(6)] == [10] * 6
    assert len(set(C3_TABLE)) == 16


def test_registry():
    names = {"alexnet", "alexnet_owt", "alexnet_cs231n", "alexnet_1gpu", "bvlc_alexnet", "lenet5", "lenet5_dense"}
    assert names <= set(list_models())
    with pytest.raises(ValueError, match=r"unknown model 'lenet6', expected one of .*lenet5"):
        get_model("lenet6")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "softmax"}, "expected head to be one of rbf, linear, but got 'softmax'"),
        ({"num_classes": 11}, "head='rbf' has codes for 10 classes, but got num_classes=11"),
        ({"activation": "relu6"}, "expected activation to be one of scaled_tanh, tanh, sigmoid, but got 'relu6'"),
        ({"subsampling": "min"}, "expected subsampling to be one of sum, mean, max, avg, but got 'min'"),
    ],
)
def test_lenet5_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        lenet5(**options)


def test_weights_from_dict_and_file(tmp_path):
    trained = lenet5()
    torch.save(trained.state_dict(), tmp_path / "lenet5.pt")
    for weights in (trained.state_dict(), tmp_path / "lenet5.pt", str(tmp_path / "lenet5.pt")):
        loaded = get_model("lenet5", weights=weights).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        lenet5(weights={"c1.weight": trained.c1.weight})


def test_lenet5_shapes():
    model = lenet5()
    with record_calls(model) as calls:
        output = model(torch.zeros(3, 1, 32, 32))
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls if call.name != "act"}
    expected = {"c1": (6, 28, 28), "s2": (6, 14, 14), "c3": (16, 10, 10), "s4": (16, 5, 5), "c5": (120, 1, 1)}
    assert shapes == {**expected, "f6": (84,), "out": (10,)}
    assert output.shape == (3, 10)
    assert [call.name for call in calls].count("act") == 6
    assert lenet5_dense()(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert model(torch.zeros(1, 32, 32)).shape == (10,)


def test_alexnet_shapes(big):
    with record_calls(big) as calls, torch.no_grad():
        output = big(torch.zeros(1, 3, 227, 227))
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls}
    assert shapes["conv1"] == (96, 55, 55)
    assert shapes["pool1"] == (96, 27, 27)
    assert shapes["conv2"] == (256, 27, 27)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13)
    assert shapes["pool5"] == (256, 6, 6)
    assert output.shape == (1, 1000)
    with pytest.raises(RuntimeError, match=r"expected 227x227 input.*\(1, 256, 5, 5\)"):
        big(torch.zeros(1, 3, 224, 224))


def test_alexnet_owt_shapes():
    model = alexnet_owt(num_classes=7).eval()
    with record_calls(model) as calls, torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls}
    assert shapes["features.0"] == (64, 55, 55)
    assert shapes["features.12"] == (256, 6, 6)


def test_alexnet_initial_values(big):
    for name in ALEXNET:
        layer = getattr(big, name)
        # 1 % is 8 standard deviations of the estimate for conv1, the smallest with 34,848 weights
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert abs(layer.weight.mean().item()) < 5 * 0.01 / math.sqrt(layer.weight.numel())
        assert (layer.bias == (1 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0)).all()


@torch.no_grad()
def test_alexnet_variants():
    """Each against its layers in order, with the options that tell it from the paper's network."""
    x = torch.randn(1, 3, 227, 227) * 100

    def caffe(model, x):  # conv, ReLU, normalization with k=1 and alpha/n across all channels, pooling
        for i in (1, 2):
            x = getattr(model, f"conv{i}")(x).relu()
            x = nn.functional.max_pool2d(nn.functional.local_response_norm(x, 5, 1e-4, 0.75, 1.0), 3, 2)
        return x

    def cs231n(model, x):  # conv, ReLU, pooling, normalization with alpha = 5 * 1e-4 / n
        for i in (1, 2):
            x = nn.functional.max_pool2d(getattr(model, f"conv{i}")(x).relu(), 3, 2)
            x = nn.functional.local_response_norm(x, 5, 5e-4, 0.75, 2.0)
        return x

    def one_gpu(model, x):
        for i in (1, 2):
            x = nn.functional.local_response_norm(getattr(model, f"conv{i}")(x).relu(), 5, 5e-4, 0.75, 2.0)
            x = nn.functional.max_pool2d(x, 3, 2)
        return x

    for build, front in ((bvlc_alexnet, caffe), (alexnet_cs231n, cs231n), (alexnet_1gpu, one_gpu)):
        with fixed_seed(0):
            model = build(num_classes=3).eval()
        want = front(model, x)
        for name in ("conv3", "conv4", "conv5"):
            want = getattr(model, name)(want).relu()
        want = nn.functional.max_pool2d(want, 3, 2).flatten(1)
        for name in ("fc6", "fc7"):
            want = getattr(model, name)(want).relu()
        # as test_alexnet_is_two_towers: the same bound for each of the two float32 results
        assert relative_error(model(x), model.fc8(want).double()) < 2 * 8 * math.sqrt(9216) * 2**-24
        if build is bvlc_alexnet:
            assert (model.fc6.bias == 0.1).all()
            assert (model.conv2.bias == 0.1).all()
            assert model.fc7.weight.std().item() == pytest.approx(0.005, rel=0.01)
            assert model(x[..., :224, :224]).shape == (1, 3)  # the ONNX model zoo's size
            with pytest.raises(RuntimeError, match="expected 224x224 or 227x227 input"):
                model(x[..., :190, :190])
    with torch.device("meta"):
        assert weight_shapes(bvlc_alexnet()) == ALEXNET
        shapes = weight_shapes(alexnet_1gpu())
    assert [shapes[f"conv{i}"][:2] for i in range(1, 6)] == [(48, 3), (128, 48), (192, 128), (192, 192), (256, 192)]


def test_lenet5_initial_values():
    model = lenet5()
    fan_in = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, count in fan_in.items():
        layer = getattr(model, name)
        largest = max(layer.weight.abs().max().item(), layer.bias.abs().max().item())
        assert 0.5 * 2.4 / count < largest <= 2.4 / count
    inputs = torch.tensor([25.0 * len(maps) for maps in C3_TABLE for _ in maps])
    scaled = model.c3.weight.detach().abs().amax((1, 2)) * inputs
    assert scaled.max() <= 2.4 * (1 + 1e-6)
    assert scaled.min() > 1.2  # the largest of 25 uniform draws is below half the bound once in 2**25


def tower_reference(model, x):
    """The paper's two towers, each computed alone with stock functions in float64; they meet only where it says so."""

    def norm(a):  # section 3.3, its formula
        squares = nn.functional.pad(a.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        return a / (2 + 1e-4 * squares) ** 0.75

    def pool(a):
        return nn.functional.max_pool2d(a, 3, 2)

    def conv(towers, name, **options):
        layer = getattr(model, name)
        pairs = zip(towers, layer.weight.double().chunk(2), layer.bias.double().chunk(2))
        return [nn.functional.conv2d(a, w, b, **options).relu() for a, w, b in pairs]

    towers = [pool(norm(a)) for a in conv([x, x], "conv1", stride=4)]
    towers = [pool(norm(a)) for a in conv(towers, "conv2", padding=2)]
    both = torch.cat(towers, 1)
    towers = conv(conv([both, both], "conv3", padding=1), "conv4", padding=1)
    towers = [pool(a) for a in conv(towers, "conv5", padding=1)]
    x = torch.cat(towers, 1).flatten(1)
    for name in ("fc6", "fc7"):
        layer = getattr(model, name)
        x = nn.functional.linear(x, layer.weight.double(), layer.bias.double()).relu()
    return nn.functional.linear(x, model.fc8.weight.double(), model.fc8.bias.double())


@torch.no_grad()
def test_alexnet_is_two_towers(big):
    x = torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(1)) * 500  # so that the norms matter
    expected = tower_reference(big, x.double())
    # eight layers of float32 sums of at most 9,216 terms: 8 * sqrt(9216) half-ulps, were all errors to add up
    tolerance = 8 * math.sqrt(9216) * 2**-24
    assert relative_error(big(x), expected) < tolerance
    with torch.device("meta"):
        across = alexnet(lrn_groups=1).eval()
    across.load_state_dict(big.state_dict(), assign=True)
    assert relative_error(across(x), expected) > tolerance


def test_digit_codes():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert ((codes == 1) | (codes == -1)).all()
    differing = (codes[:, None] != codes).sum(-1) + 84 * torch.eye(10, dtype=torch.long)
    assert differing.min() >= 8  # the two most alike digits


def test_rbf_outputs_and_losses():
    model = lenet5().double()
    features = torch.randn(4, 84, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    penalties = model.out(features)
    for n, i in itertools.product(range(4), range(10)):
        expected = sum((features[n, j] - model.out.weight[i, j]) ** 2 for j in range(84))
        assert penalties[n, i].item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.equal(model.predict(penalties), penalties.argmin(1))

    y, target = penalties / 50, torch.tensor([0, 3, 9, 3])  # small, so that all of the sum counts
    expected = sum(y[n, t] + math.log(math.exp(-2) + y[n].neg().exp().sum()) for n, t in enumerate(target)) / 4
    assert rbf_loss(y, target, j=2.0).item() == pytest.approx(expected.item(), rel=1e-12)
    assert rbf_loss(y, target, j=None).item() == pytest.approx(y[range(4), target].mean().item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda y: rbf_loss(y, target), y.clone().requires_grad_())


def test_layer_times():
    model = lenet5_dense()
    x, _ = example_batch("lenet5", 2)
    rows = time_layers(model, x, runs=2, warmup=1)
    assert [row.name for row in rows] == ["c1", "s2", "c3", "s4", "c5", "f6", "out"]
    assert all(row.fastcnn_s > 0 and row.stock_s > 0 for row in rows)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_time_alternated_takes_turns():
    disabled = []
    result = time_alternated("x", lambda: disabled.append(config.disabled), runs=3, warmup=1)
    assert disabled == [False, True] * 4
    assert result.ratio == result.stock_s / result.fastcnn_s
