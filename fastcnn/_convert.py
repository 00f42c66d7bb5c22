"""Puts fastcnn's kernels under anybody's model, in place and reversibly.

A module keeps its identity: only its class changes, to fastcnn's subclass of what it was. Parameters, buffers, hooks,
sharing and train/eval mode are therefore untouched, and taking the class back undoes everything.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import nn
from .nn.conv_bn import fused_forward, hooked

_REPLACED = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    torch.nn.LocalResponseNorm: nn.LocalResponseNorm,
}


class _Fused(torch.nn.Module):
    """A member of a convolution, batch normalization and maybe ReLU that run as one while none of them has hooks."""

    _fastcnn_chain: tuple[torch.nn.Module, ...]

    def _live(self) -> bool:
        return not any(hooked(module) for module in self._fastcnn_chain)


class FusedConv2d(_Fused, nn.Conv2d):
    """The convolution that does the chain's work."""

    def forward(self, input):
        if not self._live():
            return super().forward(input)
        _, bn, *relu = self._fastcnn_chain
        return fused_forward(self, bn, input, None, bool(relu))


class _Done(_Fused):
    """A member whose work the convolution before it has done."""

    def forward(self, input):
        return input if self._live() else super().forward(input)


class FusedBatchNorm2d(_Done, torch.nn.BatchNorm2d):
    """The normalization of a chain."""


class FusedReLU(_Done, torch.nn.ReLU):
    """The activation of a chain."""


_FUSED = {torch.nn.Conv2d: FusedConv2d, torch.nn.BatchNorm2d: FusedBatchNorm2d, torch.nn.ReLU: FusedReLU}


@dataclass(frozen=True)
class Converted:
    """What became of one module."""

    name: str
    type: str
    replaced: bool
    by: str = ""
    reason: str = ""


@dataclass
class ConversionReport:
    """Every module without children, in the model's order; how the patterns were looked for; the check's error."""

    modules: list[Converted] = field(default_factory=list)
    tracing: str = ""
    error: float | None = None  # largest difference of an output, relative to that output's largest value
    verification: str = ""

    @property
    def replaced(self) -> int:
        return sum(m.replaced for m in self.modules)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{m.name or '(model)'}: {m.type} -> {m.by or 'unchanged: ' + m.reason}" for m in self.modules]
        lines += [f"{self.replaced} of {len(self.modules)} modules replaced", f"patterns: {self.tracing}"]
        return "\n".join([*lines, f"check: {self.verification}"])


def convert_(
    model: torch.nn.Module,
    *,
    filter_fn: Callable[[str, torch.nn.Module], bool] | None = None,
    fuse: bool = True,
    verify: bool = True,
    example: Any = None,
) -> ConversionReport:
    """Replaces convolution, pooling, LRN and convolution+BatchNorm2d(+ReLU) modules of `model` by fastcnn's, in place.

    filter_fn(name, module): which modules may be replaced; by default all. fuse: also chains of a convolution, its
    batch normalization and ReLU, where torch.fx can trace the model and each is called once. verify: compares outputs
    in evaluation mode before and after, on `example` (a tensor or a tuple of arguments; by default random images that
    the model's first convolution takes), and undoes the conversion with RuntimeError if they differ by more than 1e-3
    of their largest value (2e-2 in 16 bits). Subclasses, parametrized modules and modules prepared for quantization are
    left as they are; the report names the reason. `revert_` undoes all of it.
    """
    if any("_fastcnn_original" in vars(m) for m in model.modules()):
        raise ValueError("convert_: expected a model that is not converted; call revert_ first")
    report = ConversionReport()
    before = None
    if verify:
        example, before, report.verification = _outputs(model, example)
    chains, report.tracing = _chains(model, filter_fn) if fuse else ([], "not asked for")
    member = {id(m): chain for chain in chains for m in chain}
    for name, module in model.named_modules():
        if id(module) in member:
            report.modules.append(_fuse(name, module, member[id(module)]))
        elif not any(True for _ in module.children()) or type(module) in _REPLACED:
            report.modules.append(_replace(name, module, filter_fn))
    if before is not None:
        _, after, why = _outputs(model, example)
        report.error = _difference(before, after) if after is not None else float("inf")
        sixteen = any(t.dtype.itemsize == 2 for t in before)
        if not report.error <= (2e-2 if sixteen else 1e-3):
            revert_(model)
            raise RuntimeError(f"convert_: outputs differ by {report.error:.3g} of their largest value {why}; undone")
        report.verification = f"largest difference {report.error:.3g} of the largest value"
    return report


def revert_(model: torch.nn.Module) -> torch.nn.Module:
    """Undoes convert_ exactly; a model that was not converted stays as it is. Returns the model."""
    for module in model.modules():
        original = vars(module).pop("_fastcnn_original", None)
        if original is not None:
            module.__class__ = original
            vars(module).pop("_fastcnn_chain", None)
    return model


