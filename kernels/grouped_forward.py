"""Grouped KxK convolution, channels last: ResNeXt's layers, any width of a group, with the epilogues of `epilogue.py`.

Several narrow groups are one pack, whose channels lie side by side: a pixel's tap times the pack's block-diagonal
weight is an ordinary matrix product (tiles_grouped.py says how many and why). Zeros beside the diagonal come from the
mask of the weight's load, so the weight needs no other layout and no pass of its own.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastcnn.ops.conv2d import output_size

from .epilogue import dot, epilogue, store_moments
from .register import INTERPRETED, processors, timed_or, wrap_triton
from .rows import DTYPES, empty_rows, needs_int64, nhwc, precision
from .tiles_grouped import GroupedTile, grouped_candidates, grouped_tile


@triton.jit
def block_diagonal(
    weight,
    rows,
    columns,
    in_rows,
    in_columns,
    row_stride,
    column_stride,
    group_stride,
    ROW_WIDTH: tl.constexpr,
    COLUMN_WIDTH: tl.constexpr,
):
    """A pack's weight at one tap, (rows, columns): the groups' blocks on the diagonal, zeros beside them. rows and
    columns count the pack's channels, the widths are one group's; weight points at the pack's first group."""
    row_group, column_group = rows // ROW_WIDTH, columns // COLUMN_WIDTH
    at_row = (rows % ROW_WIDTH) * row_stride
    at_column = (columns % COLUMN_WIDTH) * column_stride + column_group * group_stride
    diagonal = row_group[:, None] == column_group[None, :]
    mask = diagonal & in_rows[:, None] & in_columns[None, :]
    return tl.load(weight + at_row[:, None] + at_column[None, :], mask=mask, other=0.0)


