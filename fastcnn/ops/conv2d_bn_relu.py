"""conv2d_bn_relu: what its C++ half (csrc/ops/conv2d_bn_relu.cpp) cannot say through the stable ABI."""

from functools import partial
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .. import _packed
from .._config import config
from . import _triton
from . import conv2d as convolution
from ._define import Differentiable, autocast, loop, memory_format, register, register_fake
from ._face import autocast_cast, batched, dispatch, log, native, pair, recording, refuse, together, tracing, with_tf32
from ._policy import by_policy


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)
    conv = convolution.ops

    def accumulator(x):
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def fake(x, weight, bias, residual, bn_weight, bn_bias, stride, padding, dilation, groups, eps, relu, accuracy=1):
        z = ops.conv2d.default(x, weight, bias, None, stride, padding, dilation, groups, False, accuracy)
        mean = torch.empty(weight.shape[0], dtype=accumulator(x), device=x.device)
        return torch.empty_like(z), z, mean, torch.empty_like(mean)

    def backward_fake(grad, z, y, mean, var, bn_weight, bn_bias, eps, relu, masked):
        dz = torch.empty_like(z, memory_format=memory_format(z))
        return dz, torch.empty_like(dz) if masked else dz.new_empty(0), torch.empty_like(mean), torch.empty_like(var)

    register_fake(f"{namespace}::conv2d_bn_relu", fake)
    register_fake(f"{namespace}::_conv2d_bn_relu", fake)
    register_fake(f"{namespace}::_batch_norm_relu_backward", backward_fake)
    for name in ("normalize_conv2d", "_normalize_conv2d"):
        register_fake(f"{namespace}::{name}", lambda z, *_: torch.empty_like(z, memory_format=memory_format(z)))
    torch.library.register_vmap(ops._conv2d_bn_relu.default, loop(ops._conv2d_bn_relu.default))
    torch.library.register_vmap(ops._batch_norm_relu_backward.default, loop(ops._batch_norm_relu_backward.default))
    autocast(namespace, "conv2d_bn_relu", ops.conv2d_bn_relu.default, first=4)

    def save(ctx, inputs, output):
        x, weight, bias, residual, bn_weight, bn_bias, *ctx.geometry, ctx.eps, ctx.relu, ctx.accuracy = inputs
        y, z, mean, var = output
        ctx.mark_non_differentiable(z, mean, var)
        ctx.set_materialize_grads(False)
        # The sign of ReLU's input is recomputed from z; with a residual in it, read off y, which the next layer keeps.
        ctx.save_for_backward(
            x,
            weight,
            bias,
            residual,
            bn_weight,
            bn_bias,
            z,
            mean,
            var,
            y if ctx.relu and residual is not None else None,
        )

    def grad(ctx, g, *_):
        if g is None:
            return (None,) * 13
        x, weight, bias, _residual, bn_weight, bn_bias, z, mean, var, y = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return *second_order(ctx, g), *[None] * 7
        dz, dr, dw, db = through_norm(ctx, g, z, y, mean, var, bn_weight, bn_bias, need[3:6])
        return (
            conv.backward_input.raw(dz, weight, x.shape, *ctx.geometry, ctx.accuracy) if need[0] else None,
            conv.backward_weight.raw(dz, x, weight.shape, *ctx.geometry, ctx.accuracy) if need[1] else None,
            # What is added to every value of a channel, normalization takes away again.
            torch.zeros_like(bias) if need[2] else None,
            *(dr, dw, db),
            *[None] * 7,
        )

    def through_norm(ctx, g, z, y, mean, var, bn_weight, bn_bias, need):
        """Gradients of z, residual, bn_weight and bn_bias; need: which of the last three are wanted."""
        masked = ctx.relu and need[0]
        dz, dr, dw, db = ops._batch_norm_relu_backward.default(
            g, z, y, mean, var, bn_weight, bn_bias, ctx.eps, ctx.relu, masked
        )
        return (
            dz,
            (dr if masked else g) if need[0] else None,
            dw.to(bn_weight.dtype) if need[1] else None,
            db.to(bn_bias.dtype) if need[2] else None,
        )

    def second_order(ctx, g):
        def forward(x, weight, bias, residual, bn_weight, bn_bias):
            z = conv.conv(x, weight, bias, None, *ctx.geometry, False, ctx.accuracy)
            return activated(z, bn_weight, bn_bias, residual, ctx.eps, ctx.relu)

        return differentiable(forward, ctx.saved_tensors[:6], ctx.needs_input_grad[:6], g)

    op = Differentiable(ops.conv2d_bn_relu.default, save, grad, loop, raw=ops._conv2d_bn_relu.default)

    def save_normalize(ctx, inputs, output):
        z, mean, var, bn_weight, bn_bias, residual, ctx.eps, ctx.relu = inputs
        y = output if ctx.relu and residual is not None else None
        ctx.save_for_backward(z, mean, var, bn_weight, bn_bias, residual, y)

    def grad_normalize(ctx, g):
        """z's gradient is the whole of it: mean and var, which get none, are z's own."""
        z, mean, var, bn_weight, bn_bias, residual, y = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():
            forward = partial(activated, eps=ctx.eps, relu=ctx.relu)
            dz, dw, db, dr = differentiable(forward, (z, bn_weight, bn_bias, residual), (need[0], *need[3:6]), g)
        else:
            dz, dr, dw, db = through_norm(ctx, g, z, y, mean, var, bn_weight, bn_bias, (need[5], *need[3:5]))
        return dz if need[0] else None, None, None, dw, db, dr, None, None

    normalize = Differentiable(
        ops.normalize_conv2d.default, save_normalize, grad_normalize, loop, raw=ops._normalize_conv2d.default
    )

    def flops(x, weight, *rest, out_shape=None, **kwargs):
        return conv_flop_count(list(x), list(weight), list(out_shape[0]))

    register_flop_formula([ops.conv2d_bn_relu, ops._conv2d_bn_relu])(flops)
    return SimpleNamespace(op=op, raw=ops._conv2d_bn_relu.default, normalize=normalize)


