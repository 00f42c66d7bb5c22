"""verify: that what is right passes, and that a fault is found where it was planted."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fastcnn import functional as F
from fastcnn import nn as fnn
from fastcnn._config import config
from fastcnn.models import alexnet, get_model, lenet5, list_models, resnet20
from fastcnn.models.observe import Decision, call_decided, decision_of, observed, run
from fastcnn.models.verify import NETWORK, example_batch, fixed_seed, relative_error, settle_statistics, verify
from fastcnn.ops import conv2d as convolution
from fastcnn.ops import conv2d_bn_relu as fused

OFF = 1e-4  # of a planted fault: far above rounding, far below what a look at the loss would show


def names(result):
    return {(check.layer, check.tensor) for check in result.checks}


@pytest.mark.parametrize(
    "options", [{}, {"head": "linear"}, {"subsampling": "mean"}, {"activation": "tanh"}, {"subsampling": "avg"}]
)
def test_lenet5(options):
    with fixed_seed(0):
        model = lenet5(**options)
    result = verify(model, *example_batch("lenet5", 3), name="lenet5")
    assert result.passed, result.worst
    checked = names(result)
    assert {(NETWORK, f"{name} gradient") for name, _ in model.named_parameters()} <= checked
    assert {("c1", "output"), ("c1", "weight gradient"), ("s2", "inference output")} <= checked
    assert {(NETWORK, "output"), (NETWORK, "loss"), (NETWORK, "inference output")} <= checked


def test_alexnet():
    with fixed_seed(0):
        result = verify(alexnet(), *example_batch("alexnet", 2), name="alexnet")
    assert result.passed, result.worst
    assert {check.layer for check in result.checks} >= {"conv1", "norm1", "pool1", "conv5", "pool5", NETWORK}


@pytest.fixture
def small():
    with fixed_seed(0):
        model = resnet20()
    x, target = example_batch("resnet20", 2)
    return model, x[..., ::2, ::2].contiguous(), target


def test_fused_layers_are_checked_as_they_are_called(small):
    model, x, target = small
    result = verify(model, x, target, name="resnet20")
    assert result.passed, result.worst
    checked = names(result)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    tensors = ("output", "decisions", "weight gradient", "bn_bias gradient", "running_var", "inference output")
    assert {(name, tensor) for name in convolutions for tensor in tensors} <= checked
    assert ("layer2.0.conv2", "residual gradient") in checked
    assert (NETWORK, "layer3.2.bn2.running_var") in checked


def where(weight):
    """layer2.0.conv1 of resnet20 is the only one of this shape; the fault is of fastcnn's kernels alone."""
    return weight.shape == (32, 16, 3, 3) and not config.disabled


FAULTS = {
    "output": lambda y, norm: y * (1 + OFF),
    "weight gradient": lambda y, norm: y + OFF * (y - y.detach()),
    "decisions": lambda y, norm: y * (y > 0.05),
    "running_var": lambda y, norm: (norm[1].mul_(1 + OFF), y)[1],
}


@pytest.mark.parametrize("tensor", FAULTS)
def test_names_the_wrong_layer_of_a_network_with_batch_normalization(tensor, small, monkeypatch):
    train = fused._train

    def wrong(x, weight, bias, residual, norm, *rest):
        y = train(x, weight, bias, residual, norm, *rest)
        return FAULTS[tensor](y, norm) if where(weight) else y

    monkeypatch.setattr(fused, "_train", wrong)
    result = verify(*small)
    failed = {(check.layer, check.tensor) for check in result.checks if not check.passed and check.layer != NETWORK}
    assert ("layer2.0.conv1", tensor) in failed
    assert {layer for layer, _ in failed} == {"layer2.0.conv1"}
    assert result.worst.layer in ("layer2.0.conv1", NETWORK)
    if tensor != "output":
        assert ("layer2.0.conv1", "output") not in failed


