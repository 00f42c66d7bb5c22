"""1x1 convolution's ops: torch.ops.fastcnn.pointwise_conv2d, _stats and _into.

y[n,o,p,q] = act(scale[o] * sum_c w[o,c] * pre(x[n, c, p*sh, q*sw]) + shift[o] + residual[n,o,p,q]),
pre(v) = relu(v * pre_scale[c] + pre_shift[c]) or v

On CUDA, and with TRITON_INTERPRET=1, Triton's kernels compute; on CPU the C++ kernels of conv2d.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastcnn.ops._define import Differentiable, fold, loop

from .formulas import flops, masked, scaled, stats_flops, through_statistics, wide_type
from .pointwise_backward import backward_input, backward_weight
from .pointwise_forward import check_all, empty_output, launch, output_size
from .reductions import channel_sums
from .register import on_triton, triton_op
from .rows import pixel_stride


def before(x: Tensor, pre_scale: Tensor | None, pre_shift: Tensor | None) -> Tensor:
    """pre(x) by PyTorch's ops, rounded once."""
    if pre_scale is None:
        return x
    wide = wide_type(x)
    return (x.to(wide) * pre_scale.to(wide).view(-1, 1, 1) + pre_shift.to(wide).view(-1, 1, 1)).relu().to(x.dtype)


def on_cpu(x, weight, scale, shift, residual, pre_scale, pre_shift, stride, relu) -> Tensor:
    """By the C++ kernel, on PyTorch's layouts."""
    x = before(x, pre_scale, pre_shift).contiguous(memory_format=torch.channels_last)
    shift = None if shift is None else shift.to(x.dtype)
    return torch.ops.fastcnn.conv2d.default(
        x, scaled(weight, scale), shift, residual, stride, (0, 0), (1, 1), 1, relu, 1
    )


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    pre_scale: Tensor | None,
    pre_shift: Tensor | None,
    stride: Sequence[int],
    relu: bool,
    tf32: bool,
) -> Tensor:
    """x: (N, C, H, W), copied where it is not channels_last; weight: (O, C, 1, 1) of the same dtype: float16, bfloat16
    or float32; on the CPU float64, too. scale, shift: (O,), pre_scale, pre_shift: (C,), of any floating dtype;
    residual: as the output. Sums are float32; tf32: float32 operands may be rounded to 10 bits of mantissa.
    Returns (N, O, OH, OW), channels_last. RuntimeError on sizes that do not fit.
    """
    check_all(x, weight, scale, shift, residual, pre_scale, pre_shift, stride)
    if not on_triton(x):
        return on_cpu(x, weight, scale, shift, residual, pre_scale, pre_shift, stride, relu)
    y = empty_output(x, weight, stride)
    launch(x, weight, y, scale, shift, residual, pre_scale, pre_shift, stride, relu, tf32)
    return y


