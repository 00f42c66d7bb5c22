"""What each layer of a network costs: sizes, parameters, multiply-adds, receptive field; and the network's depth."""

import copy
import math
import weakref
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn import nn as fnn

from .layers import record_calls

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """One call of a module without children, for one image."""

    name: str
    type: str
    geometry: str  # of its window: '3x3, stride 2', '' where it has none
    output: tuple[int, ...]  # without the batch
    activations: int  # values of the output
    bytes: int  # of the output
    parameters: int
    macs: int
    in_place: bool  # could overwrite its input: ReLU, dropout, pooling of windows of one
    receptive_field: int | None  # rows of the input that a value depends on; None: all of them


@dataclass(frozen=True)
class Summary:
    """A network's layers in the order of their calls, and their sums; `depth` counts the convolutions and linear layers
    on the longest path."""

    model: str
    input: tuple[int, ...]
    layers: list[Layer]
    parameters: int
    macs: int
    depth: int

    @property
    def activations(self) -> int:
        """Values that a pass writes: the input's and those of all layers that cannot work in place."""
        return math.prod(self.input) + sum(layer.activations for layer in self.layers if not layer.in_place)

    @property
    def activation_bytes(self) -> int:
        """Of these values in float32; training keeps a gradient of each, too, and needs twice as much."""
        return 4 * self.activations

    def to_dict(self) -> dict:
        totals = {"activations": self.activations, "activation_bytes": self.activation_bytes, "flops": 2 * self.macs}
        layers = [{**asdict(layer), "flops": 2 * layer.macs} for layer in self.layers]
        return {**asdict(self), "layers": layers, **totals}


@dataclass(frozen=True)
class _Reach:
    """What a tensor's values depend on: rows of the input, the distance of neighbours there, layers passed."""

    field: float = 1
    jump: int = 1
    depth: int = 0

    def window(self, kernel: int, stride: int, dilation: int = 1) -> "_Reach":
        return _Reach(self.field + (kernel - 1) * dilation * self.jump, self.jump * stride, self.depth)

    def deeper(self) -> "_Reach":
        return _Reach(self.field, self.jump, self.depth + 1)


_WHOLE = (aten._adaptive_avg_pool2d.default, aten.mean.dim)
_LINEAR = (aten.addmm.default, aten.mm.default, aten.bmm.default, aten.linear.default)


class _Tracker(TorchDispatchMode):
    """Follows every tensor back to the input, through whatever operations the network is written in."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.alive: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary({id(x): x})
        self.reach = {id(x): _Reach()}  # by id, which counts while that tensor is alive
        self.deepest = 0

    def of(self, t: Tensor) -> _Reach | None:
        return self.reach.get(id(t)) if self.alive.get(id(t)) is t else None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = [r for a in pytree.tree_leaves(args) if isinstance(a, Tensor) and (r := self.of(a)) is not None]
        if not known:
            return out
        joined = _Reach(max(r.field for r in known), max(r.jump for r in known), max(r.depth for r in known))
        found = _after(func, args, joined)
        self.deepest = max(self.deepest, found.depth)
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self.alive[id(t)], self.reach[id(t)] = t, found
        return out


def _after(func, args, reach: _Reach) -> _Reach:
    """What the output of one operation on tensors of this reach depends on; rows stand for columns, too."""

    def first(i: int, default: int = 1) -> int:
        value = list(args[i]) if len(args) > i else []
        return value[0] if value else default

    if func is aten.convolution.default:
        return reach.window(args[1].shape[2], first(3), first(5)).deeper()
    if func is aten.max_pool2d_with_indices.default:
        return reach.window(first(1), first(2, first(1)), first(4))
    if func is aten.avg_pool2d.default:
        return reach.window(first(1), first(2, first(1)))
    if func is aten.im2col.default:
        return reach.window(first(1), first(4), first(2))
    if func in _LINEAR:
        return _Reach(math.inf, reach.jump, reach.depth + 1)
    if func in _WHOLE and not (func is aten.mean.dim and len(args[1]) == 1 and args[1][0] in (0, 1)):
        return _Reach(math.inf, reach.jump, reach.depth)
    return reach


def _macs(module: nn.Module, output: Tensor) -> int:
    """Multiply-adds of one image; normalization, activation and pooling have none by this count."""
    weight = getattr(module, "weight", None)
    per_image = math.prod(output.shape[1:])
    if isinstance(module, nn.Linear):
        return per_image * module.in_features
    if not isinstance(weight, Tensor) or weight.dim() < 3:
        return 0
    if isinstance(module, fnn.SparseConv2d):  # one kernel for each link
        return weight.numel() * math.prod(output.shape[2:])
    if weight.dim() == 6:  # unshared: one filter for each output
        return weight.numel()
    if weight.dim() == 4:
        return per_image * weight[0].numel()
    return 0


def _geometry(module: nn.Module) -> str:
    def pair(name: str) -> tuple[int, ...]:
        value = getattr(module, name, 0)
        return tuple(value) if isinstance(value, (tuple, list)) else (value, value)

    def short(values: tuple[int, ...]) -> str:
        return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

    if not hasattr(module, "kernel_size"):
        return ""
    parts = ["x".join(map(str, pair("kernel_size")))]
    for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if hasattr(module, name) and set(pair(name)) != {usual}:
            parts.append(f"{name} {short(pair(name))}")
    groups = getattr(module, "groups", 1)
    return ", ".join([*parts, *([f"{groups} groups"] if groups > 1 else [])])


def _in_place(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    same = isinstance(x, Tensor) and x.shape == y.shape
    return isinstance(module, (nn.ReLU, nn.Dropout, nn.Identity)) or (
        same and isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d))
    )


def summarize(model: nn.Module, shape: tuple[int, ...], name: str = "model") -> Summary:
    """The summary of `model` in evaluation mode for an input of `shape`, batch first. Computed without its values: a
    copy of the model on the meta device is run."""
    x = torch.empty(shape, device="meta")
    own = copy.deepcopy(model).to("meta").eval()
    layers = []
    tracker = _Tracker(x)
    with torch.no_grad(), record_calls(own) as calls, tracker:
        own(x)
    counted: set[int] = set()
    for call in calls:
        if not isinstance(call.output, Tensor):
            continue
        parameters = 0 if id(call.module) in counted else sum(p.numel() for p in call.module.parameters())
        counted.add(id(call.module))
        reach = tracker.of(call.output)
        whole = reach is None or math.isinf(reach.field)
        activations = math.prod(call.output.shape[1:])
        layers.append(
            Layer(
                call.name,
                type(call.module).__name__,
                _geometry(call.module),
                tuple(call.output.shape[1:]),
                activations,
                activations * call.output.element_size(),
                parameters,
                _macs(call.module, call.output),
                _in_place(call.module, call.input, call.output),
                None if whole or reach is None else int(reach.field),
            )
        )
    total = sum(p.numel() for p in model.parameters())
    return Summary(name, tuple(shape[1:]), layers, total, sum(layer.macs for layer in layers), tracker.deepest)
