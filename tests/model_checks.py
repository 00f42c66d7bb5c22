"""What the tests of the networks share: counting, filling with values, and comparing with a peer's network."""

import copy
import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn._config import disabled
from fastcnn.models import get_model
from fastcnn.models.verify import relative_error


def on_meta(name, **options):
    """The network without memory behind its parameters."""
    with torch.device("meta"):
        return get_model(name, **options)


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(name, size):
    """Of convolutions and linear layers for one image of size x size; a FLOP counter counts each as two operations."""
    with FlopCounterMode(display=False) as counter:
        on_meta(name).eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2


def output_shapes(name, size, layers):
    """The shapes, without the batch, that these submodules give for one image of size x size."""
    model, shapes = on_meta(name).eval(), {}

    def keep(layer):
        return lambda module, args, output: shapes.__setitem__(layer, tuple(output.shape[1:]))

    for layer in layers:
        model.get_submodule(layer).register_forward_hook(keep(layer))
    model(torch.empty(1, 3, size, size, device="meta"))
    return shapes


def assert_same_state_dict(name, peer):
    """Keys in the same order, so that an optimizer's state is alike, too, and a strict load both ways."""
    ours, peer = on_meta(name), copy.deepcopy(peer)
    assert list(ours.state_dict()) == list(peer.state_dict())
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in peer.named_parameters()]
    ours.load_state_dict(peer.state_dict(), assign=True)
    peer.load_state_dict(on_meta(name).state_dict(), assign=True)


@torch.no_grad()
def filled(model, dtype=torch.float32):
    """A network made on the meta device, on the CPU with random values; statistics and affine parameters are no 0 or 1.

    Weights are uniform with the variance that keeps activations' through a ReLU.
    """
    model = model.to(dtype).to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = math.sqrt(6 / module.weight[0].numel())
            module.weight.uniform_(-bound, bound)
            if module.bias is not None:
                module.bias.uniform_(-0.1, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.0)
            module.bias.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(3)
    return model


def assert_same_logits(name, peer, x):
    """With the peer's state dict, the float32 logits agree to a relative 1e-4 (spec, 1.12)."""
    peer = filled(peer).eval()
    ours = on_meta(name).eval()
    ours.load_state_dict(peer.state_dict(), assign=True)
    with torch.no_grad():
        want = peer(x)
        assert want.std() > 0
        assert relative_error(ours(x), want) < 1e-4


def assert_trains_alike(ours, peer, x):
    """Training: logits, gradients and running statistics. In float64, whose rounding errors are beside the point: even
    where a network multiplies them by 1e5, they stay below 1e-9."""
    peer = filled(peer, torch.float64).train()
    ours = ours.to(torch.float64).to_empty(device="cpu").train()
    ours.load_state_dict(peer.state_dict())
    x = x.double()
    for model in (ours, peer):
        y = model(x)
        (y @ torch.linspace(-1, 1, y.shape[-1], dtype=torch.float64)).sum().backward()
    for (key, parameter), other in zip(ours.named_parameters(), peer.parameters(), strict=True):
        assert relative_error(parameter.grad, other.grad) < 1e-9, key
    for key, value in peer.state_dict().items():
        assert relative_error(ours.state_dict()[key], value) < 1e-9, key


def assert_gradients(name, size, classes):
    """One float32 training step at a reduced size: logits of the right shape, and a gradient for every parameter."""
    model = filled(on_meta(name)).train()
    y = model(torch.randn(4, 3, size, size))
    nn.functional.cross_entropy(y, torch.arange(4)).backward()
    assert y.shape == (4, classes)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def assert_trains(model, x, classes=10):
    """A training step on fastcnn's kernels: logits and gradients as stock PyTorch's, in float64 as above."""
    stock = copy.deepcopy(model)
    torch.manual_seed(1)
    y = model(x)
    assert y.shape == (len(x), classes)
    weights = torch.linspace(-1, 1, classes, dtype=x.dtype)
    (y @ weights).sum().backward()
    with disabled():
        torch.manual_seed(1)
        z = stock(x)
        (z @ weights).sum().backward()
    assert relative_error(y, z) < 1e-9
    for (key, parameter), other in zip(model.named_parameters(), stock.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), key
        if other.grad is not None:  # 0, but for stock PyTorch's rounding, for a bias that is normalized away
            difference, size = ((t**2).sum().sqrt() for t in (parameter.grad - other.grad, other.grad))
            assert difference < 1e-9 * (size + 1), key