def _become(module: torch.nn.Module, cls: type) -> None:
    vars(module)["_fastcnn_original"] = type(module)
    module.__class__ = cls


def _replace(name: str, module: torch.nn.Module, filter_fn) -> Converted:
    kind = type(module)
    reason = _refusal(name, module, filter_fn)
    if reason:
        return Converted(name, kind.__name__, False, reason=reason)
    cls = _REPLACED[kind]
    _become(module, cls)
    return Converted(name, kind.__name__, True, f"fastcnn.nn.{cls.__name__}")


def _refusal(name: str, module: torch.nn.Module, filter_fn) -> str:
    """Why a module is left alone, or ''."""
    kind = type(module)
    if kind in _REPLACED:
        if getattr(module, "qconfig", None) is not None:
            return "prepared for quantization"
        return "" if filter_fn is None or filter_fn(name, module) else "filter_fn"
    if kind.__module__.startswith("fastcnn."):
        return "fastcnn's already"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    if isinstance(module, tuple(_REPLACED)):
        return f"a subclass with behaviour of its own ({kind.__module__}.{kind.__qualname__})"
    return "fastcnn has no kernel for it"


def _fuse(name: str, module: torch.nn.Module, chain: tuple[torch.nn.Module, ...]) -> Converted:
    kind = type(module)
    _become(module, _FUSED[kind])
    vars(module)["_fastcnn_chain"] = chain
    what = "conv2d_bn_relu" if len(chain) == 3 else "conv2d_bn_relu without ReLU"
    return Converted(name, kind.__name__, True, what if module is chain[0] else f"part of {what}")


def _chains(model: torch.nn.Module, filter_fn) -> tuple[list[tuple[torch.nn.Module, ...]], str]:
    """Convolutions whose one consumer is a batch normalization, and the ReLU that is that one's only consumer."""
    try:
        graph = torch.fx.Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises on proxies
        return [], f"not traceable ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    calls = Counter(id(model.get_submodule(n.target)) for n in graph.nodes if n.op == "call_module")
    names = {id(m): n for n, m in model.named_modules()}

    def only(node, kind) -> torch.nn.Module | None:
        """The module of a call of exactly this class, called nowhere else, without hooks."""
        if node.op != "call_module":
            return None
        module = model.get_submodule(node.target)
        plain = type(module) is kind and calls[id(module)] == 1 and not hooked(module)
        wanted = filter_fn is None or filter_fn(names[id(module)], module)
        return module if plain and wanted and getattr(module, "qconfig", None) is None else None

    chains: list[tuple[torch.nn.Module, ...]] = []
    for node in graph.nodes:
        conv = only(node, torch.nn.Conv2d)
        user = next(iter(node.users)) if conv is not None and len(node.users) == 1 else None
        bn = only(user, torch.nn.BatchNorm2d) if user is not None else None
        if conv is None or bn is None or user is None or bn.num_features != conv.out_channels:
            continue
        after = next(iter(user.users)) if len(user.users) == 1 else None
        relu = only(after, torch.nn.ReLU) if after is not None else None
        chains.append((conv, bn) if relu is None else (conv, bn, relu))
    return chains, f"traced: {len(chains)} chains"


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _outputs(model: torch.nn.Module, example: Any) -> tuple[Any, list[torch.Tensor] | None, str]:
    """The example, the model's floating-point outputs on it, and why there are none."""
    candidates = [example] if example is not None else _examples(model)
    why = "no convolution to take an image's channels from"
    with _evaluating(model):
        for candidate in candidates:
            torch.manual_seed(0)
            try:
                out = model(*candidate) if isinstance(candidate, tuple) else model(candidate)
            except Exception as error:
                if example is not None:
                    raise
                why = f"not checked: random images do not fit ({type(error).__name__}: {error}); give an example"
                continue
            tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            return candidate, tensors, ""
    return None, None, why


def _examples(model: torch.nn.Module) -> list[torch.Tensor]:
    conv = next((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if conv is None:
        return []
    generator, weight = torch.Generator().manual_seed(0), conv.weight
    channels = conv.in_channels
    return [
        torch.randn(2, channels, size, size, generator=generator).to(weight.device, weight.dtype)
        for size in (224, 299, 32)
    ]


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    worst = 0.0
    for a, b in zip(before, after):
        if a.numel():
            scale = a.double().nan_to_num().abs().max().clamp(min=1e-30)
            same = (a == b) | (a.isnan() & b.isnan())
            error = torch.where(same, 0.0, (a.double() - b.double()).abs()).nan_to_num(nan=torch.inf).max()
            worst = max(worst, float(error / scale))
    return worst
