"""Puts fastcnn's kernels under anybody's model, in place and reversibly.

A module keeps its identity: only its class changes, to fastcnn's subclass of what it was. Parameters, buffers, hooks,
sharing and train/eval mode are therefore untouched, and taking the class back undoes everything.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import nn
from ._chains import Chain, find_chains
from ._fused import fused_class

_REPLACED = {
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.AvgPool2d: nn.AvgPool2d,
    torch.nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d,
    torch.nn.LocalResponseNorm: nn.LocalResponseNorm,
}


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
    """Replaces convolution, pooling and LRN modules of `model`, and chains with BatchNorm2d, by fastcnn's, in place.

    filter_fn(name, module): which modules may be replaced; by default all. fuse: also chains of a convolution, its
    batch normalization and maybe ReLU, or of a normalization and ReLU, each the only consumer of the one before it, as
    torch.fx sees it in the model, or in its largest traceable parts and in a run of the model on the example. verify:
    compares outputs in evaluation mode before and after, on `example` (a tensor or a tuple of arguments; by default
    random images that the model's first convolution takes), and undoes the conversion with RuntimeError if they differ
    by more than 1e-3 of their largest value (2e-2 in 16 bits). Subclasses, parametrized modules and modules prepared
    for quantization are left as they are; the report names the reason. `revert_` undoes all of it.
    """
    if any("_fastcnn_original" in vars(m) for m in model.modules()):
        raise ValueError("convert_: expected a model that is not converted; call revert_ first")
    report = ConversionReport()
    before = None
    if verify:
        example, before, report.verification = _outputs(model, example)
    chains, report.tracing = _chains(model, filter_fn, example) if fuse else ([], "not asked for")
    member = {id(m): chain for chain in chains for m in chain}
    for name, module in model.named_modules():
        if id(module) in member:
            report.modules.append(_fuse(name, module, member[id(module)]))
        elif not any(True for _ in module.children()) or isinstance(module, (*_REPLACED, torch.nn.BatchNorm2d)):
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
    if isinstance(module, (*_REPLACED, torch.nn.BatchNorm2d)) and kind is not torch.nn.BatchNorm2d:
        return f"a subclass with behaviour of its own ({kind.__module__}.{kind.__qualname__})"
    return "fastcnn has no kernel for it"


def _chains(model: torch.nn.Module, filter_fn, example: Any) -> tuple[list[Chain], str]:
    names = {m: n for n, m in model.named_modules()}

    def wanted(module: torch.nn.Module) -> bool:
        asked = filter_fn is None or filter_fn(names[module], module)
        return asked and getattr(module, "qconfig", None) is None

    def run() -> Any:
        with _evaluating(model):
            return _call(model, example)

    return find_chains(model, wanted, None if example is None else run)


def _fuse(name: str, module: torch.nn.Module, chain: Chain) -> Converted:
    kind, first = type(module), chain[0]
    what = "conv2d_bn_relu" if isinstance(first, torch.nn.Conv2d) else "batch_norm_relu"
    if not isinstance(chain[-1], torch.nn.ReLU):
        what += " without ReLU"
    _become(module, fused_class(module, module is first))
    vars(module)["_fastcnn_chain"] = chain
    return Converted(name, kind.__name__, True, what if module is first else f"part of {what}")


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
    """An example that the model takes, its floating-point outputs on it, and why there are none."""
    candidates = [example] if example is not None else _examples(model)
    why, fits = "no convolution to take an image's channels from", None
    with _evaluating(model):
        for candidate in candidates:
            torch.manual_seed(0)
            try:
                out = _call(model, candidate)
            except Exception as error:
                if example is not None:
                    raise
                why = f"not checked: random images do not fit ({type(error).__name__}: {error}); give an example"
                continue
            tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if any(t.numel() for t in tensors):
                return candidate, tensors, ""
            why, fits = "not checked: the outputs on the example hold no values; give another", candidate
    return fits, None, why


def _call(model: torch.nn.Module, example: Any) -> Any:
    return model(*example) if isinstance(example, tuple) else model(example)


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