def differentiable(forward, tensors, need, g):
    """The gradients of forward(*tensors) for g, by ops that have gradients of their own; None where none is needed."""
    wanted = [i for i, needed in enumerate(need) if needed]

    def of_wanted(*some):
        at = dict(zip(wanted, some))
        return forward(*(at.get(i, t) for i, t in enumerate(tensors)))

    vjp = torch.func.vjp(of_wanted, *(tensors[i] for i in wanted))[1]
    grads = dict(zip(wanted, vjp(g)))
    return [grads.get(i) for i in range(len(tensors))]


def activated(z, bn_weight, bn_bias, residual, eps, relu):
    """act((z - mean) / sqrt(var + eps) * bn_weight + bn_bias + residual), with z's own mean and biased variance, by
    torch's ops."""
    wide = z if z.dtype == torch.float64 else z.float()
    mean = wide.mean((0, 2, 3), keepdim=True)
    var = ((wide - mean) ** 2).mean((0, 2, 3), keepdim=True)
    u = (wide - mean) * (var + eps).rsqrt()
    u = u if bn_weight is None else u * bn_weight.to(u.dtype).view(-1, 1, 1)
    u = u if bn_bias is None else u + bn_bias.to(u.dtype).view(-1, 1, 1)
    u = u.to(z.dtype) if residual is None else u.to(z.dtype) + residual
    return u.relu() if relu else u


def reference(x, weight, bias, residual, bn_weight, bn_bias, geometry, eps, relu):
    """y = act((z - mean) / sqrt(var + eps) * bn_weight + bn_bias + residual), z the convolution's output; float64."""
    stride, padding, dilation, groups = geometry
    z = convolution.reference(x, weight, bias, None, stride, padding, dilation, groups, False)
    mean = z.mean((0, 2, 3))
    var = ((z - mean.view(-1, 1, 1)) ** 2).mean((0, 2, 3))
    u = (z - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + eps).sqrt()
    u = u if bn_weight is None else u * bn_weight.double().view(-1, 1, 1)
    u = u if bn_bias is None else u + bn_bias.double().view(-1, 1, 1)
    u = u if residual is None else u + residual.double()
    return (u.relu() if relu else u), z, mean, var


ops = register(define)


