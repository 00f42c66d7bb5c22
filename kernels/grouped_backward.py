"""Gradients of grouped convolution, channels last, from the same packs of groups as `grouped_forward.py`.

Both read the output's gradient and, with `y`, mask it by y > 0 as they load: a ReLU's backward has no pass of its own.
No atomics: the weight's gradient is summed over ranges of pixels, and their sums in order by a second kernel.
"""

import math

import torch
import triton
import triton.language as tl

from .epilogue import dot
from .grouped_forward import block_diagonal, check, flags, geometry, out_shape, separated
from .reductions import masked_gradient, sum_splits
from .register import processors, wrap_triton
from .rows import nhwc
from .tiles_grouped import GroupedTile, GroupedWeightTile, grouped_tile, grouped_weight_tile


@triton.jit
def first_tap(residue, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """The least i with i * DILATION = residue modulo STRIDE; every STEP-th one from there fits, too. 2**16 if none."""
    first = residue * 0 + 65536
    for t in tl.static_range(STEP):
        first = tl.where((residue - (STEP - 1 - t) * DILATION) % STRIDE == 0, STEP - 1 - t, first)
    return first


@triton.jit
def sums_over_gradient(
    grad,
    y,
    weight,
    n,
    h,
    w,
    in_rows,
    columns,
    in_columns,
    k_from,
    k_to,
    i_first,
    j_first,
    taps_h,
    taps_w,
    out_height,
    out_width,
    out_channels,
    g_h,
    g_w,
    w_o,
    w_i,
    w_h,
    w_w,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_Y: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) sums over the taps and the pack's output channels from k_from up to k_to.

    grad: (BLOCK_M,) pointers to each image's first channel of the pack; y: one to the first pixel's; h, w: the input's.
    """
    chunks: tl.constexpr = (PACK * OUTPUTS + BLOCK_K - 1) // BLOCK_K
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps_h * taps_w * chunks):
        tap = step // chunks
        i, j = i_first + tap // taps_w * STEP_H, j_first + tap % taps_w * STEP_W
        p_strided, q_strided = h + PH - i * DH, w + PW - j * DW
        p, q = p_strided // SH, q_strided // SW  # exact
        inside = in_rows & (p_strided >= 0) & (p < out_height) & (q_strided >= 0) & (q < out_width)
        k = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = (k >= k_from) & (k < k_to)
        at_y = ((n * out_height + p) * out_width + q) * out_channels
        a = masked_gradient(
            (grad + p * g_h + q * g_w)[:, None],
            y + at_y[:, None],
            k[None, :],
            k[None, :],
            inside[:, None] & in_k[None, :],
            HAS_Y,
        )
        b = block_diagonal(
            weight + i * w_h + j * w_w, k, columns, in_k, in_columns, w_o, w_i, OUTPUTS * w_o, OUTPUTS, INPUTS
        )
        sums = dot(a, b, sums, PRECISION, WIDEN)
    return sums


@triton.jit
def grouped_conv2d_backward_input_kernel(
    grad,
    y,
    weight,
    dx,
    batch,
    height,
    width,
    out_height,
    out_width,
    groups,
    g_n,
    g_h,
    g_w,
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
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_Y: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    INT64: tl.constexpr,
):
    """dx[n][h][w][c] = sum_{o,i,j} w[o][c][i][j] * g[n][p][q][o] over p*SH = h + PH - i*DH, q*SW = w + PW - j*DW.

    The grid's second axis takes h and w modulo the stride: all pixels of a program have the same taps, 4, 2, 2 and 1 of
    nine with stride 2, and none is multiplied by zeros. Pixels that no output reads get 0.
    """
    tiles: tl.constexpr = (PACK * INPUTS + BLOCK_N - 1) // BLOCK_N
    top, left = tl.program_id(1) // SW, tl.program_id(1) % SW
    rows_h, rows_w = tl.cdiv(height - top, SH), tl.cdiv(width - left, SW)  # of pixels with these residues
    i_first, j_first = first_tap(top + PH, SH, DH, STEP_H), first_tap(left + PW, SW, DW, STEP_W)
    taps_h = tl.maximum(KH - i_first + STEP_H - 1, 0) // STEP_H
    taps_w = tl.maximum(KW - j_first + STEP_W - 1, 0) // STEP_W

    across = tl.cdiv(groups, PACK) * tiles
    block = tl.program_id(0) // across
    group = tl.program_id(0) % across // tiles * PACK
    live = tl.minimum(PACK, groups - group)
    if INT64:
        block, group = block.to(tl.int64), group.to(tl.int64)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = rows < batch * rows_h * rows_w
    columns_w, columns_h = tl.maximum(rows_w, 1), tl.maximum(rows_h, 1)  # 0 if the image is narrower than the stride
    w = left + rows % columns_w * SW
    h = top + rows // columns_w % columns_h * SH
    n = rows // columns_w // columns_h
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = columns < live * INPUTS
    grad += n * g_n + group * OUTPUTS  # (BLOCK_M,) pointers
    y += group * OUTPUTS
    weight += group * OUTPUTS * w_o
    sums = sums_over_gradient(
        grad, y, weight, n, h, w, in_rows, columns, in_columns, 0, live * OUTPUTS, i_first, j_first, taps_h, taps_w,
        out_height, out_width, groups * OUTPUTS, g_h, g_w, w_o, w_i, w_h, w_w,
        INPUTS, OUTPUTS, SH, SW, PH, PW, DH, DW, STEP_H, STEP_W, PACK, BLOCK_M, BLOCK_N, BLOCK_K,
        HAS_Y, PRECISION, WIDEN,
    )  # fmt: skip
    if PACK > 1:  # noqa: SIM102  known when it is compiled
        # As in the forward kernel: a group's NaN must not come to its neighbours.
        if tl.max(tl.max((sums != sums).to(tl.int32), 1), 0) > 0:
            for each in range(live):
                part = sums_over_gradient(
                    grad, y, weight, n, h, w, in_rows, columns, in_columns, each * OUTPUTS, (each + 1) * OUTPUTS,
                    i_first, j_first, taps_h, taps_w, out_height, out_width, groups * OUTPUTS, g_h, g_w,
                    w_o, w_i, w_h, w_w,
                    INPUTS, OUTPUTS, SH, SW, PH, PW, DH, DW, STEP_H, STEP_W, PACK, BLOCK_M, BLOCK_N, BLOCK_K,
                    HAS_Y, PRECISION, WIDEN,
                )  # fmt: skip
                sums = separated(columns, sums, part, each, INPUTS)
    at = ((n * height + h) * width + w) * (groups * INPUTS) + group * INPUTS
    mask = in_rows[:, None] & in_columns[None, :]
    tl.store(dx + at[:, None] + columns[None, :], sums.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def grouped_conv2d_backward_weight_kernel(
    grad,
    y,
    x,
    partial,
    pixels,
    height,
    width,
    out_height,
    out_width,
    groups,
    splits,
    g_n,
    g_h,
    g_w,
    x_n,
    x_h,
    x_w,
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
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HAS_Y: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    INT64: tl.constexpr,
):
    """partial[split][o][c][i][j] = sum over the split's pixels of g[n][p][q][o] * x[n][p*SH-PH+i*DH][q*SW-PW+j*DW][c].

    A program's columns are (tap, channel of the pack); of their products with all the pack's outputs the groups' own
    blocks are stored.
    """
    channels: tl.constexpr = PACK * INPUTS
    o_tiles: tl.constexpr = (PACK * OUTPUTS + BLOCK_O - 1) // BLOCK_O
    c_tiles: tl.constexpr = (KH * KW * channels + BLOCK_C - 1) // BLOCK_C
    split = tl.program_id(1)
    group = tl.program_id(0) // (o_tiles * c_tiles) * PACK
    live = tl.minimum(PACK, groups - group)
    if INT64:
        group = group.to(tl.int64)
    columns = tl.program_id(0) % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    tap, c = columns // channels, columns % channels
    i, j = tap // KW, tap % KW
    in_columns = (tap < KH * KW) & (c < live * INPUTS)
    o = tl.program_id(0) // c_tiles % o_tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    in_o = o < live * OUTPUTS
    steps = tl.cdiv(pixels, BLOCK_P)
    share = tl.cdiv(steps, splits)
    sums = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for step in range(split * share, tl.minimum(steps, (split + 1) * share)):
        rows = step * BLOCK_P + tl.arange(0, BLOCK_P)
        in_rows = rows < pixels
        if INT64:
            rows = rows.to(tl.int64)
        q = rows % out_width
        p = rows // out_width % out_height
        n = rows // out_width // out_height
        g = masked_gradient(
            (grad + n * g_n + p * g_h + q * g_w + group * OUTPUTS)[:, None],
            (y + rows * (groups * OUTPUTS) + group * OUTPUTS)[:, None],
            o[None, :],
            o[None, :],
            in_rows[:, None] & in_o[None, :],
            HAS_Y,
        )
        h = (p * SH - PH)[:, None] + (i * DH)[None, :]
        w = (q * SW - PW)[:, None] + (j * DW)[None, :]
        inside = in_rows[:, None] & in_columns[None, :] & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        taps = tl.load((x + n * x_n + group * INPUTS)[:, None] + (h * x_h + w * x_w + c[None, :]), inside, 0.0)
        sums = dot(tl.trans(g), taps, sums, PRECISION, WIDEN)
    diagonal = (o // OUTPUTS)[:, None] == (c // INPUTS)[None, :]
    weights: tl.constexpr = INPUTS * KH * KW  # of one output channel
    at = ((group * OUTPUTS + o) * weights)[:, None] + (c % INPUTS * (KH * KW) + tap)[None, :]
    partial += split.to(tl.int64) * (groups * OUTPUTS * weights)
    tl.store(partial + at, sums, mask=diagonal & in_o[:, None] & in_columns[None, :])


def check_gradient(grad, x, weight, stride, padding, dilation, groups, y) -> None:
    """x: the input, or an empty tensor of its size."""
    check(x, weight, groups)
    wanted = out_shape(x, weight, stride, padding, dilation)
    for name, t in (("grad", grad), ("y", y)):
        torch._check(
            t is None or (tuple(t.shape) == wanted and t.dtype == x.dtype and t.device == x.device),
            lambda name=name, t=t: (
                f"grouped_conv2d: expected {name} to be {x.dtype} of size {list(wanted)} "
                f"on {x.device}, but got {t.dtype} of size {list(t.shape)} on {t.device}"
            ),
        )


def launch_input(
    grad, weight, input_size, stride, padding, dilation, groups, y, tf32, tile: GroupedTile | None = None
) -> torch.Tensor:
    """The input's gradient, (N, C, H, W) channels last."""
    n, _, height, width = input_size
    dx = torch.empty(input_size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    check_gradient(grad, dx, weight, stride, padding, dilation, groups, y)
    grad = nhwc(grad)
    y = None if y is None else y.contiguous(memory_format=torch.channels_last)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    pixels = n * triton.cdiv(height, stride[0]) * triton.cdiv(width, stride[1])
    tile = tile or grouped_tile(pixels, groups, outputs, inputs, grad.dtype, processors(grad))
    steps = [s // math.gcd(s, d) for s, d in zip(stride, dilation)]
    if pixels:
        across = triton.cdiv(groups, tile.pack) * triton.cdiv(tile.pack * inputs, tile.block_n)
        wrap_triton(grouped_conv2d_backward_input_kernel)[
            (triton.cdiv(pixels, tile.block_m) * across, stride[0] * stride[1])
        ](
            grad, grad if y is None else y, weight, dx, n, height, width, grad.shape[2], grad.shape[3], groups,
            grad.stride(0), grad.stride(2), grad.stride(3), *weight.stride(),
            **geometry(weight, stride, padding, dilation, groups), STEP_H=steps[0], STEP_W=steps[1],
            PACK=tile.pack, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, HAS_Y=y is not None,
            **flags(grad, tf32, grad, dx), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return dx


def launch_weight(
    grad, x, weight_size, stride, padding, dilation, groups, y, tf32, tile: GroupedWeightTile | None = None
) -> torch.Tensor:
    """The weight's gradient, (O, C/groups, KH, KW) contiguous; equal bits every run on one chip."""
    weight = torch.empty(weight_size, dtype=x.dtype, device=x.device)
    check_gradient(grad, x, weight, stride, padding, dilation, groups, y)
    grad, x = nhwc(grad), nhwc(x)
    y = None if y is None else y.contiguous(memory_format=torch.channels_last)
    channels, inputs, kh, kw = weight_size
    outputs, pixels = channels // groups, grad.shape[0] * grad.shape[2] * grad.shape[3]
    tile = tile or grouped_weight_tile(pixels, groups, inputs, outputs, kh * kw, x.dtype, processors(x))
    partial = torch.empty((tile.splits, *weight_size), dtype=torch.float32, device=x.device)
    blocks = (
        triton.cdiv(groups, tile.pack)
        * triton.cdiv(tile.pack * outputs, tile.block_o)
        * triton.cdiv(kh * kw * tile.pack * inputs, tile.block_c)
    )
    wrap_triton(grouped_conv2d_backward_weight_kernel)[(blocks, tile.splits)](
        grad, grad if y is None else y, x, partial, pixels, x.shape[2], x.shape[3], grad.shape[2], grad.shape[3],
        groups, tile.splits, grad.stride(0), grad.stride(2), grad.stride(3), x.stride(0), x.stride(2), x.stride(3),
        **geometry(weight, stride, padding, dilation, groups),
        PACK=tile.pack, BLOCK_O=tile.block_o, BLOCK_C=tile.block_c, BLOCK_P=tile.block_p, HAS_Y=y is not None,
        **flags(x, tf32, grad, x), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    sum_splits(partial.view(tile.splits, 1, -1), weight)
    return weight
