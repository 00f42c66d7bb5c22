"""Gradients of pointwise (1x1) convolution on channels_last tensors.

A tensor is a matrix of pixels by channels; with y[m, o] = sum_c w[o, c] x[r(m), c], r(m) the pixel that output m reads,

    dx[r(m), c] = sum_o g[m, o] w[o, c], and 0 where no output reads
    dw[o, c]    = sum_m g[m, o] x[r(m), c]

where g counts only where the ReLU behind the convolution let y through. Sums over pixels are cut into pieces, which are
written and then added in a fixed order: equal bits every run.
"""

import torch
import triton
import triton.language as tl

from ..ops import conv2d as convolution
from ..ops._define import Differentiable, fold
from ..ops._face import TF32
from . import tiles_backward as tiles
from .epilogue import dot
from .formulas import masked
from .reductions import masked_gradient, sum_splits
from .register import INTERPRETED, on_triton, processors, triton_op, wrap_triton
from .rows import check_types, empty_rows, matrix, needs_int64, output_pixels, precision, rows
from .tiles import cdiv


@triton.jit
def input_pixels(m, H, W, P, Q, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr):
    """The rows of x that the outputs m read."""
    if STRIDE_H == 1 and STRIDE_W == 1:
        pixel = m
    else:
        n, rest = m // (P * Q), m % (P * Q)
        pixel = (n * H + rest // Q * STRIDE_H) * W + rest % Q * STRIDE_W
    return pixel


@triton.jit
def add_input_gradient(
    sums,
    grad,
    y,
    weight,
    pixel,
    in_pixels,
    channels,
    inputs,
    outputs,
    grad_row,
    y_row,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """sums[m, c] + sum_o g[m, o] w[o, c]."""
    in_channels = channels < inputs
    for start in range(0, outputs, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        mask = in_pixels[:, None] & (o < outputs)[None, :]
        at, at_y = pixel[:, None] * grad_row + o[None, :], pixel[:, None] * y_row + o[None, :]
        g = masked_gradient(grad, y, at, at_y, mask, MASKED)
        w_mask = (o < outputs)[:, None] & in_channels[None, :]
        w = tl.load(weight + o[:, None] * inputs + channels[None, :], mask=w_mask, other=0.0)
        sums = dot(g, w, sums, PRECISION, WIDEN)
    return sums


@triton.jit
def pointwise_backward_input_kernel(
    grad,
    y,
    weight,
    dx,
    pixels,
    inputs,
    outputs,
    grad_row,
    y_row,
    H,
    W,
    P,
    Q,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP: tl.constexpr,
):
    """grad, y: rows of `outputs`; weight: (outputs, inputs); dx: (N, H, W, inputs). A program owns a block of output
    pixels, and with it the cells of STRIDE_H x STRIDE_W input pixels whose first ones they read: it writes all of them.
    """
    column_blocks = tl.cdiv(inputs, BLOCK_C)
    row_block, column_block = tl.swizzle2d(
        tl.program_id(0) // column_blocks,
        tl.program_id(0) % column_blocks,
        tl.cdiv(pixels, BLOCK_M),
        column_blocks,
        GROUP,
    )
    if WIDE:
        row_block = row_block.to(tl.int64)
    m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = column_block * BLOCK_C + tl.arange(0, BLOCK_C)
    in_pixels, in_channels = m < pixels, channels < inputs
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sums = add_input_gradient(
        sums, grad, y, weight, m, in_pixels, channels, inputs, outputs, grad_row, y_row, MASKED, PRECISION, WIDEN,
        BLOCK_O,
    )  # fmt: skip
    values = sums.to(dx.dtype.element_ty)
    if STRIDE_H == 1 and STRIDE_W == 1:
        at = m[:, None] * inputs + channels[None, :]
        tl.store(dx + at, values, mask=in_pixels[:, None] & in_channels[None, :])
    else:
        n, rest = m // (P * Q), m % (P * Q)
        for i in tl.static_range(STRIDE_H):
            for j in tl.static_range(STRIDE_W):
                h, w = rest // Q * STRIDE_H + i, rest % Q * STRIDE_W + j
                at = ((n * H + h) * W + w)[:, None] * inputs + channels[None, :]
                mask = (in_pixels & (h < H) & (w < W))[:, None] & in_channels[None, :]
                if i == 0 and j == 0:
                    tl.store(dx + at, values, mask=mask)
                else:
                    tl.store(dx + at, tl.zeros_like(values), mask=mask)


@triton.jit
def pointwise_backward_weight_kernel(
    grad,
    y,
    x,
    partial,
    pixels,
    inputs,
    outputs,
    grad_row,
    y_row,
    x_row,
    H,
    W,
    P,
    Q,
    per_split,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """partial: (splits, outputs, inputs); program (tile, split) sums over pixels [split * per_split, ...), of which
    per_split is a multiple of BLOCK_M. The tiles of one split run side by side and share its rows in L2."""
    column_blocks = tl.cdiv(inputs, BLOCK_C)
    o = tl.program_id(0) // column_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    in_outputs, in_inputs = o < outputs, c < inputs
    split = tl.program_id(1).to(tl.int64)
    first = split * per_split if WIDE else tl.program_id(1) * per_split
    sums = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for start in range(first, tl.minimum(first + per_split, pixels), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_pixels = m < pixels
        # Loaded as (outputs, pixels): behind tl.trans Triton does not copy it asynchronously.
        at, at_y = o[:, None] + m[None, :] * grad_row, o[:, None] + m[None, :] * y_row
        g = masked_gradient(grad, y, at, at_y, in_outputs[:, None] & in_pixels[None, :], MASKED)
        row = input_pixels(m, H, W, P, Q, STRIDE_H, STRIDE_W)
        v = tl.load(x + row[:, None] * x_row + c[None, :], mask=in_pixels[:, None] & in_inputs[None, :], other=0.0)
        sums = dot(g, v, sums, PRECISION, WIDEN)
    at = split * outputs * inputs + o[:, None] * inputs + c[None, :]
    tl.store(partial + at, sums.to(partial.dtype.element_ty), mask=in_outputs[:, None] & in_inputs[None, :])


def check(op: str, grad, weight_size, input_size, stride, y) -> None:
    """input_size: (N, C, H, W), what grad (N, O, P, Q) and the weight (O, C, 1, 1) must fit."""
    torch._check(
        grad.dim() == 4 and len(input_size) == 4 and len(weight_size) == 4,
        lambda: (
            f"{op}: expected 4D gradient, input and weight, but got sizes {list(grad.shape)}, {list(input_size)} and "
            f"{list(weight_size)}"
        ),
    )
    torch._check(
        list(weight_size[2:]) == [1, 1],
        lambda: f"{op}: expected a weight of size (O, C, 1, 1), but got {list(weight_size)}",
    )
    torch._check(
        len(stride) == 2 and min(stride) > 0,
        lambda: f"{op}: expected stride to be two positive ints, but got {list(stride)}",
    )
    n, c, h, w = input_size
    wanted = [n, weight_size[0], output_pixels(h, stride[0]), output_pixels(w, stride[1])]
    torch._check(
        list(grad.shape) == wanted and c == weight_size[1],
        lambda: (
            f"{op}: expected a gradient of size {wanted} behind an input of {list(input_size)}, a weight of "
            f"{list(weight_size)} and stride {list(stride)}, but got {list(grad.shape)}"
        ),
    )
    torch._check(
        y is None or y.shape == grad.shape,
        lambda: f"{op}: expected y to be as the gradient, {list(grad.shape)}, but got {list(y.shape)}",
    )


def backward_input_fake(
    grad: torch.Tensor,
    weight: torch.Tensor,
    input_size: list[int],
    stride: list[int],
    y: torch.Tensor | None,
    tf32: bool,
) -> torch.Tensor:
    check("pointwise_conv2d_backward_input", grad, weight.shape, input_size, stride, y)
    return empty_rows(grad, *input_size)


def run_backward_input(
    grad: torch.Tensor,
    weight: torch.Tensor,
    input_size: list[int],
    stride: list[int],
    y: torch.Tensor | None,
    tf32: bool,
) -> torch.Tensor:
    """dx of size input_size (N, C, H, W), channels_last, from grad (N, O, P, Q) and weight (O, C, 1, 1).

    y: None, or the output (N, O, P, Q) of a ReLU behind the convolution: grad counts only where it is positive or NaN.
    tf32: whether float32 operands may be rounded to TF32. On Triton float16, bfloat16 or float32, all of one type.
    RuntimeError on sizes and types that do not fit.
    """
    check("pointwise_conv2d_backward_input", grad, weight.shape, input_size, stride, y)
    if not on_triton(grad):
        dx = torch.ops.fastcnn.conv2d_backward_input.default(
            masked(grad, y), weight, input_size, stride, (0, 0), (1, 1), 1, 1
        )
        return dx.contiguous(memory_format=torch.channels_last)
    check_types("pointwise_conv2d_backward_input", grad, weight, y)
    (n, c, h, w), (_, outputs, p, q) = input_size, grad.shape
    dx = empty_rows(grad, n, c, h, w)
    pixels = n * p * q
    if pixels == 0 or c == 0:
        return dx
    grad, grad_row = rows(grad)
    y, y_row = (None, 0) if y is None else rows(y)
    tile = tiles.input_gradient(pixels, c, outputs, grad.dtype, tf32, y is not None, processors(grad))
    grid = (cdiv(pixels, tile.pixels) * cdiv(c, tile.inputs),)
    wrap_triton(pointwise_backward_input_kernel)[grid](
        grad, y, matrix(weight), dx, pixels, c, outputs, grad_row, y_row, h, w, p, q,
        STRIDE_H=stride[0], STRIDE_W=stride[1], MASKED=y is not None, WIDE=needs_int64(dx, grad, y),
        PRECISION=precision(tf32), WIDEN=INTERPRETED, BLOCK_M=tile.pixels, BLOCK_C=tile.inputs, BLOCK_O=tile.outputs,
        GROUP=tile.group, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return dx


def backward_weight_fake(
    grad: torch.Tensor, x: torch.Tensor, stride: list[int], y: torch.Tensor | None, tf32: bool
) -> torch.Tensor:
    size = (grad.shape[1], x.shape[1], 1, 1)
    check("pointwise_conv2d_backward_weight", grad, size, x.shape, stride, y)
    return grad.new_empty(size)


def run_backward_weight(
    grad: torch.Tensor, x: torch.Tensor, stride: list[int], y: torch.Tensor | None, tf32: bool
) -> torch.Tensor:
    """dw (O, C, 1, 1), contiguous, from grad (N, O, P, Q) and x (N, C, H, W); equal bits every run on one chip.

    y, tf32, types and errors: as of pointwise_conv2d_backward_input.
    """
    size = (grad.shape[1], x.shape[1], 1, 1)
    check("pointwise_conv2d_backward_weight", grad, size, x.shape, stride, y)
    if not on_triton(grad):
        return torch.ops.fastcnn.conv2d_backward_weight.default(
            masked(grad, y), x, size, stride, (0, 0), (1, 1), 1, 1
        ).contiguous()
    check_types("pointwise_conv2d_backward_weight", grad, x, y)
    (n, c, h, w), (_, outputs, p, q) = x.shape, grad.shape
    pixels = n * p * q
    if pixels == 0 or c == 0 or outputs == 0:
        return grad.new_zeros(size)
    grad, grad_row = rows(grad)
    x, x_row = rows(x)
    y, y_row = (None, 0) if y is None else rows(y)
    tile = tiles.weight_gradient(pixels, c, outputs, grad.dtype, tf32, y is not None, processors(grad))
    dw = grad.new_empty(size)
    partial = dw if tile.splits == 1 else grad.new_empty((tile.splits, 1, outputs * c), dtype=torch.float32)
    grid = (cdiv(outputs, tile.outputs) * cdiv(c, tile.inputs), tile.splits)
    wrap_triton(pointwise_backward_weight_kernel)[grid](
        grad, y, x, partial, pixels, c, outputs, grad_row, y_row, x_row, h, w, p, q, tile.per_split,
        STRIDE_H=stride[0], STRIDE_W=stride[1], MASKED=y is not None, WIDE=needs_int64(x, grad, y),
        PRECISION=precision(tf32), WIDEN=INTERPRETED, BLOCK_O=tile.outputs, BLOCK_C=tile.inputs, BLOCK_M=tile.pixels,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if tile.splits > 1:
        sum_splits(partial, dw)
    return dw


# Both are linear in the gradient and in their other operand, so each one's gradients are the other and the forward.
def save_input(ctx, inputs, output):
    grad, weight, _, ctx.stride, y, ctx.tf32 = inputs
    ctx.save_for_backward(grad, weight, y)


def grad_of_input(ctx, d):
    grad, weight, y = ctx.saved_tensors
    need = ctx.needs_input_grad
    dg = masked(linear(d, weight, ctx.stride, ctx.tf32), y) if need[0] else None
    dw = backward_weight(grad, d, ctx.stride, y, ctx.tf32) if need[1] else None
    return dg, dw, None, None, None, None


def save_weight(ctx, inputs, output):
    grad, x, ctx.stride, y, ctx.tf32 = inputs
    ctx.save_for_backward(grad, x, y)


def grad_of_weight(ctx, d):
    grad, x, y = ctx.saved_tensors
    need = ctx.needs_input_grad
    dg = masked(linear(x, d, ctx.stride, ctx.tf32), y) if need[0] else None
    dx = backward_input(grad, d, list(x.shape), ctx.stride, y, ctx.tf32) if need[1] else None
    return dg, dx, None, None, None


def linear(x, weight, stride, tf32):
    level = 1 + TF32 if tf32 and not x.is_cpu else 1
    return convolution.ops.conv(x, weight, None, None, stride, (0, 0), (1, 1), 1, False, level)


backward_input = Differentiable(
    triton_op("pointwise_conv2d_backward_input", run_backward_input, backward_input_fake),
    save_input,
    grad_of_input,
    fold((0, 4), size=2),
)
backward_weight = Differentiable(
    triton_op("pointwise_conv2d_backward_weight", run_backward_weight, backward_weight_fake),
    save_weight,
    grad_of_weight,
    fold(()),
)
