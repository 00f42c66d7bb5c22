"""1x1 convolution of channels_last tensors: what can be computed, and the launches of pointwise_kernels.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .epilogue import merge_moments
from .pointwise_kernels import pointwise_kernel, pointwise_reduce_kernel
from .register import INTERPRETED, processors, timed_or, wrap_triton
from .rows import DTYPES, empty_rows, matrix, needs_int64, nhwc, pixel_stride, precision, rows
from .tiles import PointwiseTile, beside_sums, cdiv, pointwise_candidates, pointwise_tile


def output_size(x: Tensor, weight: Tensor, stride: Sequence[int]) -> tuple[int, int, int, int]:
    """(N, O, OH, OW)."""
    return x.shape[0], weight.shape[0], (x.shape[2] - 1) // stride[0] + 1, (x.shape[3] - 1) // stride[1] + 1


def check(x: Tensor, weight: Tensor, stride: Sequence[int], vectors: dict[str, tuple[Tensor | None, int]]) -> None:
    """RuntimeError where sizes do not fit. vectors: each with the size that it must have."""
    torch._check(
        x.dim() == 4 and weight.dim() == 4 and x.shape[1] == weight.shape[1],
        lambda: (
            f"pointwise_conv2d: expected x (N, C, H, W) and weight (O, C, 1, 1), but got {list(x.shape)} and "
            f"{list(weight.shape)}"
        ),
    )
    torch._check(
        weight.shape[2] == 1 and weight.shape[3] == 1,
        lambda: f"pointwise_conv2d: expected a 1x1 weight, but got {list(weight.shape)}",
    )
    torch._check(
        weight.dtype == x.dtype,
        lambda: f"pointwise_conv2d: expected weight of x's dtype {x.dtype}, but got {weight.dtype}",
    )
    torch._check(
        len(stride) == 2 and stride[0] > 0 and stride[1] > 0,
        lambda: f"pointwise_conv2d: expected a stride of two positive numbers, but got {list(stride)}",
    )
    for name, (v, size) in vectors.items():
        torch._check(
            v is None or (v.dim() == 1 and v.shape[0] == size),
            lambda: f"pointwise_conv2d: expected {name} of size ({size},), but got {list(v.shape)}",  # noqa: B023
        )


def check_all(x, weight, scale, shift, residual, pre_scale, pre_shift, stride) -> None:
    outputs, inputs = weight.shape[0], weight.shape[1] if weight.dim() == 4 else 0
    vectors = dict(
        scale=(scale, outputs), shift=(shift, outputs), pre_scale=(pre_scale, inputs), pre_shift=(pre_shift, inputs)
    )
    check(x, weight, stride, vectors)
    torch._check(
        (pre_scale is None) == (pre_shift is None), lambda: "pointwise_conv2d: expected pre_scale and pre_shift or none"
    )
    torch._check(
        residual is None or tuple(residual.shape) == output_size(x, weight, stride),
        lambda: (
            f"pointwise_conv2d: expected a residual of size {list(output_size(x, weight, stride))}, but got "
            f"{list(residual.shape)}"
        ),
    )


def empty_output(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    return empty_rows(x, *output_size(x, weight, stride))


def tile_of(
    pixels: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    tf32: bool,
    processors: int,
    pre: bool = False,
    stats: bool = False,
) -> PointwiseTile:
    """The rule's tile, or the one that policy "fastest" is timing or has found."""
    sizes = (pixels, inputs, outputs, dtype, tf32, processors)
    tile = timed_or(pointwise_tile(*sizes), lambda: pointwise_candidates(*sizes))
    return beside_sums(tile, dtype, pre, stats)


def launch(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    relu: bool = False,
    tf32: bool = False,
    stats: bool = False,
    tile: PointwiseTile | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Computes into y, of which pixels must lie equally far apart and channels together: a channel slice will do.

    stats: returns y's mean and biased variance over (N, H, W), (O,) float32 each. tile: None takes tiles.py's.
    """
    torch._check(x.dtype in DTYPES, lambda: f"pointwise_conv2d: no Triton kernel for {x.dtype}")
    pixels, inputs, outputs = y.shape[0] * y.shape[2] * y.shape[3], x.shape[1], y.shape[1]
    if y.numel() == 0:
        empty = y.new_full((outputs,), torch.nan, dtype=torch.float32)
        return (empty, empty.clone()) if stats else None
    x, weight = nhwc(x), matrix(weight)
    residual, residual_pixel = (None, 0) if residual is None else rows(residual)
    y_pixel = pixel_stride(y)
    torch._check(y_pixel is not None, lambda: f"pointwise_conv2d: cannot write to strides {y.stride()}")
    apart = pixel_stride(x)
    strided = tuple(stride) != (1, 1) or apart is None
    vectors = [None if v is None else v.contiguous() for v in (scale, shift)]
    pre = [None if v is None else v.float().contiguous() for v in (pre_scale, pre_shift)]
    t = tile or tile_of(pixels, inputs, outputs, x.dtype, tf32, processors(x), pre_scale is not None, stats)
    tiles_p, tiles_o = cdiv(pixels, t.pixels), cdiv(outputs, t.outputs)
    partial = y.new_empty((t.split, pixels, outputs), dtype=torch.float32) if t.split > 1 else None
    moments = y.new_empty((tiles_p, 2, outputs), dtype=torch.float32) if stats else None
    counts = y.new_empty(tiles_p, dtype=torch.float32) if stats else None
    flags = dict(
        HAS_SCALE=scale is not None, HAS_SHIFT=shift is not None, HAS_RESIDUAL=residual is not None, RELU=relu,
        STATS=stats, WIDE=needs_int64(x, y, residual),
    )  # fmt: skip
    programs = tiles_p * tiles_o * t.split
    if t.persistent and programs > 2 * processors(x):
        programs = 2 * processors(x)
    wrap_triton(pointwise_kernel)[(programs,)](
        x, weight, y, *vectors, residual, *pre, partial, moments, counts, pixels, inputs, outputs, y.shape[2],
        y.shape[3], x.stride(0), x.stride(2) * stride[0], x.stride(3) * stride[1] if strided else apart, y_pixel,
        residual_pixel, BLOCK_P=t.pixels, BLOCK_O=t.outputs, BLOCK_C=t.inputs, GROUP=t.group, SPLIT=t.split,
        PERSISTENT=t.persistent, STRIDED=strided, EVEN_C=bool(inputs % t.inputs == 0), PRE=pre_scale is not None,
        **flags, PRECISION=precision(tf32), WIDEN=INTERPRETED and x.dtype is torch.bfloat16,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    if t.split > 1:
        wrap_triton(pointwise_reduce_kernel)[(tiles_p, tiles_o)](
            partial, y, *vectors, residual, moments, counts, pixels, outputs, y_pixel, residual_pixel, SPLIT=t.split,
            BLOCK_P=t.pixels, BLOCK_O=t.outputs, **flags, num_warps=4,
        )  # fmt: skip
    return merge_moments(moments, counts) if stats else None
