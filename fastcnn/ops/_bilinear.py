"""Ops that are linear in their input and in their weight, with a bias: forward, and a gradient for each of the two.

y = x*w + b, dx = g*w' and (dw, db) = (g*x', sum g) are closed under differentiation: the gradients of each are the
other two.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch

from ._define import Differentiable, autocast, fold, memory_format, register_fake


def bilinear(
    namespace: str,
    name: str,
    out_size: Callable,
    weight_size: Callable,
    describe: Callable,
    bias_size: Callable = lambda grad: grad.shape[1:2],
):
    """The Python halves of `name`(x, weight, bias, *geometry), `_name` (the same without autograd),
    `name`_backward_input(grad, weight, size, *geometry) and `name`_backward_weight(grad, x, *description, *geometry).

    out_size(x, weight, *geometry): the output's height and width. describe(weight): what the gradient for the weight
    must be told of its size. weight_size(grad, *description, *geometry): that size. bias_size(grad): the bias's, by
    default one value a channel.
    """
    ops = getattr(torch.ops, namespace)
    names = (name, f"_{name}", f"{name}_backward_input", f"{name}_backward_weight")
    forward, raw, input_op, weight_op = (getattr(ops, n).default for n in names)

    def fake(x, weight, bias, *geometry):
        torch._check(
            x.dim() == 4, lambda: f"{name}: expected 4D input (N, C, H, W), but got input of size {list(x.shape)}"
        )
        shape, size = out_size(x, weight, *geometry)
        return torch.empty((x.shape[0], shape, *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x))

    def input_fake(grad, weight, size, *geometry):
        return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(grad))

    def weight_fake(grad, x, *args):
        return grad.new_empty(weight_size(grad, *args)), grad.new_empty(bias_size(grad))

    register_fake(forward._name, fake)
    register_fake(raw._name, fake)
    register_fake(input_op._name, input_fake)
    register_fake(weight_op._name, weight_fake)
    torch.library.register_vmap(raw, fold((0,))(raw))
    autocast(namespace, name, forward)

    def save(ctx, inputs, output):
        x, weight, bias, *ctx.geometry = inputs
        ctx.bias = bias is not None
        ctx.save_for_backward(x, weight)

    def grad(ctx, g):
        x, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        dx = backward_input(g, weight, x.shape, *ctx.geometry) if need[0] else None
        dw = db = None
        if need[1] or need[2]:
            dw, db = backward_weight(g, x, *describe(weight), *ctx.geometry)
        return dx, dw, db if ctx.bias else None, *[None] * len(ctx.geometry)

    def save_input(ctx, inputs, output):
        g, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(g, weight)

    def grad_input(ctx, v):
        g, weight = ctx.saved_tensors
        dw, _ = backward_weight(g, v, *describe(weight), *ctx.geometry)
        return op(v, weight, None, *ctx.geometry), dw, None, *[None] * len(ctx.geometry)

    def save_weight(ctx, inputs, output):
        g, x, *ctx.args = inputs
        ctx.save_for_backward(g, x)

    def grad_weight(ctx, u, t):
        g, x = ctx.saved_tensors
        geometry = ctx.args[len(describe(u)) :]
        return op(x, u, t, *geometry), backward_input(g, u, x.shape, *geometry), *[None] * len(ctx.args)

    op = Differentiable(forward, save, grad, fold((0,)), raw=raw)
    backward_input = Differentiable(input_op, save_input, grad_input, fold((0,), size=2))
    backward_weight = Differentiable(weight_op, save_weight, grad_weight, fold(()))
    return SimpleNamespace(op=op, raw=raw, backward_input=backward_input, backward_weight=backward_weight)