@triton.jit
def separated(columns, sums, part, group, WIDTH: tl.constexpr):
    """sums with the columns of one of the pack's groups from part."""
    return tl.where((columns // WIDTH == group)[None, :], part, sums)


@triton.jit
def sums_over_taps(
    x,
    weight,
    p,
    q,
    in_rows,
    columns,
    in_columns,
    k_from,
    k_to,
    height,
    width,
    x_h,
    x_w,
    w_o,
    w_i,
    w_h,
    w_w,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) sums over the taps and the pack's input channels from k_from up to k_to.

    x: (BLOCK_M,) pointers to each image's first channel of the pack; p, q: output pixels.
    """
    chunks: tl.constexpr = (PACK * INPUTS + BLOCK_K - 1) // BLOCK_K
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(KH * KW * chunks):
        tap = step // chunks
        i, j = tap // KW, tap % KW
        h = p * SH - PH + i * DH
        w = q * SW - PW + j * DW
        inside = in_rows & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        k = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = (k >= k_from) & (k < k_to)
        a = tl.load((x + h * x_h + w * x_w)[:, None] + k[None, :], mask=inside[:, None] & in_k[None, :], other=0.0)
        b = block_diagonal(
            weight + i * w_h + j * w_w, k, columns, in_k, in_columns, w_i, w_o, OUTPUTS * w_o, INPUTS, OUTPUTS
        )
        sums = dot(a, b, sums, PRECISION, WIDEN)
    return sums


@triton.jit
def grouped_conv2d_kernel(
    x,
    weight,
    scale,
    shift,
    residual,
    y,
    workspace,
    counts,
    pixels,
    height,
    width,
    out_height,
    out_width,
    groups,
    x_n,
    x_h,
    x_w,
    w_o,
    w_i,
    w_h,
    w_w,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    MOMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    INT64: tl.constexpr,
):
    """y[n][p][q][o] = act(scale[o] * sum_{i,j,c} w[o][c][i][j] * x[n][p*SH-PH+i*DH][q*SW-PW+j*DW][c] + ...).

    x_n, x_h, x_w: x's strides, its channels' is 1. y, residual: dense, channels last. Channel tiles of one block of
    pixels are neighbours in the grid: several share a pixel's 128-byte line, and read it while it is in the cache.
    """
    tiles: tl.constexpr = (PACK * OUTPUTS + BLOCK_N - 1) // BLOCK_N
    across = tl.cdiv(groups, PACK) * tiles
    block = tl.program_id(0) // across
    group = tl.program_id(0) % across // tiles * PACK
    live = tl.minimum(PACK, groups - group)  # groups of this pack: fewer in the last one
    if INT64:
        block, group = block.to(tl.int64), group.to(tl.int64)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = rows < pixels
    q = rows % out_width
    p = rows // out_width % out_height
    n = rows // out_width // out_height
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = columns < live * OUTPUTS
    x += n * x_n + group * INPUTS  # (BLOCK_M,) pointers
    weight += group * OUTPUTS * w_o
    sums = sums_over_taps(
        x, weight, p, q, in_rows, columns, in_columns, 0, live * INPUTS, height, width, x_h, x_w, w_o, w_i, w_h, w_w,
        INPUTS, OUTPUTS, KH, KW, SH, SW, PH, PW, DH, DW, PACK, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, WIDEN,
    )  # fmt: skip
    if PACK > 1:  # noqa: SIM102  known when it is compiled
        # Another group's infinity or NaN times the zeros beside the diagonal is NaN: then each group by itself.
        if tl.max(tl.max((sums != sums).to(tl.int32), 1), 0) > 0:
            for each in range(live):
                part = sums_over_taps(
                    x, weight, p, q, in_rows, columns, in_columns, each * INPUTS, (each + 1) * INPUTS,
                    height, width, x_h, x_w, w_o, w_i, w_h, w_w,
                    INPUTS, OUTPUTS, KH, KW, SH, SW, PH, PW, DH, DW, PACK, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, WIDEN,
                )  # fmt: skip
                sums = separated(columns, sums, part, each, OUTPUTS)
    channels = group * OUTPUTS + columns
    at = rows[:, None] * (groups * OUTPUTS) + channels[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    value = epilogue(
        sums, scale, shift, residual + at, channels, in_columns, mask, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU
    ).to(y.dtype.element_ty)
    tl.store(y + at, value, mask=mask)
    if MOMENTS:
        store_moments(value, workspace, counts, block, channels, in_columns, in_rows, groups * OUTPUTS)


def check(x: torch.Tensor, weight: torch.Tensor, groups: int) -> None:
    """What the schema does not say of (N, C, H, W) and (O, C/groups, KH, KW)."""
    torch._check(
        x.dim() == 4 and weight.dim() == 4,
        lambda: f"grouped_conv2d: expected 4D input and weight, but got {list(x.shape)} and {list(weight.shape)}",
    )
    torch._check(
        groups > 0 and weight.shape[0] % groups == 0 and x.shape[1] == weight.shape[1] * groups,
        lambda: f"grouped_conv2d: groups={groups} does not fit input {list(x.shape)}, weight {list(weight.shape)}",
    )
    torch._check(
        x.dtype == weight.dtype and x.device == weight.device,
        lambda: f"grouped_conv2d: input is {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}",
    )


def check_epilogue(x: torch.Tensor, size: Sequence[int], scale, shift, residual) -> None:
    """size: the output's."""
    for name, t, wanted in (("scale", scale, size[1:2]), ("shift", shift, size[1:2]), ("residual", residual, size)):
        torch._check(
            t is None or (tuple(t.shape) == tuple(wanted) and t.device == x.device),
            lambda name=name, t=t, wanted=wanted: (
                f"grouped_conv2d: expected {name} of size {list(wanted)} on {x.device}, but got {list(t.shape)} on "
                f"{t.device}"
            ),
        )


def flags(x: torch.Tensor, tf32: bool, *largest: torch.Tensor) -> dict:
    """The constants that every kernel here takes; largest: the tensors that it addresses."""
    torch._check(x.dtype in DTYPES, lambda: f"grouped_conv2d: expected float16, bfloat16 or float32, but got {x.dtype}")
    return {
        "PRECISION": precision(tf32),
        "WIDEN": INTERPRETED and x.dtype == torch.bfloat16,
        "INT64": needs_int64(*largest),
    }


def geometry(weight: torch.Tensor, stride, padding, dilation, groups: int) -> dict:
    """The kernels' constants of a layer."""
    outputs, inputs, kh, kw = weight.shape
    return {
        "INPUTS": inputs, "OUTPUTS": outputs // groups, "KH": kh, "KW": kw, "SH": stride[0], "SW": stride[1],
        "PH": padding[0], "PW": padding[1], "DH": dilation[0], "DW": dilation[1],
    }  # fmt: skip


def out_shape(x, weight, stride, padding, dilation) -> tuple[int, int, int, int]:
    h, w = (output_size(x.shape[2 + d], weight.shape[2 + d], stride[d], padding[d], dilation[d]) for d in range(2))
    torch._check(h > 0 and w > 0, lambda: f"grouped_conv2d: the output of {list(x.shape)} would have size {h}x{w}")
    return x.shape[0], weight.shape[0], h, w


def tile_of(
    pixels: int, groups: int, inputs: int, outputs: int, dtype: torch.dtype, processors: int, moments: bool
) -> GroupedTile:
    """The rule's tile, or the one that policy "fastest" is timing or has found."""
    sizes = (pixels, groups, inputs, outputs, dtype, processors)
    return timed_or(grouped_tile(*sizes, moments), lambda: grouped_candidates(*sizes))


def launch(
    x, weight, scale, shift, residual, stride, padding, dilation, groups, relu, tf32, moments,
    tile: GroupedTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """The output, and with moments (tiles, 2, O) and (tiles,) of each block of pixels; tile: None takes the rule's."""
    check(x, weight, groups)
    n, outputs, oh, ow = out_shape(x, weight, stride, padding, dilation)
    check_epilogue(x, (n, outputs, oh, ow), scale, shift, residual)
    scale, shift = (None if v is None else v.contiguous() for v in (scale, shift))
    x, pixels = nhwc(x), n * oh * ow
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
    y = empty_rows(x, n, outputs, oh, ow)
    tile = tile or tile_of(pixels, groups, weight.shape[1], outputs // groups, x.dtype, processors(x), moments)
    blocks = triton.cdiv(pixels, tile.block_m)
    torch._check(not moments or pixels > 0, lambda: f"grouped_conv2d_stats: no pixels in {list(x.shape)}")
    workspace = x.new_empty((blocks, 2, outputs), dtype=torch.float32) if moments else None
    counts = x.new_empty(blocks, dtype=torch.float32) if moments else None
    if pixels:
        grid = (blocks * triton.cdiv(groups, tile.pack) * triton.cdiv(tile.pack * outputs // groups, tile.block_n),)
        wrap_triton(grouped_conv2d_kernel)[grid](
            x, weight, x if scale is None else scale, x if shift is None else shift,
            x if residual is None else residual, y, x if workspace is None else workspace,
            x if counts is None else counts, pixels, x.shape[2], x.shape[3], oh, ow, groups,
            x.stride(0), x.stride(2), x.stride(3), *weight.stride(),
            **geometry(weight, stride, padding, dilation, groups),
            PACK=tile.pack, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            HAS_SCALE=scale is not None, HAS_SHIFT=shift is not None, HAS_RESIDUAL=residual is not None, RELU=relu,
            MOMENTS=moments, **flags(x, tf32, x, y), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return y, workspace, counts
