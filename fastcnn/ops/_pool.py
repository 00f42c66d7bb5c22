"""What the pooling ops' Python halves share."""

from collections.abc import Callable
from types import SimpleNamespace

import torch

from ._define import Differentiable, fold, memory_format, register_fake


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """floor or ceil of (size + 2*padding - dilation*(kernel-1) - 1) / stride + 1; no window starts behind the input."""
    out = (size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def pooled(function: str, x, size, format=None):
    """A fake output: (N, C) of x with `size` as its height and width, in x's memory format unless told another."""
    torch._check(
        x.dim() == 4, lambda: f"{function}: expected 4D input (N, C, H, W), but got input of size {list(x.shape)}"
    )
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=format or memory_format(x))


def average(namespace: str, name: str, size: Callable) -> SimpleNamespace:
    """The Python halves of an average pooling `name`, whose output height and width are size(x, *geometry).

    Linear in its input: the gradient of its backward pass is the op itself.
    """
    ops = getattr(torch.ops, namespace)
    forward, raw, backward = (getattr(ops, n).default for n in (name, f"_{name}", f"{name}_backward"))

    def fake(x, *geometry):
        return pooled(name, x, size(x, *geometry))

    def backward_fake(grad, size, channels_last, *geometry):
        return pooled(name, grad, size[2:], torch.channels_last if channels_last else torch.contiguous_format)

    register_fake(forward._name, fake)
    register_fake(raw._name, fake)
    register_fake(backward._name, backward_fake)
    torch.library.register_vmap(raw, fold((0,))(raw))

    def save(ctx, inputs, output):
        x, *ctx.geometry = inputs
        ctx.size, ctx.channels_last = x.shape, memory_format(x) is torch.channels_last

    def grad(ctx, g):
        return public_backward(g, ctx.size, ctx.channels_last, *ctx.geometry), *[None] * len(ctx.geometry)

    def save_backward(ctx, inputs, output):
        _, _, _, *ctx.geometry = inputs

    def grad_backward(ctx, g):
        return public(g, *ctx.geometry), None, None, *[None] * len(ctx.geometry)

    public = Differentiable(forward, save, grad, fold((0,)), raw=raw)
    public_backward = Differentiable(backward, save_backward, grad_backward, fold((0,), size=1))
    return SimpleNamespace(op=public, raw=raw, backward=public_backward)
