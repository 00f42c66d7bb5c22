"""1x1 convolution as a matrix product of pixels and output channels: the Triton kernels.

y[p, o] = act(scale[o] * sum_c pre(x[p, c]) * w[o, c] + shift[o] + residual[p, o]), p over all images' output pixels
"""

import triton
import triton.language as tl

from .epilogue import dot, epilogue, prologue, store_moments


@triton.jit
def finish_tile(
    sums,
    y,
    scale,
    shift,
    residual,
    moments,
    counts,
    tile,
    pixel,
    channels,
    in_pixels,
    in_channels,
    outputs,
    y_pixel,
    residual_pixel,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    STATS: tl.constexpr,
):
    """The epilogue of a tile of complete sums, its store, and its batch statistics. tile: the pixels' number."""
    mask = in_pixels[:, None] & in_channels[None, :]
    at = residual
    if HAS_RESIDUAL:
        at = residual + pixel[:, None] * residual_pixel + channels[None, :]
    values = epilogue(sums, scale, shift, at, channels, in_channels, mask, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU)
    values = values.to(y.dtype.element_ty)
    tl.store(y + pixel[:, None] * y_pixel + channels[None, :], values, mask=mask)
    if STATS:
        store_moments(values, moments, counts, tile.to(tl.int64), channels, in_channels, in_pixels, outputs)


@triton.jit
def pointwise_tile(
    program,
    x,
    weight,
    y,
    scale,
    shift,
    residual,
    pre_scale,
    pre_shift,
    partial,
    moments,
    counts,
    pixels,
    inputs,
    outputs,
    out_h,
    out_w,
    x_image,
    x_row,
    x_pixel,
    y_pixel,
    residual_pixel,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    STRIDED: tl.constexpr,
    EVEN_C: tl.constexpr,
    PRE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    STATS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tiles_p, tiles_o = tl.cdiv(pixels, BLOCK_P), tl.cdiv(outputs, BLOCK_O)
    if SPLIT > 1:
        split, tile = program // (tiles_p * tiles_o), program % (tiles_p * tiles_o)
        chunk = tl.cdiv(tl.cdiv(inputs, BLOCK_C), SPLIT) * BLOCK_C
        first, last = split * chunk, min(inputs, (split + 1) * chunk)
    else:
        tile, first, last = program, 0, inputs
    # Programs that run at once share GROUP tiles of pixels and, with these, all weights: both come from L2.
    first_p = tile // (GROUP * tiles_o) * GROUP
    rows = min(tiles_p - first_p, GROUP)
    within = tile % (GROUP * tiles_o)
    tile_p, tile_o = first_p + within % rows, within // rows

    if WIDE:
        pixel = tile_p.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    else:
        pixel = tile_p * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    in_pixels, in_channels = pixel < pixels, channels < outputs
    if STRIDED:
        column, image_row = pixel % out_w, pixel // out_w
        x_at = image_row // out_h * x_image + image_row % out_h * x_row + column * x_pixel
    else:
        x_at = pixel * x_pixel

    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for start in range(first, last, BLOCK_C):
        depth = start + tl.arange(0, BLOCK_C)
        if EVEN_C:  # known as the kernel is compiled: one predicate a row instead of one a load
            x_mask, w_mask = in_pixels[:, None], in_channels[None, :]
        else:
            in_depth = depth < last
            x_mask, w_mask = in_pixels[:, None] & in_depth[None, :], in_channels[None, :] & in_depth[:, None]
        a = tl.load(x + x_at[:, None] + depth[None, :], mask=x_mask, other=0.0)
        b = tl.load(weight + channels[None, :] * inputs + depth[:, None], mask=w_mask, other=0.0)
        if PRE:
            s = tl.load(pre_scale + depth, mask=depth < last, other=0.0)[None, :]
            t = tl.load(pre_shift + depth, mask=depth < last, other=0.0)[None, :]
            a = prologue(a, s, t, x_mask)
        sums = dot(a, b, sums, PRECISION, WIDEN)

    if SPLIT > 1:
        at = partial + (split * pixels + pixel)[:, None] * outputs + channels[None, :]
        tl.store(at, sums, mask=in_pixels[:, None] & in_channels[None, :])
    else:
        finish_tile(
            sums, y, scale, shift, residual, moments, counts, tile_p, pixel, channels, in_pixels, in_channels, outputs,
            y_pixel, residual_pixel, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU, STATS,
        )  # fmt: skip


@triton.jit
def pointwise_kernel(
    x,
    weight,
    y,
    scale,
    shift,
    residual,
    pre_scale,
    pre_shift,
    partial,
    moments,
    counts,
    pixels,
    inputs,
    outputs,
    out_h,
    out_w,
    x_image,
    x_row,
    x_pixel,
    y_pixel,
    residual_pixel,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
    SPLIT: tl.constexpr,
    PERSISTENT: tl.constexpr,
    STRIDED: tl.constexpr,
    EVEN_C: tl.constexpr,
    PRE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    STATS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """x: channels_last, x[n, h, w, c] at n*x_image + h*x_row + w*x_pixel + c, these of output pixels, so the stride is
    in them; unless STRIDED, x_pixel alone. weight: (O, C). y, residual: pixels y_pixel and residual_pixel apart.
    partial: (SPLIT, pixels, O) float32, or None; moments, counts: of store_moments, or None. WIDE: 64-bit offsets.
    """
    if PERSISTENT:
        tiles = tl.cdiv(pixels, BLOCK_P) * tl.cdiv(outputs, BLOCK_O)
        for program in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
            pointwise_tile(
                program, x, weight, y, scale, shift, residual, pre_scale, pre_shift, partial, moments, counts, pixels,
                inputs, outputs, out_h, out_w, x_image, x_row, x_pixel, y_pixel, residual_pixel, BLOCK_P, BLOCK_O,
                BLOCK_C, GROUP, SPLIT, STRIDED, EVEN_C, PRE, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU, STATS, WIDE,
                PRECISION, WIDEN,
            )  # fmt: skip
    else:
        pointwise_tile(
            tl.program_id(0), x, weight, y, scale, shift, residual, pre_scale, pre_shift, partial, moments, counts,
            pixels, inputs, outputs, out_h, out_w, x_image, x_row, x_pixel, y_pixel, residual_pixel, BLOCK_P, BLOCK_O,
            BLOCK_C, GROUP, SPLIT, STRIDED, EVEN_C, PRE, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU, STATS, WIDE,
            PRECISION, WIDEN,
        )  # fmt: skip


@triton.jit
def pointwise_reduce_kernel(
    partial,
    y,
    scale,
    shift,
    residual,
    moments,
    counts,
    pixels,
    outputs,
    y_pixel,
    residual_pixel,
    SPLIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    STATS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Adds the sums of a split in order and finishes the tile. partial: (SPLIT, pixels, O) float32."""
    tile = tl.program_id(0)
    if WIDE:
        pixel = tile.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    else:
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_pixels, in_channels = pixel < pixels, channels < outputs
    mask = in_pixels[:, None] & in_channels[None, :]
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for split in tl.static_range(SPLIT):
        sums += tl.load(partial + (split * pixels + pixel)[:, None] * outputs + channels[None, :], mask=mask, other=0.0)
    finish_tile(
        sums, y, scale, shift, residual, moments, counts, tile, pixel, channels, in_pixels, in_channels, outputs,
        y_pixel, residual_pixel, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RELU, STATS,
    )  # fmt: skip