def test_a_bias_that_is_normalized_away(monkeypatch):
    """Its gradient is zero: noise of float32 is not compared with that of float64, and what is no noise is found."""
    with fixed_seed(0):
        model = nn.Sequential(fnn.ConvBNReLU2d(3, 4, 3, bias=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = torch.randn(2, 3, 9, 9), torch.tensor([0, 1])
    result = verify(model, *data)
    assert result.passed, result.worst
    assert max(check.stock_error for check in result.checks if "bias gradient" in check.tensor) < 1e-5
    train = fused._train
    extra = lambda bias: OFF * (bias - bias.detach()).view(-1, 1, 1) * (not config.disabled)
    monkeypatch.setattr(fused, "_train", lambda x, w, bias, *rest: train(x, w, bias, *rest) + extra(bias))
    failed = {(check.layer, check.tensor) for check in verify(model, *data).checks if not check.passed}
    assert failed == {("0.conv", "bias gradient"), (NETWORK, "0.conv.bias gradient")}


def test_names_the_wrong_layer_in_inference(small, monkeypatch):
    infer = fused._infer

    def wrong(x, weight, *rest):
        y = infer(x, weight, *rest)
        return y * (1 + OFF) if where(weight) else y

    monkeypatch.setattr(fused, "_infer", wrong)
    result = verify(*small)
    failed = {(check.layer, check.tensor) for check in result.checks if not check.passed}
    assert ("layer2.0.conv1", "inference output") in failed
    assert {tensor for _, tensor in failed} == {"inference output"}
    assert {layer for layer, _ in failed} == {"layer2.0.conv1", NETWORK}


@pytest.mark.parametrize("in_backward", [False, True])
def test_names_the_wrong_layer(in_backward, monkeypatch):
    dispatch = convolution.dispatch

    def wrong(op, raw, needs_grad, x, weight, *rest):
        y = dispatch(op, raw, needs_grad, x, weight, *rest)
        return y * (1 + OFF) - (OFF * y.detach() if in_backward else 0) if weight.shape[0] == 120 else y

    monkeypatch.setattr(convolution, "dispatch", wrong)
    result = verify(lenet5(), *example_batch("lenet5", 2))
    assert not result.passed
    assert result.worst.layer == "c5"
    wrong = {check.tensor for check in result.checks if check.layer == "c5" and not check.passed}
    assert ("output" in wrong) != in_backward
    assert "weight gradient" in wrong


@pytest.mark.parametrize(("loss", "passes"), [(1e-3, True), (0.5, False)])
def test_a_loss_that_stock_has_right_by_chance(loss, passes, monkeypatch):
    """One number's rounding errors may cancel: it is to be as good as the output is in stock PyTorch."""

    def run(model, x, target, run_stock):
        return {"output": 1e-3, "loss": 0.0 if run_stock else loss, "decisions": 0.0}

    monkeypatch.setattr("fastcnn.models.verify._training_run", run)
    assert verify(lenet5(), *example_batch("lenet5", 2)).passed is passes


def test_fails_on_nan():
    model = lenet5()
    with torch.no_grad():
        model.c5.bias[0] = math.nan
    assert not verify(model, *example_batch("lenet5", 2)).passed


def test_leaves_the_model_alone(small):
    model, x, target = small
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    verify(model, x, target)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Outputs(NamedTuple):
    logits: torch.Tensor
    auxiliary: torch.Tensor | None


class WithAuxiliary(nn.Module):
    """A network with an auxiliary classifier in training, whose loss counts half."""

    def __init__(self):
        super().__init__()
        self.first = fnn.ConvBNReLU2d(3, 8, 3, padding=1)
        self.aux = fnn.ConvBNReLU2d(8, 4, 3)
        self.second = fnn.ConvBNReLU2d(8, 4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.first(x)
        aux = self.aux(x).mean((2, 3)) if self.training else None
        y = self.drop(self.second(x)).mean((2, 3))
        return y if aux is None else Outputs(y, aux)

    def loss(self, output, target):
        logits, aux = output
        return nn.functional.cross_entropy(logits, target) + 0.5 * nn.functional.cross_entropy(aux, target)


def test_auxiliary_classifiers(monkeypatch):
    data = torch.randn(4, 3, 9, 9), torch.tensor([0, 1, 2, 3])
    result = verify(WithAuxiliary(), *data)
    assert result.passed, result.worst
    assert {(NETWORK, "auxiliary"), (NETWORK, "aux.bn.weight gradient"), ("aux.conv", "output")} <= names(result)
    train = fused._train
    scaled = lambda x, weight, bias, *rest: train(x, weight, bias, *rest) * (1 if config.disabled else 1 + OFF)
    monkeypatch.setattr(fused, "_train", lambda x, w, *r: (scaled if w.shape[:2] == (4, 8) else train)(x, w, *r))
    failed = {(check.layer, check.tensor) for check in verify(WithAuxiliary(), *data).checks if not check.passed}
    assert {("aux.conv", "output"), (NETWORK, "auxiliary"), (NETWORK, "output")} <= failed
    assert not any(layer == "first.conv" for layer, _ in failed)


def test_a_value_that_rounds_to_zero_is_no_error():
    """1 + 2**-25 - 1: positive in float64, 0 in float32 if added in this order; and by itself the whole gradient."""
    model = nn.Sequential(fnn.Conv2d(3, 1, 1, bias=False), nn.ReLU(), nn.Flatten())
    nn.init.ones_(model[0].weight)
    x = torch.tensor([1, 2.0**-25, -1]).view(1, 3, 1, 1).expand(2, 3, 1, 2)
    x = torch.cat((x, torch.rand(2, 3, 1, 2)), -1)
    result = verify(model, x, torch.tensor([0, 1]))
    assert result.passed, result.worst


def call(function, **arguments):
    """The call with all arguments, and its output."""
    seen = {}

    def keep(layer, function, arguments):
        seen.update(arguments)
        return run(function, arguments)

    with observed(nn.Module(), keep):
        output = function(**arguments)
    return seen, output


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (nn.functional.relu, {}),
        (F.conv2d, {"weight": torch.randn(4, 4, 3, 3), "activation": "relu"}),
        (F.local_response_norm, {"size": 3, "activation": "relu"}),
        (F.max_pool2d, {"kernel_size": 3, "stride": 2}),
        (nn.functional.max_pool2d, {"kernel_size": 2}),
        (F.lrn_max_pool2d, {"size": 3, "activation": "relu"}),
        (F.avg_pool2d, {"kernel_size": 2}),
    ],
)
def test_decisions(function, options):
    """By its own decisions a call gives what it gives; by those for another input, what they say."""
    x, other = torch.randn(2, 4, 7, 9), torch.randn(2, 4, 7, 9)
    arguments, output = call(function, input=x, **options)
    decided, own = call_decided(function, arguments, decision_of(function, arguments, output))
    torch.testing.assert_close(decided, output)
    torch.testing.assert_close(own, output)
    foreign = decision_of(function, *call(function, input=other, **options))
    decided, own = call_decided(function, arguments, foreign)
    torch.testing.assert_close(own, output)
    if foreign == Decision():
        assert function is F.avg_pool2d
    else:
        assert relative_error(decided, own) > 0.1


def test_statistics_are_settled_where_there_are_none(small):
    model, x, _ = small
    model.layer1[0].bn1.num_batches_tracked.fill_(1)
    settle_statistics(model, x)
    assert not model.layer1[0].bn1.running_mean.any()
    mean = nn.functional.conv2d(x, model.conv1.weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, mean, rtol=1e-4, atol=1e-6)
    assert model.bn1.momentum == 0.1


# Less than a network's own size, where it takes others: 2 x 2 values for each channel of a batch of 2 at the least.
SIZES = {224: 96, 299: 139, 227: 227, 32: 32}
OWN_SIZE = ("googlenet", "googlenet_tv", "inception_v3", "zfnet", "zfnet_cs231n", "zfnet512")


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model(name):
    """Trains and infers on fastcnn's kernels and on stock PyTorch's: outputs, loss, gradients, statistics."""
    x, target = example_batch(name, 2)
    if name not in OWN_SIZE:
        size = SIZES[x.shape[-1]]
        x = x[..., :size, :size].contiguous()
    with fixed_seed(0):
        model = get_model(name)
    result = verify(model, x, target, name)
    assert result.passed, result.worst
    checked = names(result)
    assert {(NETWORK, f"{key} gradient") for key, _ in model.named_parameters()} <= checked
