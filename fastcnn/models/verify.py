"""Is a network computed rightly? fastcnn's and stock PyTorch's float32 against a float64 run of the same code."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcnn import functional as F
from fastcnn import nn as fnn
from fastcnn._config import config, disabled

from ._registry import default_classes
from .fractalnet import FractalNet
from .observe import FUNCTIONS, Arguments, Decision, Function, OpCall, call_decided, decision_of, observed, run
from .resnet_cifar import StochasticBlock

Tensors = dict[str, Tensor]

NETWORK = "network"
HALF_ULP = 2.0**-24  # float32 rounds to within this fraction


@dataclass(frozen=True)
class Check:
    """One compared tensor: root mean square errors relative to the float64 tensor's root mean square."""

    layer: str  # NETWORK for the network as a whole
    tensor: str  # 'output', 'loss', 'weight gradient', 'running_mean', 'inference output', ...
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


# What draws random numbers while training; all of them are left in evaluation mode.
_CHANCE = (
    nn.modules.dropout._DropoutNd, fnn.StochasticDepth, fnn.DropPath, StochasticBlock, FractalNet,
)  # fmt: skip
_STATISTICS = ("running_mean", "running_var")


def _train_without_chance(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if isinstance(module, _CHANCE):
            module.training = False


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def settle_statistics(model: nn.Module, x: Tensor) -> None:
    """Gives batch normalizations that have seen no batch the statistics of this one, so that inference makes sense:
    with the initial 0 and 1 the values of the deepest networks overflow."""
    fresh = [norm for norm in _batch_norms(model) if norm.num_batches_tracked == 0]
    if not fresh:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in fresh]
    _train_without_chance(model)
    for norm in _batch_norms(model):
        norm.training = norm in fresh
    for norm in fresh:
        norm.momentum = 1.0  # type: ignore[assignment]
    with disabled():
        model(x)
    for norm, momentum in zip(fresh, momenta):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training


