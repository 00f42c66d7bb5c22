"""The calls of fastcnn's functions while a network runs, fused as they are, and what ReLUs and maxima decide there.

Hooks would not do: a convolution with a hook is called as a module of its own, not fused with what follows it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastcnn import functional as F

Function = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass
class OpCall:
    """One call of a function during a forward pass."""

    layer: str  # the module that its weight belongs to, or that called it
    function: Function
    arguments: Arguments  # by name
    output: Tensor


@dataclass(frozen=True)
class Decision:
    """Which inputs of a call's ReLU are positive, and where the maxima of its windows are; None where it has none."""

    positive: Tensor | None = None
    maxima: Tensor | None = None

    def same(self, other: "Decision") -> bool:
        pairs = ((self.positive, other.positive), (self.maxima, other.maxima))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


FUNCTIONS: tuple[Function, ...] = (
    F.conv2d, F.conv2d_bn_relu, F.conv_transpose2d, F.local_conv2d, F.sparse_conv2d, F.subsample2d, F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d, F.local_response_norm, F.lrn_max_pool2d, F.batch_norm_relu,
)  # fmt: skip
_RECTIFIERS: tuple[Function, ...] = (nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_IN_PLACE: tuple[Function, ...] = (torch.relu_, Tensor.relu_)
_MAX_POOLS: tuple[Function, ...] = (F.max_pool2d, nn.functional.max_pool2d)  # type: ignore[assignment]


def _relu(input, inplace=False): ...


def _linear(input, weight, bias=None): ...


_SIGNATURES = {
    **{function: inspect.signature(function) for function in FUNCTIONS},
    **dict.fromkeys(_RECTIFIERS, inspect.signature(_relu)),
    **dict.fromkeys(_MAX_POOLS, inspect.signature(F.max_pool2d)),
    nn.functional.linear: inspect.signature(_linear),
}


def run(function: Function, arguments: Arguments) -> Any:
    """function(**arguments), also for those of torch's that take no names."""
    if function in FUNCTIONS:
        return function(**arguments)
    values = list(arguments.values())
    return function(*values[:1] if function in _RECTIFIERS[1:] else values)


def decision_of(function: Function, arguments: Arguments, output: Tensor) -> Decision:
    """What this call decided, from its output or, where that does not show it, from its input."""
    if function in _RECTIFIERS:
        return Decision(output > 0)
    if function in _MAX_POOLS:
        return Decision(maxima=_maxima(function, arguments))
    rectified = arguments.get("activation") == "relu"
    if function is F.local_response_norm:
        return Decision(arguments["input"] > 0 if rectified else None)
    if function is F.lrn_max_pool2d:  # to the bit the two functions
        norm, pool = _lrn_and_pool(arguments)
        pool["input"] = F.local_response_norm(**norm)
        return Decision(arguments["input"] > 0 if rectified else None, _maxima(F.max_pool2d, pool))
    return Decision(output > 0 if rectified else None)


@torch.no_grad()
def _maxima(function: Function, arguments: Arguments) -> Tensor:
    return function(**{**arguments, "return_indices": True})[1]


def _lrn_and_pool(arguments: Arguments) -> tuple[Arguments, Arguments]:
    pool_names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    norm = {name: value for name, value in arguments.items() if name not in pool_names}
    return norm, {name: arguments[name] for name in pool_names}


def call_decided(function: Function, arguments: Arguments, decision: Decision) -> tuple[Tensor, Tensor]:
    """The call's output with another's decisions, and what it would have been with those of its own."""
    if decision.positive is None and decision.maxima is None:
        output = run(function, arguments)
        return output, output
    if function in _RECTIFIERS:
        x = arguments["input"]
        own = x.relu()
        in_place = arguments["inplace"] or function in _IN_PLACE
        return (x.mul_(decision.positive) if in_place else x * decision.positive), own
    if function in _MAX_POOLS:
        own = function(**{**arguments, "return_indices": False})
        x, maxima = arguments["input"], decision.maxima
        assert maxima is not None
        chosen = x.flatten(-2).gather(-1, maxima.flatten(-2)).view_as(own)
        return ((chosen, maxima) if arguments["return_indices"] else chosen), own  # type: ignore[return-value]
    if function is F.lrn_max_pool2d:
        norm, pool = _lrn_and_pool(arguments)
        normalized, own = call_decided(F.local_response_norm, norm, Decision(decision.positive))
        chosen = call_decided(
            F.max_pool2d, {**pool, "input": normalized, "return_indices": False}, Decision(maxima=decision.maxima)
        )[0]
        return chosen, F.max_pool2d(own, **pool)
    if function is F.local_response_norm:
        x, plain = arguments["input"], {**arguments, "activation": None}
        return function(**{**plain, "input": x * decision.positive}), function(**arguments)
    linear = function(**{**arguments, "activation": None})
    return linear * decision.positive, linear.relu()


class _Mode(TorchFunctionMode):
    """Hands every call of a function in _SIGNATURES to `on_call` with the layer's name."""

    def __init__(self, model: nn.Module, on_call: Callable[[str, Function, Arguments], Any]):
        super().__init__()
        self.owner = {id(p): key.rpartition(".")[0] for key, p in model.named_parameters()}
        self.on_call = on_call
        self.calling = ""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in _SIGNATURES:
            return func(*args, **(kwargs or {}))
        bound = _SIGNATURES[func].bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        layer = self.owner.get(id(bound.arguments.get("weight")), self.calling)
        return self.on_call(layer, func, dict(bound.arguments))


@contextmanager
def observed(model: nn.Module, on_call: Callable[[str, Function, Arguments], Any]) -> Iterator[None]:
    """Within the block, on_call(layer, function, arguments) computes the output of every such call of the model."""
    mode = _Mode(model, on_call)

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: setattr(mode, "calling", name)

    # Pooling and normalization have no weight to be known by; no module of these is fused, which a hook would prevent.
    nameless = [
        module.register_forward_pre_hook(enter(name))
        for name, module in model.named_modules()
        if type(module).__module__.startswith("fastcnn.nn") and not any(True for _ in module.parameters())
    ]
    try:
        with mode:
            yield
    finally:
        for handle in nameless:
            handle.remove()