def pointwise_conv2d_stats(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None,
    pre_scale: Tensor | None,
    pre_shift: Tensor | None,
    stride: Sequence[int],
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """pointwise_conv2d without scale, residual and ReLU, and its output's mean and biased variance over (N, H, W), each
    (O,) float32, of the values as rounded: what batch normalization needs in training, without reading them again."""
    check_all(x, weight, None, shift, None, pre_scale, pre_shift, stride)
    if not on_triton(x):
        y = on_cpu(x, weight, None, shift, None, pre_scale, pre_shift, stride, False)
        var, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
        return y, mean, var
    y = empty_output(x, weight, stride)
    mean, var = launch(x, weight, y, None, shift, None, pre_scale, pre_shift, stride, False, tf32, stats=True)
    return y, mean, var


def pointwise_conv2d_into(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    pre_scale: Tensor | None,
    pre_shift: Tensor | None,
    stride: Sequence[int],
    relu: bool,
    tf32: bool,
    out: Tensor,
) -> None:
    """pointwise_conv2d into out (N, O, OH, OW), which may be a channel slice of a wider channels_last tensor: a
    concatenation then costs nothing. Without gradient."""
    check_all(x, weight, scale, shift, residual, pre_scale, pre_shift, stride)
    torch._check(
        tuple(out.shape) == output_size(x, weight, stride) and out.dtype == x.dtype,
        lambda: (
            f"pointwise_conv2d_into: expected out of size {list(output_size(x, weight, stride))} and {x.dtype}, "
            f"but got {list(out.shape)} and {out.dtype}"
        ),
    )
    if on_triton(x) and pixel_stride(out) is not None:
        launch(x, weight, out, scale, shift, residual, pre_scale, pre_shift, stride, relu, tf32)
    else:
        out.copy_(pointwise_conv2d(x, weight, scale, shift, residual, pre_scale, pre_shift, stride, relu, tf32))


def fake(x, weight, scale, shift, residual, pre_scale, pre_shift, stride, relu, tf32):
    check_all(x, weight, scale, shift, residual, pre_scale, pre_shift, stride)
    return empty_output(x, weight, stride)


def stats_fake(x, weight, shift, pre_scale, pre_shift, stride, tf32):
    y = fake(x, weight, None, shift, None, pre_scale, pre_shift, stride, False, tf32)
    mean = torch.empty(weight.shape[0], dtype=torch.float32, device=x.device)
    return y, mean, torch.empty_like(mean)


# y is linear in weight and, but for `before`, in x; the gradients are ops that have gradients of their own.
def save(ctx, inputs, output):
    x, weight, scale, shift, residual, pre_scale, pre_shift, ctx.stride, ctx.relu, ctx.tf32 = inputs
    ctx.shift, ctx.residual = None if shift is None else shift.dtype, residual is not None
    ctx.save_for_backward(x, weight, scale, pre_scale, pre_shift, output if ctx.relu else None)


def grad(ctx, g):
    x, weight, scale, pre_scale, pre_shift, y = ctx.saved_tensors
    need = ctx.needs_input_grad
    if y is not None and ctx.residual and need[4]:  # whose gradient is the masked one
        g, y = masked(g, y), None
    dx, dw, dpre_scale, dpre_shift = through(
        ctx, g, y, x, scaled(weight, scale), pre_scale, pre_shift, need[1] or need[2], need[5:7]
    )
    wide = wide_type(g)
    # sum g*z over the pixels is sum w*dw over a channel's weight, dw being the weight's gradient before the scale.
    dscale = (dw.to(wide) * weight.to(wide)).sum((1, 2, 3)).to(scale.dtype) if scale is not None and need[2] else None
    return (
        dx,
        scaled(dw, scale) if need[1] else None,
        dscale,
        channel_sums(g, y).to(ctx.shift) if ctx.shift is not None and need[3] else None,
        g if ctx.residual and need[4] else None,
        dpre_scale,
        dpre_shift,
        *[None] * 3,
    )


def through(ctx, g, y, x, weight, pre_scale, pre_shift, weight_too, need_pre):
    """Gradients of x, of the weight and of what stands in front. g counts where y is positive, if y is there.

    need_pre: whether pre_scale's and pre_shift's are wanted.
    """
    v = before(x, pre_scale, pre_shift)
    dw = backward_weight(g, v, ctx.stride, y, ctx.tf32) if weight_too else None
    if not (ctx.needs_input_grad[0] or any(need_pre)):
        return None, dw, None, None
    dv = backward_input(g, weight, list(x.shape), ctx.stride, y, ctx.tf32)
    if pre_scale is None:
        return dv, dw, None, None
    wide = wide_type(x)
    u = masked(dv, v).to(wide)
    return (
        (u * pre_scale.to(wide).view(-1, 1, 1)).to(x.dtype) if ctx.needs_input_grad[0] else None,
        dw,
        (u * x.to(wide)).sum((0, 2, 3)).to(pre_scale.dtype) if need_pre[0] else None,
        u.sum((0, 2, 3)).to(pre_shift.dtype) if need_pre[1] else None,
    )


def save_stats(ctx, inputs, output):
    x, weight, shift, pre_scale, pre_shift, ctx.stride, ctx.tf32 = inputs
    ctx.shift = None if shift is None else shift.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, pre_scale, pre_shift, *output[:2])


def grad_stats(ctx, g, g_mean, g_var):
    x, weight, pre_scale, pre_shift, z, mean = ctx.saved_tensors
    need = ctx.needs_input_grad
    g = through_statistics(g, g_mean, g_var, z, mean)
    if g is None:
        return (None,) * 7
    dx, dw, dpre_scale, dpre_shift = through(ctx, g, None, x, weight, pre_scale, pre_shift, need[1], need[3:5])
    shift = channel_sums(g, None).to(ctx.shift) if ctx.shift is not None and need[2] else None
    return dx, dw, shift, dpre_scale, dpre_shift, None, None


pointwise = Differentiable(triton_op("pointwise_conv2d", pointwise_conv2d, fake), save, grad, fold((0, 4)))
pointwise_stats = Differentiable(
    triton_op("pointwise_conv2d_stats", pointwise_conv2d_stats, stats_fake), save_stats, grad_stats, loop
)
triton_op("pointwise_conv2d_into", pointwise_conv2d_into, lambda *args: None, mutates_args=("out",))
register_flop_formula(torch.ops.fastcnn.pointwise_conv2d)(flops)
register_flop_formula(torch.ops.fastcnn.pointwise_conv2d_stats)(stats_flops)
