"""Convolution, batch normalization, residual and activation as one module."""

import torch

from .. import functional as F
from .conv import Conv2d


class ConvBNReLU2d(torch.nn.Module):
    """act(bn(conv(input)) + residual) on fastcnn.functional.conv2d_bn_relu.

    Its children `conv` and `bn` hold the parameters and statistics, so that a state_dict maps one to one onto a
    convolution followed by a torch.nn.BatchNorm2d. A child with forward hooks is called as a module of its own.
    Arguments are torch.nn.Conv2d's, with no bias unless asked for, then torch.nn.BatchNorm2d's; activation: 'relu' or
    None. ValueError on others.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=False,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        activation="relu",
    ):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.conv: torch.nn.Conv2d = Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, **where
        )
        self.bn = torch.nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, **where)
        self.activation = _checked(activation)

    @classmethod
    def from_modules(cls, conv: torch.nn.Conv2d, bn: torch.nn.BatchNorm2d, activation: str | None = "relu"):
        """The fused module of two that exist; it shares their parameters and statistics."""
        fused = cls.__new__(cls)
        torch.nn.Module.__init__(fused)
        fused.conv, fused.bn, fused.activation = conv, bn, _checked(activation)
        return fused.train(bn.training)

    def forward(self, input, residual=None):
        """input: (N, C, H, W) or (C, H, W); residual: as the output, added before the activation."""
        return conv_bn_relu(self.conv, self.bn, input, residual, self.activation)

    def extra_repr(self):
        return f"activation={self.activation!r}"


def conv_bn_relu(conv, bn, input, residual=None, activation="relu"):
    """act(bn(conv(input)) + residual) as one op, for networks that keep `conv` and `bn` as modules of their own.

    activation: 'relu', None, or a module. Where one of the modules has hooks, or is of another class than Conv2d,
    BatchNorm2d and ReLU (a subclass with a forward of its own, say), they are called in turn.
    """
    if not all(is_plain(module) for module in (conv, bn, activation) if isinstance(module, torch.nn.Module)):
        y = bn(conv(input))
        y = y if residual is None else y + residual
        if activation is None:
            return y
        return activation(y) if isinstance(activation, torch.nn.Module) else y.relu()
    return fused_forward(conv, bn, input, residual, activation is not None)


def fused_forward(conv, bn, input, residual, relu):
    """conv_bn_relu on modules that need not be called themselves."""
    running_mean, running_var, training, momentum = _statistics(bn)
    padding = conv.padding
    if conv.padding_mode != "zeros":
        padding = 0
        input = torch.nn.functional.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
    return F.conv2d_bn_relu(
        input, conv.weight, conv.bias, running_mean, running_var,
        bn.weight, bn.bias, conv.stride, padding, conv.dilation, conv.groups,
        training=training, momentum=momentum, eps=bn.eps, activation="relu" if relu else None,
        residual=residual,
    )  # fmt: skip


def bn_relu(bn, activation, input):
    """activation(bn(input)) in one pass over the input, for networks that normalize before they convolve.

    Where one of the two modules has hooks, or is of another class than BatchNorm2d and ReLU, they are called in turn.
    """
    return fused_norm(bn, input) if is_plain(bn) and is_plain(activation) else activation(bn(input))


def fused_norm(bn, input):
    """bn_relu on modules that need not be called themselves."""
    running_mean, running_var, training, momentum = _statistics(bn)
    return F.batch_norm_relu(input, running_mean, running_var, bn.weight, bn.bias, training, momentum, bn.eps)


def _statistics(bn):
    """Running mean and variance, training and momentum for torch.nn.functional.batch_norm; counts the call."""
    momentum = 0.0 if bn.momentum is None else bn.momentum
    if bn.training and bn.track_running_stats and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:  # a cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    training = bn.training or (bn.running_mean is None and bn.running_var is None)
    keep = not bn.training or bn.track_running_stats
    return bn.running_mean if keep else None, bn.running_var if keep else None, training, momentum


def _checked(activation):
    if activation is not None and activation != "relu":
        raise ValueError(f"ConvBNReLU2d: expected activation to be None or 'relu', but got {activation!r}")
    return activation


_PLAIN = frozenset((Conv2d, torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU))


def is_plain(module):
    """Whether the module is exactly torch's (or fastcnn's) and calling it does no more than its forward."""
    return type(module) in _PLAIN and not hooked(module)


def hooked(module):
    """Whether calling the module does more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
