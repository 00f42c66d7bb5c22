"""Sums over pixels: of a gradient and of what normalization's gradient needs, for each channel.

Pixels are cut into pieces, whose sums are written and then added in a fixed order: equal bits every run.
"""

import torch
import triton
import triton.language as tl

from fastcnn.ops._define import loop

from . import tiles_backward as tiles
from .formulas import masked, wide_type
from .register import on_triton, processors, triton_op, wrap_triton
from .rows import check_types, needs_int64, rows
from .tiles import cdiv


@triton.jit
def masked_gradient(grad, y, at, at_y, mask, MASKED: tl.constexpr):
    """A tile of the gradient, 0 where the ReLU's output y is: NaN passes, as in torch's threshold_backward."""
    g = tl.load(grad + at, mask=mask, other=0.0)
    if MASKED:
        v = tl.load(y + at_y, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(v <= 0.0, 0.0, g)
    return g


@triton.jit
def channel_sums_kernel(
    grad,
    y,
    z,
    mean,
    rstd,
    partial,
    pixels,
    channels,
    grad_row,
    y_row,
    z_row,
    per_split,
    MASKED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial: (splits, 2, channels) of sum g and sum g (z - mean) rstd, or (splits, 1, channels) of sum g alone."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = c < channels
    if NORMALIZED:
        centre = tl.load(mean + c, mask=in_channels, other=0.0)
    split = tl.program_id(1).to(tl.int64)
    first = split * per_split if WIDE else tl.program_id(1) * per_split
    # Added over the pixels after the loop: BLOCK_M sums of each channel stay apart until then.
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(first, tl.minimum(first + per_split, pixels), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < pixels)[:, None] & in_channels[None, :]
        at, at_y = m[:, None] * grad_row + c[None, :], m[:, None] * y_row + c[None, :]
        g = masked_gradient(grad, y, at, at_y, mask, MASKED).to(tl.float32)
        sums += g
        if NORMALIZED:
            v = tl.load(z + m[:, None] * z_row + c[None, :], mask=mask, other=0.0).to(tl.float32)
            products += g * (v - centre[None, :])
    parts = 2 if NORMALIZED else 1
    at = partial + split * parts * channels + c
    tl.store(at, tl.sum(sums, 0), mask=in_channels)
    if NORMALIZED:
        scale = tl.load(rstd + c, mask=in_channels, other=0.0)
        tl.store(at + channels, tl.sum(products, 0) * scale, mask=in_channels)


@triton.jit
def sum_splits_kernel(partial, out, second, splits, elements, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = sum_s partial[s, 0, i], and where there are two parts, second[i] = sum_s partial[s, 1, i]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1)
    mask = i < elements
    at = partial + part.to(tl.int64) * elements + i
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(at, mask=mask, other=0.0)
        at += PARTS * elements
    if PARTS == 1:
        tl.store(out + i, total.to(out.dtype.element_ty), mask=mask)
    else:
        if part == 0:
            tl.store(out + i, total, mask=mask)
        else:
            tl.store(second + i, total, mask=mask)


def sum_splits(partial: torch.Tensor, out: torch.Tensor, second: torch.Tensor | None = None) -> None:
    """Adds float32 pieces (splits, parts, elements) into out, and the second part into `second`."""
    splits, parts, elements = partial.shape
    # 2 KiB of each piece a program.
    wrap_triton(sum_splits_kernel)[(cdiv(elements, 512), parts)](
        partial, out, second, splits, elements, PARTS=parts, BLOCK=512
    )


def check(grad, y, z, mean, rstd) -> None:
    op = "pointwise_conv2d_backward_reduce"
    torch._check(grad.dim() == 4, lambda: f"{op}: expected a 4D gradient, but got {list(grad.shape)}")
    for name, t in (("y", y), ("z", z)):
        torch._check(
            t is None or t.shape == grad.shape,
            lambda name=name, t=t: (
                f"{op}: expected {name} to be as the gradient, {list(grad.shape)}, but got {list(t.shape)}"
            ),
        )
    torch._check(
        (z is None) == (mean is None) == (rstd is None), lambda: f"{op}: expected z, mean and rstd, or none of them"
    )
    for name, t in (("mean", mean), ("rstd", rstd)):
        torch._check(
            t is None or list(t.shape) == [grad.shape[1]],
            lambda name=name, t=t: f"{op}: expected {name} of size [{grad.shape[1]}], but got {list(t.shape)}",
        )


def backward_reduce_fake(
    grad: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(grad, y, z, mean, rstd)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    channels = grad.shape[1]
    return grad.new_empty(channels, dtype=dtype), grad.new_empty(0 if z is None else channels, dtype=dtype)


def run_backward_reduce(
    grad: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum g, sum g * (z - mean) * rstd) over batch and pixels: the gradients of normalization's shift and scale, the
    first also a bias's. float32, or float64 from float64.

    grad: (N, C, H, W); y: None, or as grad, the output of a ReLU: grad counts only where it is positive or NaN. z: as
    grad, what was normalized, with its batch statistics mean and rstd = 1 / sqrt(var + eps), (C,); without z the second
    tensor is empty. RuntimeError on sizes and types that do not fit.
    """
    sums, products = backward_reduce_fake(grad, y, z, mean, rstd)
    n, channels, h, w = grad.shape
    if not on_triton(grad):
        g = masked(grad, y).to(sums.dtype)
        if z is not None:
            # Centred before it is multiplied: sum g z - mean sum g would cancel.
            centred = z.to(sums.dtype) - mean.to(sums.dtype).view(-1, 1, 1)
            products = (g * centred).sum((0, 2, 3)) * rstd.to(sums.dtype)
        return g.sum((0, 2, 3)), products
    check_types("pointwise_conv2d_backward_reduce", grad, y, z)
    pixels = n * h * w
    if pixels == 0 or channels == 0:
        return sums.zero_(), products.zero_()
    grad, grad_row = rows(grad)
    y, y_row = (None, 0) if y is None else rows(y)
    z, z_row = (None, 0) if z is None else rows(z)
    if z is not None:
        mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    tile = tiles.channel_sums(pixels, channels, processors(grad))
    partial = sums.new_empty((tile.splits, 1 if z is None else 2, channels))
    wrap_triton(channel_sums_kernel)[(cdiv(channels, tile.channels), tile.splits)](
        grad, y, z, mean, rstd, partial, pixels, channels, grad_row, y_row, z_row, tile.per_split,
        MASKED=y is not None, NORMALIZED=z is not None, WIDE=needs_int64(grad, y, z),
        BLOCK_M=tile.pixels, BLOCK_C=tile.channels, num_warps=tile.num_warps,
    )  # fmt: skip
    sum_splits(partial, sums, None if z is None else products)
    return sums, products


backward_reduce = triton_op("pointwise_conv2d_backward_reduce", run_backward_reduce, backward_reduce_fake)
torch.library.register_vmap(backward_reduce, loop(backward_reduce))


def channel_sums(g: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """(O,) sums of g where the ReLU's output y is positive; by PyTorch's ops where they may be differentiated again."""
    if torch.is_grad_enabled():
        return masked(g, y).sum((0, 2, 3), dtype=wide_type(g))
    return backward_reduce(g, y, None, None, None)[0]
