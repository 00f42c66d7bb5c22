"""Normalization modules."""

import torch

from .. import functional as F


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm on fastcnn.functional.local_response_norm.

    Beyond torch: alpha_mode 'sum' (the formula of Krizhevsky et al. 2012), groups, activation 'relu' before it.
    """

    # Of the class, too: a torch module that takes this class over has none of its own.
    alpha_mode, groups, activation = "mean", 1, None

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1.0, *, alpha_mode="mean", groups=1, activation=None):
        super().__init__(size, alpha, beta, k)
        _check("LocalResponseNorm", size, alpha_mode, activation)
        self.alpha_mode, self.groups, self.activation = alpha_mode, groups, activation

    def forward(self, input):
        """(N, C, *) to the same shape."""
        return F.local_response_norm(
            input,
            self.size,
            self.alpha,
            self.beta,
            self.k,
            alpha_mode=self.alpha_mode,
            groups=self.groups,
            activation=self.activation,
        )

    def extra_repr(self):
        """torch's, and what differs from its behaviour."""
        return super().extra_repr() + _extras(self)


def _check(name, size, alpha_mode, activation) -> None:
    if alpha_mode not in ("mean", "sum"):
        raise ValueError(f"{name}: expected alpha_mode to be 'mean' or 'sum', but got {alpha_mode!r}")
    if alpha_mode == "sum" and size % 2 == 0:
        raise ValueError(f"{name}: expected an odd size with alpha_mode='sum', but got {size}")
    if activation not in (None, "relu"):
        raise ValueError(f"{name}: expected activation to be None or 'relu', but got {activation!r}")


def _extras(module) -> str:
    defaults = {"alpha_mode": "mean", "groups": 1, "activation": None}
    return "".join(
        f", {name}={getattr(module, name)}" for name, default in defaults.items() if getattr(module, name) != default
    )


class LRNMaxPool2d(torch.nn.Module):
    """LocalResponseNorm, then MaxPool2d, on fastcnn.functional.lrn_max_pool2d: one pass over the input.

    The arguments of the first, then those of the second, whose stride None means kernel_size.
    """

    def __init__(
        self,
        size,
        alpha=1e-4,
        beta=0.75,
        k=1.0,
        kernel_size=3,
        stride=2,
        padding=0,
        dilation=1,
        ceil_mode=False,
        *,
        alpha_mode="mean",
        groups=1,
        activation=None,
    ):
        super().__init__()
        _check("LRNMaxPool2d", size, alpha_mode, activation)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.alpha_mode, self.groups, self.activation = alpha_mode, groups, activation
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, C, OH, OW) or (C, OH, OW)."""
        return F.lrn_max_pool2d(
            input,
            self.size,
            self.alpha,
            self.beta,
            self.k,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            alpha_mode=self.alpha_mode,
            groups=self.groups,
            activation=self.activation,
        )

    def extra_repr(self):
        """The normalization's, then the pooling's."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        norm = f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}" + _extras(self)
        return norm + "".join(f", {name}={getattr(self, name)}" for name in names)
