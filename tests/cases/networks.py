"""What the tests of every family of networks do: count, fill with values, and compare with another library's."""

import functools
import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn._config import disabled
from fastcnn.models import get_model
from fastcnn.models.verify import relative_error

# spec/architectures.md 1.12: "eval logits within 1e-4 relative (fp32)"
TOLERANCE = 1e-4


def on_meta(build, *args, **kwargs) -> nn.Module:
    """The network without memory for its parameters."""
    if isinstance(build, str):
        args, build = (build, *args), get_model
    with torch.device("meta"):
        return build(*args, **kwargs)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module, *shape: int) -> int:
    """Of the convolutions and linear layers, for one image in eval mode; a FLOP counter counts each as two."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *shape, device="meta"))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def output_shapes(model: nn.Module, *shape: int) -> dict[str, tuple[int, ...]]:
    """Of every module in eval mode, without the batch, by the module's name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str):
        return lambda module, args, output: shapes.__setitem__(name, tuple(output.shape[1:]))

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    model.eval()(torch.empty(1, *shape, device="meta"))
    for handle in handles:
        handle.remove()
    return shapes


@functools.lru_cache(maxsize=4)
def _linear(shape: tuple[int, int]) -> Tensor:
    """One matrix for all networks that have it: VGG's largest alone takes a second to draw."""
    return torch.empty(shape).uniform_(-1, 1).mul_(math.sqrt(3 / shape[1]))


def values(model: nn.Module) -> dict[str, Tensor]:
    """A state dict of random weights that keep the size of the activations, and of statistics far from 0 and 1."""
    state = {}
    for key, t in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif t.dim() == 2:
            state[key] = _linear(tuple(t.shape))
        elif t.dim() > 2:
            state[key] = torch.randn(t.shape) * math.sqrt(2 / t[0].numel())
        elif key.endswith("running_var") or (key.endswith("weight")):
            state[key] = torch.rand(t.shape) + 0.5
        else:
            state[key] = torch.randn(t.shape) * 0.2
    return state


def fill(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The network built by on_meta with these values, its statistics copied; without dropout."""
    state = {key: t.clone() if "running" in key or "tracked" in key else t for key, t in state.items()}
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, and the statistics after them."""
    output = model(x)
    return [*([output] if isinstance(output, Tensor) else output), *model.buffers()]


def _double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.double() if t.is_floating_point() else t for key, t in state.items()}


@torch.no_grad()
def check_same(ours: nn.Module, theirs: nn.Module, x: Tensor, train: bool) -> None:
    """Two networks of on_meta: the state dicts of each load into the other, and both compute the same.

    In training, the statistics of few values amplify rounding errors with each layer, up to 1e-3 in stock PyTorch's
    Inception v4: there the reference is float64, and stock's own error, fourfold as in `verify`, a second tolerance.
    """
    state = values(theirs)
    ours.load_state_dict(state, assign=True)
    fill(theirs, ours.state_dict())
    fill(ours, theirs.state_dict())
    actual, expected = ours.train(train)(x), theirs.train(train)(x)
    assert type(actual).__name__ == type(expected).__name__
    assert getattr(actual, "_fields", None) == getattr(expected, "_fields", None)
    if not train:
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < TOLERANCE
        return
    actual, expected = (_results(fill(model, state), x) for model in (ours, theirs))
    exact = _results(fill(theirs, _double(state)), x.double())
    for y, stock, reference in zip(actual, expected, exact, strict=True):
        assert y.shape == reference.shape
        assert relative_error(y, reference) < max(TOLERANCE, 4 * relative_error(stock, reference))


def check_trains(model: nn.Module, x: Tensor) -> None:
    """A network of on_meta trains: stock PyTorch has the same loss, and every parameter gets a finite gradient."""
    state = values(model)
    target = torch.arange(len(x))

    def loss_of(model: nn.Module) -> Tensor:
        output = model(x)
        return model.loss(output, target) if hasattr(model, "loss") else nn.functional.cross_entropy(output, target)

    with disabled(), torch.no_grad():
        expected = loss_of(fill(model, state).train())
    loss = loss_of(fill(model, state).train())
    # Ten times check_same's: a loss, with float32 and float64 of stock PyTorch 4e-5 apart in Inception v4.
    assert abs(loss.item() - expected.item()) < 10 * TOLERANCE * abs(expected.item())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("bias"), name  # batch normalization takes a bias away
    model.zero_grad()