@by_policy
def conv2d_bn_relu(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    bn_weight,
    bn_bias,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    training=False,
    momentum=0.1,
    eps=1e-5,
    activation="relu",
    residual=None,
):
    """Convolution, batch normalization (Ioffe and Szegedy 2015), residual and activation as one op.

    y = act((z - mean) / sqrt(var + eps) * bn_weight + bn_bias + residual), z = conv2d(input, weight, bias)

    training=False: mean and var are running_mean and running_var, folded into the convolution's weight and bias.
    training=True: they are z's own over (N, H, W), taken in the convolution's epilogue; running_mean and running_var,
    where given, move towards them by `momentum` in place (the variance unbiased), as torch.nn.functional.batch_norm's.
    input: (N, C, H, W) or (C, H, W), weight: (O, C/groups, KH, KW), the other vectors (O,) or None; residual: as the
    output. Normalization may be of a wider dtype than the convolution. activation: 'relu' or None. Gradients of the
    second order come from PyTorch's own formulas for the normalization.
    Returns (N, O, OH, OW), channels_last where input or weight is. RuntimeError on shapes that do not fit, ValueError
    on an unknown activation and, training, on one value per channel.
    """
    tensors = (input, weight, bias, running_mean, running_var, bn_weight, bn_bias, residual)
    if has_torch_function(tensors):
        return handle_torch_function(
            conv2d_bn_relu, tensors, *tensors[:7], stride, padding, dilation, groups, training=training,
            momentum=momentum, eps=eps, activation=activation, residual=residual,
        )  # fmt: skip
    if activation is not None and activation != "relu":
        raise ValueError(f"conv2d_bn_relu: expected activation to be None or 'relu', but got {activation!r}")
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("conv2d_bn_relu: Expected running_mean and running_var to be defined when training=False")
    if not native(input, "conv2d_bn_relu"):
        z = torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
        y = torch.nn.functional.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
        y = y if residual is None else y + residual
        return y.relu() if activation else y
    others = dict(
        weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, bn_weight=bn_weight,
        bn_bias=bn_bias, residual=residual,
    )  # fmt: skip
    if weight is None or not together(input, *others.values()):
        refuse("conv2d_bn_relu", input, **others)
    input, weight, bias, residual = autocast_cast(input, weight, bias, residual)
    x = batched("conv2d_bn_relu", input)
    stride, dilation = pair("conv2d_bn_relu", "stride", stride), pair("conv2d_bn_relu", "dilation", dilation)
    if isinstance(padding, str):
        x, padding = convolution.pad_by_name(x, weight, padding, stride, dilation)
    geometry = (stride, pair("conv2d_bn_relu", "padding", padding), dilation, groups)
    if residual is not None and input.dim() == 3:
        residual = residual.unsqueeze(0)
    norm = (running_mean, running_var, bn_weight, bn_bias)
    if training:
        y = _train(x, weight, bias, residual, norm, geometry, momentum, eps, activation is not None)
    else:
        y = _infer(x, weight, bias, residual, norm, geometry, eps, activation)
    return y if input.dim() == 4 else y.squeeze(0)


def _train(x, weight, bias, residual, norm, geometry, momentum, eps, relu):
    running_mean, running_var, bn_weight, bn_bias = norm
    tensors = (x, weight, bias, residual, bn_weight, bn_bias)
    needs_grad = any(t is not None and t.requires_grad for t in tensors)
    level = with_tf32(config.level, x)
    stride, padding, dilation, groups = geometry
    if not x.is_cpu and _triton.trains(x, weight, bias, stride, padding, dilation, groups, level):
        z, mean, var = _triton.conv2d_stats(x, weight, stride, padding, dilation, groups, level)
        norm_args = (z, mean, var, bn_weight, bn_bias, residual, eps, relu)
        y = dispatch(ops.normalize, ops.normalize.raw, needs_grad, *norm_args)
    else:
        y, _, mean, var = dispatch(ops.op, ops.raw, needs_grad, *tensors, *geometry, eps, relu, level)
    count = y.shape[0] * y.shape[2] * y.shape[3]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(y.shape)}")
    if count:
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


def _infer(x, weight, bias, residual, norm, geometry, eps, activation):
    tensors = (x, weight, bias, residual, *norm)
    needs_grad = recording() and any(t is not None and t.requires_grad for t in tensors)
    stride, padding, dilation, groups = geometry
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    flat, level = (sh, sw, ph, pw, dh, dw, groups), with_tf32(config.level, x)
    if not x.is_cpu and _triton.takes(
        x, weight, bias, stride, padding, dilation, groups, level
    ):  # whose epilogue scales: no pass over the weight
        scale, shift = _packed.fold([None if t is None else t.float() for t in (bias, *norm)], eps)
        relu = activation is not None
        return _triton.conv2d(x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, level)
    direct = not (needs_grad or tracing())
    folded = _packed.cache.folded(weight, x.shape, flat, level, bias, norm, eps) if direct else None
    if folded is None:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale, shift = _packed.fold([None if t is None else t.to(wide) for t in (bias, *norm)], eps)
        w = (weight * scale.view(-1, 1, 1, 1)).to(x.dtype)
        return convolution.conv2d(x, w, shift.to(x.dtype), *geometry, activation=activation, residual=residual)
    packed, shift = folded
    log("conv2d", x, weight)
    return convolution.ops.raw(x, weight, packed, shift, residual, flat, activation is not None, level)
