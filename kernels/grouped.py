"""Grouped convolution's ops: torch.ops.fastcnn.grouped_conv2d, _stats, _backward_input and _backward_weight.

On CUDA, and with TRITON_INTERPRET=1, the Triton kernels of `grouped_forward.py` and `grouped_backward.py` compute; on
CPU the C++ kernels of conv2d. All tensors are channels last; others are copied.
"""

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from fastcnn.ops._define import Differentiable, fold, loop

from .epilogue import merge_moments
from .formulas import flops, masked, scaled, stats_flops, through_statistics, wide_type
from .grouped_backward import check_gradient, launch_input, launch_weight
from .grouped_forward import check, check_epilogue, launch, out_shape
from .reductions import channel_sums
from .register import on_triton, triton_op
from .rows import empty_rows


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
    tf32: bool,
) -> torch.Tensor:
    if on_triton(x):
        return launch(x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, tf32, False)[0]
    shift = None if shift is None else shift.to(x.dtype)
    y = torch.ops.fastcnn.conv2d(x, scaled(weight, scale), shift, residual, stride, padding, dilation, groups, relu, 1)
    return y.contiguous(memory_format=torch.channels_last)


def run_fake(x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, tf32):
    check(x, weight, groups)
    size = out_shape(x, weight, stride, padding, dilation)
    check_epilogue(x, size, scale, shift, residual)
    return empty_rows(x, *size)


def run_stats(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    tf32: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not on_triton(x):
        z = run(x, weight, None, None, None, stride, padding, dilation, groups, False, tf32)
        variance, mean = torch.var_mean(z.to(wide_type(z)), (0, 2, 3), correction=0)
        return z, mean, variance
    z, workspace, counts = launch(x, weight, None, None, None, stride, padding, dilation, groups, False, tf32, True)
    return z, *merge_moments(workspace, counts)


def run_stats_fake(x, weight, stride, padding, dilation, groups, tf32):
    z = run_fake(x, weight, None, None, None, stride, padding, dilation, groups, False, tf32)
    mean = x.new_empty(weight.shape[0], dtype=wide_type(x))
    return z, mean, torch.empty_like(mean)


def run_input(
    grad: torch.Tensor,
    weight: torch.Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    y: torch.Tensor | None,
    tf32: bool,
) -> torch.Tensor:
    if on_triton(grad):
        return launch_input(grad, weight, input_size, stride, padding, dilation, groups, y, tf32)
    dx = torch.ops.fastcnn.conv2d_backward_input(
        masked(grad, y), weight, input_size, stride, padding, dilation, groups, 1
    )
    return dx.contiguous(memory_format=torch.channels_last)


def run_input_fake(grad, weight, input_size, stride, padding, dilation, groups, y, tf32):
    dx = empty_rows(grad, *input_size)
    check_gradient(grad, dx, weight, stride, padding, dilation, groups, y)
    return dx


def run_weight(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    y: torch.Tensor | None,
    tf32: bool,
) -> torch.Tensor:
    if on_triton(grad):
        return launch_weight(grad, x, weight_size, stride, padding, dilation, groups, y, tf32)
    return torch.ops.fastcnn.conv2d_backward_weight(
        masked(grad, y), x, weight_size, stride, padding, dilation, groups, 1
    )


def run_weight_fake(grad, x, weight_size, stride, padding, dilation, groups, y, tf32):
    dw = torch.empty(weight_size, dtype=x.dtype, device=x.device)
    check_gradient(grad, x, dw, stride, padding, dilation, groups, y)
    return dw


# y = x*w, dx = g*w' and dw = g*x' are each linear in both arguments: the three are closed under differentiation, and a
# mask y counts as a constant.
def save(ctx, inputs, output):
    x, weight, scale, shift, ctx.residual, *ctx.geometry, ctx.relu, ctx.tf32 = inputs
    ctx.shift, ctx.residual = None if shift is None else shift.dtype, ctx.residual is not None
    ctx.save_for_backward(x, weight, scale, output if ctx.relu else None)


def grad_forward(ctx, g):
    """The scale's gradient needs no second look at the pixels: sum g*z over them is sum w*dw over a channel's weight,
    dw being the weight's gradient before the scale."""
    x, weight, scale, y = ctx.saved_tensors
    need = ctx.needs_input_grad
    if y is not None and ctx.residual and need[4]:  # whose gradient is the masked one
        g, y = masked(g, y), None
    how = (*ctx.geometry, y, ctx.tf32)
    dw = backward_weight(g, x, weight.shape, *how) if need[1] or (scale is not None and need[2]) else None
    dscale = None
    if scale is not None and need[2]:
        dscale = (dw.to(wide_type(dw)) * weight.to(wide_type(dw))).sum((1, 2, 3)).to(scale.dtype)
    return (
        backward_input(g, scaled(weight, scale), x.shape, *how) if need[0] else None,
        scaled(dw, scale) if need[1] else None,
        dscale,
        channel_sums(g, y).to(ctx.shift) if ctx.shift is not None and need[3] else None,
        g if ctx.residual and need[4] else None,
        *[None] * 6,
    )


def save_stats(ctx, inputs, output):
    x, weight, *ctx.geometry, ctx.tf32 = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, *output[:2])


