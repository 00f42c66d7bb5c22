"""What the ops' gradients and FLOP counts share, by PyTorch's ops, which may be differentiated again."""

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count


def wide_type(t: Tensor) -> torch.dtype:
    """What t's sums are kept in: float32 at least (the C++ kernels compute float64, too)."""
    return torch.promote_types(t.dtype, torch.float32)


def scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Each output channel's weight times its scale, (O,)."""
    return weight if scale is None else (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)


def masked(grad: Tensor, y: Tensor | None) -> Tensor:
    """grad, 0 where the ReLU's output y is."""
    return grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)


def through_statistics(
    g: Tensor | None, g_mean: Tensor | None, g_var: Tensor | None, z: Tensor, mean: Tensor
) -> Tensor | None:
    """The gradient of z from its own, its channels' means' and their variances': of m values of a channel each gets 1/m
    of its mean's, and 2*(z-mean)/m of its variance's. None: a gradient that is not there."""
    if g_mean is None and g_var is None:
        return g
    g, g_mean, g_var = (torch.zeros_like(t) if d is None else d for d, t in ((g, z), (g_mean, mean), (g_var, mean)))
    wide = wide_type(z)
    centred = z.to(wide) - mean.view(-1, 1, 1)
    direct = (g_mean.view(-1, 1, 1) + 2 * g_var.view(-1, 1, 1) * centred) / (z.numel() // z.shape[1])
    return (g.to(wide) + direct).to(z.dtype)


def flops(x, weight, *rest, out_shape=None, **kwargs):
    return conv_flop_count(list(x), list(weight), list(out_shape))


def stats_flops(x, weight, *rest, out_shape=None, **kwargs):
    return conv_flop_count(list(x), list(weight), list(out_shape[0]))
