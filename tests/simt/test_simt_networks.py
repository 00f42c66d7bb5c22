"""Networks of every family on the CUDA kernels, run on the CPU: a training step and inference as `verify` compares them
with stock PyTorch and with float64, call by call and as a whole; and training in 16 bits, channels last."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from fastcnn import models
from fastcnn._config import disabled
from fastcnn.models.resnet import BasicBlock
from fastcnn.models.resnet_cifar import CifarResNet, StochasticDepthResNet
from fastcnn.models.verify import loss_of, relative_error, verify
from fastcnn.ops import conv2d as convolution
from tests.cases.networks import fill, on_meta, values
from tests.ptx.replay import record
from tests.simt import library

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))

BATCH = 4  # of two, normalization on maps of a few pixels enlarges rounding by more than verify allows

# The network with 10 * `by` classes, of which `narrow` leaves 10; `by`; the input's height and width.
NETWORKS = {
    "lenet5": (models.lenet5, 1, 32),
    "alexnet": (models.alexnet, 8, 227),
    "alexnet_owt": (models.alexnet_owt, 8, 63),
    "zfnet": (models.zfnet, 16, 224),
    "vgg11_lrn": (models.vgg11_lrn, 8, 32),
    "vgg13_bn": (models.vgg13_bn, 8, 32),
    "nin_cifar": (models.nin_cifar, 8, 32),
    "squeezenet1_1": (models.squeezenet1_1, 4, 64),
    "conv_local_11pct": (models.conv_local_11pct, 1, 32),
    "googlenet": (partial(models.googlenet, aux_logits=False), 8, 64),
    "googlenet_tv": (models.googlenet_tv, 8, 64),
    "inception_v2": (models.inception_v2, 8, 64),
    "inception_v3": (partial(models.inception_v3, aux_logits=False), 16, 107),
    "inception_v4": (models.inception_v4, 16, 107),
    "inception_resnet_v1": (models.inception_resnet_v1, 16, 107),
    "resnet18": (models.resnet18, 8, 64),
    "resnet50": (models.resnet50, 8, 64),
    "resnext50_32x4d": (models.resnext50_32x4d, 8, 64),
    "wide_resnet50_2": (models.wide_resnet50_2, 8, 64),
    "resnet20": (partial(CifarResNet, BasicBlock, 3, planes=8), 1, 16),
    "stochastic depth": (partial(StochasticDepthResNet, 2, planes=8), 1, 16),
    "resnetv2_18": (models.resnetv2_18, 8, 64),
    "resnetv2_50": (models.resnetv2_50, 8, 64),
    "wrn_16_8": (models.wrn_16_8, 16, 16),
    "densenet": (partial(models.DenseNet, (2, 3, 2), 8, 16), 1, 64),
    "densenet, cifar": (partial(models.DenseNet, (3, 3), 12, 16, stem="cifar", bottleneck=False), 1, 16),
    "fractalnet": (partial(models.FractalNet, channels=(8, 16, 16), dropout=(0.0, 0.1, 0.2)), 1, 32),
}
SLOW = {"wide_resnet50_2", "resnetv2_50", "inception_v4"}  # beside others of their families


def narrow(model: nn.Module, by: int) -> nn.Module:
    """The network of the meta device with a `by`-th of every layer's channels but the image's, and of its groups."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.in_channels = module.in_channels // by if module.in_channels > 3 else module.in_channels
            module.out_channels //= by
            module.groups = module.groups // by if module.groups % by == 0 else module.groups
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        elif isinstance(module, nn.Linear):
            module.in_features, module.out_features = module.in_features // by, module.out_features // by
            shape = (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features //= by
            shape = (module.num_features,)
            module.running_mean, module.running_var = (torch.empty(shape, device="meta") for _ in range(2))
        else:
            continue
        module.weight = nn.Parameter(torch.empty(shape, device="meta"))
        if module.bias is not None:
            module.bias = nn.Parameter(torch.empty(shape[:1], device="meta"))
    return model


def network(name: str, by: int = 0) -> nn.Module:
    """With random values that keep the size of the activations, without dropout; `by` is NETWORKS' unless given."""
    build, by = NETWORKS[name][0], by or NETWORKS[name][1]
    model = narrow(on_meta(build, num_classes=10 * by), by)
    return fill(model, values(model))


def batch(name: str, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    size = NETWORKS[name][2]
    x = torch.randn(BATCH, 1 if name == "lenet5" else 3, size, size).to(dtype)
    return x, torch.randint(10, (BATCH,))


def worst(verification) -> str:
    """The checks that did not pass, the worst ones first."""
    failed = sorted((c for c in verification.checks if not c.passed), key=lambda c: -c.severity)
    return "\n".join(map(str, failed[:5]))


def launched(call) -> tuple[object, set[str]]:
    """What call() returns, and the names of the kernels that it launched."""
    result, launches = record(call)
    return result, {launch.kernel.partition("<")[0] for launch in launches}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS])
