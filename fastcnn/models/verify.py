"""Is a network computed rightly? fastcnn's and stock PyTorch's float32 against a float64 run of the same code."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcnn import functional as F
from fastcnn import nn as fnn
from fastcnn._config import disabled

from ._registry import default_classes
from .layers import Call, record_calls

Tensors = dict[str, Tensor]

NETWORK = "network"
HALF_ULP = 2.0**-24  # float32 rounds to within this fraction


@dataclass(frozen=True)
class Check:
    """One compared tensor: root mean square errors relative to the float64 tensor's root mean square."""

    layer: str  # NETWORK for the network as a whole
    tensor: str  # 'output', 'loss', 'input gradient', 'weight gradient', ...
    error: float
    stock_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    @property
    def severity(self) -> float:
        """The error in units of its tolerance; infinite for NaN."""
        return math.inf if math.isnan(self.error) else self.error / self.tolerance


@dataclass(frozen=True)
class Verification:
    """All checks of one network."""

    model: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        return max(self.checks, key=lambda check: check.severity)


def loss_of(model: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """The network's own loss where it has one (LeNet-5), else cross entropy."""
    own = getattr(model, "loss", None)
    return own(output, target) if own else nn.functional.cross_entropy(output, target)


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """||actual - reference|| / ||reference|| in float64; the plain difference where the reference is zero."""
    reference = reference.detach().double()
    difference = torch.linalg.vector_norm(actual.detach().double() - reference).item()
    size = torch.linalg.vector_norm(reference).item()
    return difference / size if size else difference


def rounding_bound(terms: float) -> float:
    """Twice the relative rms error of a float32 sum of `terms` products, plus a few roundings of the result.

    Added one by one, partial sums grow as sqrt(k) and each addition rounds by about 0.6 half-ulps of the partial sum:
    0.42 sqrt(terms) half-ulps in all. fastcnn's default accuracy allows itself 2.5 times that.
    """
    return 2 * HALF_ULP * (math.sqrt(terms) + 4)


def _bounds(module: nn.Module, call: Call) -> dict[str, float]:
    """rounding_bound of the sums in the layer's output and input gradient, and under '' in a parameter's gradient."""
    weight = getattr(module, "weight", None)
    if isinstance(module, fnn.SparseConv2d):
        per_output = per_input = module.weight.numel()  # no map has more links than there are
    elif isinstance(module, fnn.LocallyConnected2d):
        taps = math.prod(module.kernel_size)
        per_output, per_input = taps * module.in_channels, taps * module.out_channels
    elif isinstance(weight, Tensor) and weight.dim() > 1:
        per_output = weight[0].numel()
        per_input = weight.numel() // weight.shape[1] // getattr(module, "groups", 1)
    else:  # pooling, normalization, subsampling: a window, whose size an adaptive pool only has in its output's
        window: int | tuple[int, int] = getattr(module, "kernel_size", 0) or getattr(module, "size", 0)  # type: ignore
        area = math.prod(window) if isinstance(window, tuple) else window**2
        per_output = per_input = max(area, call.input.numel() // call.output.numel())
    channels = call.output.shape[-3] if call.output.dim() >= 3 else call.output.shape[-1]
    per_parameter = call.output.numel() // channels  # batch and positions
    terms = {"output": per_output, "input gradient": per_input, "": per_parameter}
    return {tensor: rounding_bound(count) for tensor, count in terms.items()}


def _run_layer(module: nn.Module, x: Tensor, output_gradient: Tensor) -> Tensors:
    """Output and all gradients of one layer for the given input and output gradient."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    output = module(x)
    output.backward(output_gradient)
    gradients = {f"{name} gradient": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), "input gradient": x.grad, **gradients}  # type: ignore[dict-item]


@contextlib.contextmanager
def _decided_as(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Within the block, rectifiers and maxima decide as in the recorded calls of the same network.

    Where float32 rounding tips a near-tie the other way, a whole term of a gradient moves, by 2e-2 of conv1's in stock
    PyTorch's AlexNet. That is no error: both are gradients of the same function at inputs that are equal to rounding.
    """
    seen: dict[str, list[Tensor]] = {}
    for call in calls:
        seen.setdefault(call.name, []).append(call.input.detach())

    def decide(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            (x,), then = args, seen[name].pop(0)
            if isinstance(module, nn.MaxPool2d):
                pool = copy.copy(module)
                pool.return_indices = True
                indices = pool.forward(then)[1]  # not a call, which would come back here
                return x.flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices)
            x = x * (then > 0)
            if isinstance(module, fnn.LocalResponseNorm):
                mode, groups = module.alpha_mode, module.groups
                return F.local_response_norm(
                    x, module.size, module.alpha, module.beta, module.k, alpha_mode=mode, groups=groups
                )
            return x

        return hook

    handles = [
        module.register_forward_hook(decide(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.ReLU, nn.MaxPool2d))
        or (isinstance(module, fnn.LocalResponseNorm) and module.activation == "relu")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_network(model: nn.Module, x: Tensor, target: Tensor) -> Tensors:
    """Output, loss and every parameter's gradient."""
    model.zero_grad()
    output = model(x)
    loss = loss_of(model, output, target)
    loss.backward()
    gradients = {f"{name} gradient": parameter.grad for name, parameter in model.named_parameters()}
    return {"output": output.detach(), "loss": loss.detach(), **gradients}  # type: ignore[dict-item]


def _errors(actual: Tensors, reference: Tensors) -> dict[str, float]:
    return {tensor: relative_error(actual[tensor], expected) for tensor, expected in reference.items()}


def _checks(layer: str, fast: dict[str, float], stock: dict[str, float], bounds: dict[str, float]) -> list[Check]:
    # a sum that cancels has a larger relative error than its bound, in stock PyTorch just as here
    return [
        Check(layer, tensor, error, stock[tensor], max(bounds.get(tensor, bounds[""]), 4 * stock[tensor]))
        for tensor, error in fast.items()
    ]


def verify(model: nn.Module, x: Tensor, target: Tensor, name: str = "model") -> Verification:
    """Compares a float32 CPU network's output, loss and gradients with stock PyTorch's and with float64's.

    x and target are one batch. The network runs in eval mode (no dropout), as a whole, where output, loss and every
    parameter's gradient are compared, and layer by layer: each of fastcnn's layers gets the input and the output
    gradient that it had in the float64 run, rounded to float32, and must give output and gradients to within rounding.
    """
    was_training = model.training
    model.eval()
    reference_model = copy.deepcopy(model).double()
    with disabled(), record_calls(reference_model) as calls:
        output = reference_model(x.double())
        loss = loss_of(reference_model, output, target)
        outputs = [call.output for call in calls]
        output_gradients = torch.autograd.grad(loss, outputs, retain_graph=True)

    modules = dict(model.named_modules())
    checks: list[Check] = []
    accumulated = 0.0  # the rounding errors of all layers, there and back, are independent: they add up in square
    for call, output_gradient in zip(calls, output_gradients):
        module = modules[call.name]
        bounds = _bounds(module, call)
        accumulated = math.hypot(accumulated, *bounds.values())
        if not type(module).__module__.startswith("fastcnn.nn"):
            continue
        inputs = call.input.detach().float(), output_gradient.float()
        fast = _run_layer(module, *inputs)
        with disabled():
            stock = _run_layer(module, *inputs)
            exact = _run_layer(call.module, inputs[0].double(), inputs[1].double())
        checks += _checks(call.name, _errors(fast, exact), _errors(stock, exact), bounds)

    errors: list[dict[str, float]] = []
    for run_stock in (False, True):
        with disabled() if run_stock else contextlib.nullcontext(), record_calls(model) as decisions:
            results = _run_network(model, x, target)
        with disabled(), _decided_as(reference_model, decisions):
            errors.append(_errors(results, _run_network(reference_model, x.double(), target)))
    checks += _checks(NETWORK, errors[0], errors[1], {"": accumulated})
    model.zero_grad()
    model.train(was_training)
    return Verification(name, checks)


# Inputs of other than 3x224x224.
_SHAPES = {
    **dict.fromkeys(("alexnet", "alexnet_1gpu", "alexnet_cs231n", "bvlc_alexnet"), (3, 227, 227)),
    **dict.fromkeys(("lenet5", "lenet5_dense"), (1, 32, 32)),
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "plain20", "plain56"), (3, 32, 32)),
    **dict.fromkeys(("resnet110_stochastic", "resnext29_8x64d", "resnext29_16x64d"), (3, 32, 32)),
    **dict.fromkeys(("resnetv2_164", "resnetv2_1001", "wrn_28_10", "wrn_16_8", "wrn_40_4"), (3, 32, 32)),
    **dict.fromkeys(("densenet40_12", "densenet_bc_100_12", "fractalnet20"), (3, 32, 32)),
    **dict.fromkeys(("conv_local_13pct", "conv_local_11pct", "nin_seed", "nin_cifar"), (3, 32, 32)),
    **dict.fromkeys(("inception_v3", "inception_v4", "inception_resnet_v1", "inception_resnet_v2"), (3, 299, 299)),
}


def example_batch(model_name: str, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A standard normal batch of the size that the model takes, and random targets among its classes."""
    shape = _SHAPES.get(model_name, (3, 224, 224))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator)
    return x, torch.randint(0, default_classes(model_name), (batch,), generator=generator)


@contextlib.contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Within the block torch's global generator starts from `seed`; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
