"""The classes that convert_ gives to modules which run as one: a chain's first does the work, the others pass it on."""

import torch

from . import nn
from .nn.conv_bn import fused_forward, fused_norm, hooked


class Fused(torch.nn.Module):
    """A member of a chain, which runs as one op while none of its members has hooks."""

    _fastcnn_chain: tuple[torch.nn.Module, ...]

    def _live(self) -> bool:
        return not any(hooked(module) for module in self._fastcnn_chain)


class Done(Fused):
    """A member whose work the chain's first has done."""

    def forward(self, input):
        return input if self._live() else super().forward(input)


class FusedConv2d(Fused, nn.Conv2d):
    """The convolution of a convolution, batch normalization and maybe ReLU."""

    def forward(self, input):
        if not self._live():
            return super().forward(input)
        _, bn, *relu = self._fastcnn_chain
        return fused_forward(self, bn, input, None, bool(relu))


class Leading(Fused):
    """The normalization of a batch normalization and ReLU that follow no convolution."""

    def forward(self, input):
        return fused_norm(self, input) if self._live() else super().forward(input)


class LeadingBatchNorm2d(Leading, torch.nn.BatchNorm2d):
    """torch's."""


class FusedBatchNorm2d(Done, torch.nn.BatchNorm2d):
    """The normalization behind a chain's convolution."""


class FusedReLU(Done, torch.nn.ReLU):
    """The activation of a chain."""


# timm's normalization that holds its activation: of torch.nn.BatchNorm2d's state, and of no use without timm.
_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"
_OF_TIMM = {"FusedBatchNormAct2d": Done, "LeadingBatchNormAct2d": Leading}


def __getattr__(name: str) -> type:
    if name not in _OF_TIMM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from timm.layers import BatchNormAct2d

    return globals().setdefault(name, type(name, (_OF_TIMM[name], BatchNormAct2d), {"__module__": __name__}))


def is_norm_act(kind: type) -> bool:
    """Whether the class is exactly timm's BatchNormAct2d."""
    return f"{kind.__module__}.{kind.__qualname__}" == _NORM_ACT


def fused_class(module: torch.nn.Module, leads: bool) -> type:
    """The class of a chain's member instead of its own. leads: it is the chain's first."""
    kind = type(module)
    if is_norm_act(kind):
        return __getattr__("LeadingBatchNormAct2d" if leads else "FusedBatchNormAct2d")
    if kind is torch.nn.BatchNorm2d:
        return LeadingBatchNorm2d if leads else FusedBatchNorm2d
    return FusedConv2d if kind is torch.nn.Conv2d else FusedReLU