def _bounds(call: OpCall) -> dict[str, float]:
    """rounding_bound of the sums in the call's output and input gradient, and under '' in a parameter's gradient."""
    x, weight = call.arguments["input"], call.arguments.get("weight")
    if (
        weight is None or weight.dim() < 2
    ):  # pooling, normalization, subsampling: a window, or what an adaptive pool has
        window = call.arguments.get("kernel_size") or call.arguments.get("size") or 0
        area = math.prod(window) if isinstance(window, tuple) else window**2
        per_output = per_input = max(area, x.numel() // call.output.numel())
    elif call.function is F.sparse_conv2d:
        per_output = per_input = weight.numel()  # no map has more links than there are
    elif call.function is F.local_conv2d:
        taps = math.prod(weight.shape[-2:])
        per_output, per_input = taps * weight.shape[3], taps * weight.shape[2]
    else:
        per_output = weight[0].numel()
        per_input = weight.numel() // weight.shape[1] // call.arguments.get("groups", 1)
    channels = call.output.shape[-3] if call.output.dim() >= 3 else call.output.shape[-1]
    per_parameter = call.output.numel() // channels  # batch and positions
    terms = {"output": per_output, "input gradient": per_input, "": per_parameter}
    bounds = {tensor: rounding_bound(count) for tensor, count in terms.items()}
    if call.arguments.get("training"):  # every gradient depends on the normalized output of the convolution, too
        bounds |= {tensor: bounds[tensor] + bounds["output"] for tensor in ("input gradient", "")}
    return bounds


NO_GRADIENT = 1e-9  # of all gradients' norm, below which a gradient is zero but for float64's own rounding


def _errors(actual: Tensors, reference: Tensors) -> dict[str, float]:
    """Of every tensor of the reference; one that is not there is infinitely wrong.

    The gradient of a bias that normalization takes away again is zero: its error is relative to all gradients' norm.
    """
    norms = [g.double().norm() for tensor, g in reference.items() if tensor.endswith("gradient")]
    every = torch.stack(norms).norm().item() if norms else 0.0
    errors = {}
    for tensor, expected in reference.items():
        size = expected.double().norm().item()
        if tensor not in actual:
            errors[tensor] = math.inf
        elif tensor.endswith("gradient") and size < NO_GRADIENT * every:
            errors[tensor] = (actual[tensor].double() - expected).norm().item() / every
        else:
            errors[tensor] = relative_error(actual[tensor], expected)
    return errors


def _checks(
    layer: str, fast: dict[str, float], stock: dict[str, float], bounds: dict[str, float], slack: float = 4
) -> list[Check]:
    # a sum that cancels has a larger relative error than its bound, in stock PyTorch just as here
    return [
        Check(layer, tensor, error, stock[tensor], max(bounds.get(tensor, bounds[""]), slack * stock[tensor]))
        for tensor, error in fast.items()
    ]


def _network_slack() -> float:
    """By what factor a whole network's error may exceed stock PyTorch's where many layers amplify it: each layer's may
    by 2.5, but with direct sums only."""
    return 4 if config.accuracy == "strict" else 4 * 2.5


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _record(model: nn.Module, calls: list[OpCall]):
    """Runs the calls as they are and keeps them, without the statistics that they change."""

    def on_call(layer: str, function: Function, arguments: Arguments):
        output = run(function, arguments)
        calls.append(OpCall(layer, function, arguments, output))
        return output

    return observed(model, on_call)


def _run_call(call: OpCall, arguments: Arguments, gradient: Tensor | None, decision: Decision | None = None):
    """Output, changed statistics and gradients of one call, what it decided, and its output by its own decisions."""
    arguments = {
        name: value.clone() if name in _STATISTICS and _is_float(value) else value for name, value in arguments.items()
    }
    leaves = {}
    if gradient is not None:
        leaves = {
            name: value.detach().clone().requires_grad_()
            for name, value in arguments.items()
            if _is_float(value) and name not in _STATISTICS
        }
        arguments |= leaves
    if decision is None:
        own = output = call.function(**arguments)
    else:
        output, own = call_decided(call.function, arguments, decision)
    results = {"output": output.detach()}
    if arguments.get("training"):
        results |= {name: arguments[name] for name in _STATISTICS if arguments[name] is not None}
    if gradient is not None:
        gradients = torch.autograd.grad(output, list(leaves.values()), gradient)
        results |= {f"{name} gradient": g for name, g in zip(leaves, gradients)}
    return results, decision_of(call.function, arguments, output), own.detach()


def _verify_call(call: OpCall, arguments: Arguments, gradient: Tensor | None, bounds: dict[str, float], kind: str):
    """The checks of one call for float32 arguments, against float64 with the same ReLUs and maxima."""
    exact_arguments = {name: value.double() if _is_float(value) else value for name, value in arguments.items()}
    errors: list[dict[str, float]] = []
    exact, decided = None, Decision()
    for run_stock in (False, True):
        with disabled() if run_stock else contextlib.nullcontext():
            actual, decision, _ = _run_call(call, arguments, gradient)
        if exact is None or not decision.same(decided):
            decided = decision
            with disabled():
                exact, _, own = _run_call(
                    call, exact_arguments, None if gradient is None else gradient.double(), decided
                )
            difference = relative_error(exact["output"], own)
        found = _errors(actual, exact)
        if decision != Decision():
            found["decisions"] = difference
        errors.append({f"{kind}{tensor}": error for tensor, error in found.items()})
    bounds = {f"{kind}{tensor}" if tensor else "": bound for tensor, bound in bounds.items()}
    return _checks(call.layer, errors[0], errors[1], {**bounds, f"{kind}decisions": bounds[f"{kind}output"]})


def _in_float32(call: OpCall, twins: dict[int, Tensor]) -> Arguments:
    """The call's arguments, rounded; of parameters and statistics the float32 network's own, which are kept packed."""
    return {
        name: twins.get(id(value), value.detach().float()) if _is_float(value) else value
        for name, value in call.arguments.items()
    }


def _twins(reference: nn.Module, model: nn.Module) -> dict[int, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    pairs = [*reference.named_parameters(), *reference.named_buffers()]
    return {id(tensor): tensors[key] for key, tensor in pairs}


def _outputs(output: Tensor | tuple[Tensor | None, ...]) -> Tensors:
    """The network's output and, in training, those of auxiliary classifiers, by name."""
    if isinstance(output, Tensor):
        return {"output": output.detach()}
    names = ("output", *getattr(output, "_fields", [f"output {i}" for i in range(len(output))])[1:])
    return {name: tensor.detach() for name, tensor in zip(names, output) if tensor is not None}


def _run_network(model: nn.Module, x: Tensor, target: Tensor) -> Tensors:
    """Outputs, loss, every parameter's gradient and the running statistics after one training step."""
    output = model(x)
    loss = loss_of(model, output, target)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    results = {**_outputs(output), "loss": loss.detach()}
    results |= {f"{name} gradient": g for name, g in zip(parameters, gradients) if g is not None}
    return results | {name: b for name, b in model.named_buffers() if name.endswith(_STATISTICS)}


def _training_run(model: nn.Module, x: Tensor, target: Tensor, run_stock: bool) -> dict[str, float]:
    """The errors of a float32 step against a float64 step with the same decisions."""
    own, decisions = copy.deepcopy(model), []  # type: nn.Module, list[Decision]

    def decide(layer: str, function: Function, arguments: Arguments):
        output = run(function, arguments)
        decisions.append(decision_of(function, arguments, output))
        return output

    with disabled() if run_stock else contextlib.nullcontext(), observed(own, decide):
        results = _run_network(own, x, target)

    reference, left = copy.deepcopy(model).double(), iter(decisions)
    worst = 0.0

    def follow(layer: str, function: Function, arguments: Arguments):
        nonlocal worst
        decision = next(left)
        output, unbound = call_decided(function, arguments, decision)
        if decision != Decision():
            worst = max(worst, relative_error(output, unbound))
        return output

    with disabled(), observed(reference, follow):
        expected = _run_network(reference, x.double(), target)
    return {**_errors(results, expected), "decisions": worst}


def _verify_training(model: nn.Module, x: Tensor, target: Tensor) -> list[Check]:
    reference, calls = copy.deepcopy(model).double(), []  # type: nn.Module, list[OpCall]
    twins = _twins(reference, model)
    with disabled(), _record(reference, calls):
        loss = loss_of(reference, reference(x.double().requires_grad_()), target)
        gradients = torch.autograd.grad(loss, [call.output for call in calls], allow_unused=True)
    del loss
    checks: list[Check] = []
    accumulated = 0.0  # the rounding errors of all layers, there and back, are independent: they add up in square
    for call, gradient in zip(calls, gradients):
        bounds = _bounds(call)
        accumulated = math.hypot(accumulated, *bounds.values())
        if call.function in FUNCTIONS:
            rounded = None if gradient is None else gradient.float()
            checks += _verify_call(call, _in_float32(call, twins), rounded, bounds, "")
    del reference, calls, gradients
    fast, stock = (_training_run(model, x, target, run_stock) for run_stock in (False, True))
    # A value on the other side of zero is off by less than the error of all values there; and the loss, one number, may
    # be right by chance in stock PyTorch: it is as wrong as the output that it is made of.
    as_output = max(accumulated, _network_slack() * stock["output"])
    bounds = {"": accumulated, "decisions": as_output, "loss": as_output}
    return checks + _checks(NETWORK, fast, stock, bounds, _network_slack())


@torch.no_grad()
def _verify_inference(model: nn.Module, x: Tensor) -> list[Check]:
    model.eval()
    reference, calls = copy.deepcopy(model).double(), []  # type: nn.Module, list[OpCall]
    twins = _twins(reference, model)
    with disabled(), _record(reference, calls):
        exact = _outputs(reference(x.double()))
    checks: list[Check] = []
    accumulated = 0.0
    for call in calls:
        bounds = _bounds(call)
        accumulated = math.hypot(accumulated, bounds["output"])
        if call.function in FUNCTIONS:
            checks += _verify_call(call, _in_float32(call, twins), None, bounds, "inference ")
    fast = _errors(_outputs(model(x)), exact)
    with disabled():
        stock = _errors(_outputs(model(x)), exact)
    fast, stock = ({f"inference {name}": error for name, error in errors.items()} for errors in (fast, stock))
    return checks + _checks(NETWORK, fast, stock, {"": accumulated}, _network_slack())


def verify(model: nn.Module, x: Tensor, target: Tensor, name: str = "model") -> Verification:
    """Compares a float32 CPU network's outputs, loss and gradients with stock PyTorch's and with float64's.

    x and target are one batch. A training step without dropout and its like, and inference, are compared as a whole:
    outputs with those of auxiliary classifiers, loss, every parameter's gradient, running statistics; and call by call
    of fastcnn's functions, fused as the network calls them: each gets the arguments and the output gradient that it had
    in the float64 run, rounded to float32, and must give output and gradients to within rounding.

    Where float32 rounding tips a ReLU or a maximum the other way, a whole term of a gradient moves, by 2e-2 of conv1's
    in stock PyTorch's AlexNet. That is no error: both are gradients of the same function at inputs that are equal to
    rounding. So float64 decides as the float32 run did, and 'decisions' is by how much that changed the worst output.

    Batch normalizations that have seen no batch take this one's statistics (settle_statistics). The model stays as it
    was.
    """
    own = copy.deepcopy(model)
    settle_statistics(own, x)
    _train_without_chance(own)
    checks = _verify_training(own, x, target)
    return Verification(name, checks + _verify_inference(own, x))


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