def test_network(name):
    model, (x, target) = network(name), batch(name)
    with library.taken_over():
        verification, kernels = launched(lambda: verify(model, x, target, name))
    assert verification.passed, worst(verification)
    convolutions = {"conv2d_direct_kernel", "conv2d_ffma_kernel"}
    assert kernels & convolutions, kernels
    assert any("weight_grad" in kernel for kernel in kernels), kernels


def gradients(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The training loss, and its gradient for every parameter."""
    model.train()
    loss = loss_of(model, model(x), target)
    names, parameters = zip(*model.named_parameters())
    return {"loss": loss.detach(), **dict(zip(names, torch.autograd.grad(loss, parameters)))}


# Divisor of the channels, dtype, and what must have computed most of it.
IN_16_BITS = {
    "alexnet": (4, torch.bfloat16, {"conv2d_mma_kernel", "conv2d_mma_weight_grad_kernel"}),
    "vgg11_lrn": (8, torch.bfloat16, {"conv2d_mma_kernel", "conv2d_mma_weight_grad_kernel", "normalize_tile"}),
    "googlenet_tv": (4, torch.bfloat16, {"conv2d_mma_kernel", "conv2d_mma_weight_grad_kernel"}),
    "resnext50_32x4d": (8, torch.float16, {"conv2d_mma_kernel", "conv2d_grouped_kernel"}),
}


@pytest.mark.parametrize("name", IN_16_BITS)
def test_training_in_16_bits(name):
    """Channels last. Loss and gradients are off by at most four times what they are on the CPU's kernels, which round
    as often; or by four roundings where all of those errors cancel. (Stock PyTorch has no normalization in 16 bits.)"""
    by, dtype, expected = IN_16_BITS[name]
    model = network(name, by).to(dtype).to(memory_format=torch.channels_last)
    x, target = batch(name, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with library.taken_over():
        got, kernels = launched(lambda: gradients(model, x, target))
    cpu = gradients(model, x, target)
    with disabled():
        exact = gradients(copy.deepcopy(model).double(), x.double(), target)
    assert expected <= kernels
    for key, want in exact.items():
        tolerance = 4 * max(relative_error(cpu[key], want), torch.finfo(dtype).eps / 2)
        assert relative_error(got[key], want) < tolerance, key


@pytest.mark.parametrize(("part", "attribute", "tensor"), [
    ("conv", "raw", "output"), ("backward_input", "op", "input gradient"), ("backward_weight", "op", "weight gradient")
])  # fmt: skip
def test_a_wrong_kernel_is_seen(monkeypatch, part, attribute, tensor):
    """One element of what a kernel returns is off by a thousandth of the tensor's norm."""
    model, (x, target) = network("lenet5"), batch("lenet5")
    with library.taken_over():
        function = getattr(convolution.ops, part)
        right = getattr(function, attribute)

        def wrong(*args):
            y = right(*args)
            y.flatten()[-1] += 1e-3 * y.norm()
            return y

        monkeypatch.setattr(function, attribute, wrong)
        verification = verify(model, x, target, "lenet5")
    assert not verification.passed
    assert f"layer='c5', tensor='{tensor}'" in "\n".join(str(c) for c in verification.checks if not c.passed)