def grad_stats(ctx, g, g_mean, g_variance):
    x, weight, z, mean = ctx.saved_tensors
    g, how = through_statistics(g, g_mean, g_variance, z, mean), (*ctx.geometry, None, ctx.tf32)
    if g is None:
        return (None,) * 7
    dx = backward_input(g, weight, x.shape, *how) if ctx.needs_input_grad[0] else None
    dw = backward_weight(g, x, weight.shape, *how) if ctx.needs_input_grad[1] else None
    return dx, dw, *[None] * 5


def save_pair(ctx, inputs, output):
    *ctx.geometry, y, ctx.tf32 = inputs[3:]
    ctx.save_for_backward(*inputs[:2], y)


def grad_input(ctx, d):
    g, weight, y = ctx.saved_tensors
    dg = masked(linear(ctx, d, weight), y) if ctx.needs_input_grad[0] else None
    dw = backward_weight(g, d, weight.shape, *ctx.geometry, y, ctx.tf32) if ctx.needs_input_grad[1] else None
    return dg, dw, *[None] * 7


def grad_weight(ctx, d):
    g, x, y = ctx.saved_tensors
    dg = masked(linear(ctx, x, d), y) if ctx.needs_input_grad[0] else None
    dx = backward_input(g, d, x.shape, *ctx.geometry, y, ctx.tf32) if ctx.needs_input_grad[1] else None
    return dg, dx, *[None] * 7


def linear(ctx, x, weight):
    return grouped_conv2d(x, weight, None, None, None, *ctx.geometry, False, ctx.tf32)


def input_flops(grad, weight, input_size, *rest, out_shape=None, **kwargs):
    return conv_flop_count(list(input_size), list(weight), list(grad))


def weight_flops(grad, x, weight_size, *rest, out_shape=None, **kwargs):
    return conv_flop_count(list(x), list(weight_size), list(grad))


grouped_conv2d = Differentiable(triton_op("grouped_conv2d", run, run_fake), save, grad_forward, fold((0, 4)))
grouped_conv2d_stats = Differentiable(
    triton_op("grouped_conv2d_stats", run_stats, run_stats_fake), save_stats, grad_stats, loop
)
backward_input = Differentiable(
    triton_op("grouped_conv2d_backward_input", run_input, run_input_fake), save_pair, grad_input, fold((0, 7), size=2)
)
backward_weight = Differentiable(
    triton_op("grouped_conv2d_backward_weight", run_weight, run_weight_fake), save_pair, grad_weight, fold(())
)
register_flop_formula(torch.ops.fastcnn.grouped_conv2d)(flops)
register_flop_formula(torch.ops.fastcnn.grouped_conv2d_stats)(stats_flops)
register_flop_formula(torch.ops.fastcnn.grouped_conv2d_backward_input)(input_flops)
register_flop_formula(torch.ops.fastcnn.grouped_conv2d_backward_weight)(weight_flops)
