"""batch_norm_relu: what its C++ half (csrc/ops/batch_norm_relu.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function

from ._define import Differentiable, fold, memory_format, register, register_fake
from ._face import batched, dispatch, native, recording, refuse, together
from ._policy import by_policy


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def fake(x, running_mean, running_var, weight, bias, eps, relu):
        return torch.empty_like(x, memory_format=memory_format(x))

    register_fake(f"{namespace}::batch_norm_relu", fake)
    register_fake(f"{namespace}::_batch_norm_relu", fake)
    raw = ops._batch_norm_relu.default
    torch.library.register_vmap(raw, fold((0,))(raw))

    def save(ctx, inputs, output):
        *tensors, ctx.eps, ctx.relu = inputs
        ctx.save_for_backward(*tensors, output)

    def grad(ctx, g):
        """By torch's ops, which have gradients of their own; the running statistics are constants."""
        x, mean, var, weight, bias, y = ctx.saved_tensors
        need = ctx.needs_input_grad
        wide = torch.promote_types(x.dtype, torch.float32)
        g = (torch.where(y <= 0, 0, g) if ctx.relu else g).to(wide)
        invstd = (per_channel(var, wide) + ctx.eps).rsqrt()
        factor = invstd if weight is None else invstd * per_channel(weight, wide)
        centred = (x.to(wide) - per_channel(mean, wide)) * invstd
        return (
            (g * factor).to(x.dtype) if need[0] else None,
            None,
            None,
            (g * centred).sum((0, 2, 3)).to(weight.dtype) if need[3] else None,
            g.sum((0, 2, 3)).to(bias.dtype) if need[4] else None,
            None,
            None,
        )

    op = Differentiable(ops.batch_norm_relu.default, save, grad, fold((0,)), raw=raw)
    return SimpleNamespace(op=op, raw=raw)


def per_channel(t, dtype):
    return t.to(dtype).view(-1, 1, 1)


def reference(x, running_mean, running_var, weight, bias, eps, relu):
    """y = act((x - running_mean) / sqrt(running_var + eps) * weight + bias), in float64."""
    mean, var = per_channel(running_mean, torch.float64), per_channel(running_var, torch.float64)
    u = (x.double() - mean) / (var + eps).sqrt()
    u = u if weight is None else u * per_channel(weight, torch.float64)
    u = u if bias is None else u + per_channel(bias, torch.float64)
    return u.relu() if relu else u


ops = register(define)


@by_policy
def batch_norm_relu(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, activation="relu"
):
    """Batch normalization and activation in one pass, for networks that normalize before they convolve.

    y = act((input - running_mean) / sqrt(running_var + eps) * weight + bias), in inference. With training=True, and
    where a gradient is wanted, PyTorch's own batch_norm and relu compute it (and update the running statistics).
    input: (N, C, H, W) or (C, H, W); the other tensors (C,), of any floating dtype, the last two may be None, training
    all. activation: 'relu' or None. Returns a tensor of input's size, dtype and memory format. RuntimeError on shapes
    that do not fit, ValueError on an unknown activation and, training, on one value per channel.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(batch_norm_relu, tensors, *tensors, training, momentum, eps, activation)
    if activation is not None and activation != "relu":
        raise ValueError(f"batch_norm_relu: expected activation to be None or 'relu', but got {activation!r}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("batch_norm_relu: Expected running_mean and running_var to be defined when training=False")
    x = batched("batch_norm_relu", input)
    needs_grad = recording() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if training or needs_grad or not native(input, "batch_norm_relu"):
        y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y = y.relu() if activation else y
    else:
        others = dict(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
        if not together(x, *others.values()):
            refuse("batch_norm_relu", x, **others)
        y = dispatch(ops.op, ops.raw, False, x, running_mean, running_var, weight, bias, eps, activation is not None)
    return y if input.dim() == 4 else y.squeeze(0)
