"""What a random call of each function is. An entry draws arguments and says the size of each tensor and the formula."""

import math

from hypothesis import strategies as st

import fastcnn.functional as F
from fastcnn.ops import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    local_conv2d,
    local_response_norm,
    max_pool2d,
    sparse_conv2d,
    subsample2d,
)

from .harness import Call, Draw

OPS = {}
BATCHES = st.sampled_from((1, 2, 3, 0, 17))
CHANNELS = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16, 17, 33))
SIZES = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 13, 17))
FLAG = st.booleans()


def op(draw_call):
    """Enters the random calls of the function of fastcnn.functional whose name stands before the underscore."""
    OPS[draw_call.__name__.removesuffix("_")] = draw_call
    return draw_call


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


def windows(draw: Draw, kernel: int = 4, padding: int = 3, dilation: int = 3):
    """Kernel, stride, padding and dilation along both axes, and an input that holds a window at least."""
    k, s, d = pair(draw, 1, kernel), pair(draw, 1, 4), pair(draw, 1, dilation)
    p = pair(draw, 0, padding)
    size = tuple(max(draw(SIZES), e * (n - 1) + 1 - 2 * q) for n, e, q in zip(k, d, p))
    return size, k, s, p, d


def outputs(size, k, s, p, d):
    return tuple(conv2d.output_size(*along) for along in zip(size, k, s, p, d))


def optional(draw: Draw, *sizes):
    """Each size or None, and a function that fills the gaps of a list of tensors with None."""
    there = [draw(FLAG) for _ in sizes]

    def fill(tensors):
        given = iter(tensors)
        return [next(given) if t else None for t in there]

    return tuple(size for size, t in zip(sizes, there) if t), fill


area = lambda *sizes: math.prod(sizes)


@op
def conv2d_(draw: Draw) -> Call:
    size, k, s, p, d = windows(draw)
    groups, inputs, per_group = draw(st.sampled_from((1, 1, 2, 3, 8))), draw(CHANNELS), draw(CHANNELS)
    if draw(FLAG):
        per_group = inputs  # where groups of 1, 2, 4 or 8 have a kernel of their own
    n, out, o = draw(BATCHES), outputs(size, k, s, p, d), per_group * groups
    more, fill = optional(draw, (o,), (n, o, *out))
    relu = draw(FLAG)

    def function(x, w, *rest):
        bias, residual = fill(rest)
        return F.conv2d(x, w, bias, s, p, d, groups, residual=residual, activation="relu" if relu else None)

    return Call(
        f"stride={s}, padding={p}, dilation={d}, groups={groups}, relu={relu}",
        function,
        lambda x, w, *rest: conv2d.reference(x, w, *fill(rest), s, p, d, groups, relu),
        ((n, inputs * groups, *size), (o, inputs, *k), *more),
        (inputs * area(*k), per_group * area(*k), n * area(*out), *[n * area(*out)] * len(more)),
        gradients=not relu,  # on either side of zero they differ by all of it
    )


@op
def conv_transpose2d_(draw: Draw) -> Call:
    k, s, d, p = pair(draw, 1, 4), pair(draw, 1, 4), pair(draw, 1, 3), pair(draw, 0, 3)
    extra = tuple(draw(st.integers(0, max(*along) - 1)) for along in zip(s, d))
    size = tuple(draw(SIZES) for _ in range(2))
    along = lambda size: [conv_transpose2d.output_size(*a) for a in zip(size, k, s, p, extra, d)]
    size = tuple(n if o > 0 else n + 8 for n, o in zip(size, along(size)))
    groups, inputs, per_group = draw(st.sampled_from((1, 1, 2, 3, 8))), draw(CHANNELS), draw(CHANNELS)
    more, fill = optional(draw, (per_group * groups,))
    n = draw(BATCHES)
    terms = n * area(*size), n * area(*along(size))
    return Call(
        f"stride={s}, padding={p}, output_padding={extra}, groups={groups}, dilation={d}",
        lambda x, w, *bias: F.conv_transpose2d(x, w, *fill(bias), s, p, extra, groups, d),
        lambda x, w, *bias: conv_transpose2d.reference(x, w, *fill(bias), s, p, extra, d, groups),
        ((n, inputs * groups, *size), (inputs * groups, per_group, *k), *more),
        (inputs * area(*k), per_group * area(*k), terms[0], *terms[1:][: len(more)]),
    )


@op
def local_conv2d_(draw: Draw) -> Call:
    size, k, s, p, d = windows(draw)
    n, inputs, o, out = draw(BATCHES), draw(CHANNELS), draw(CHANNELS), outputs(size, k, s, p, d)
    more, fill = optional(draw, (o, *out))
    return Call(
        f"stride={s}, padding={p}, dilation={d}",
        lambda x, w, *bias: F.local_conv2d(x, w, *fill(bias), s, p, d),
        lambda x, w, *bias: local_conv2d.reference(x, w, *fill(bias), s, p, d),
        ((n, inputs, *size), (*out, o, inputs, *k), *more),
        (inputs * area(*k), o * area(*k), n, *[n] * len(more)),
    )


@op
def sparse_conv2d_(draw: Draw) -> Call:
    size, k, s, p, _ = windows(draw, dilation=1)
    n, maps = draw(BATCHES), draw(st.integers(1, 7))
    table = draw(st.lists(st.lists(st.integers(0, maps - 1), unique=True, max_size=maps), min_size=1, max_size=5))
    links = sum(map(len, table))
    more, fill = optional(draw, (len(table),))
    positions = n * area(*outputs(size, k, s, p, (1, 1)))
    return Call(
        f"table={table}, stride={s}, padding={p}",
        lambda x, w, *bias: F.sparse_conv2d(x, w, *fill(bias), table, s, p),
        # The formula leaves tensors out of the graph that no link reads.
        lambda x, w, *bias: sparse_conv2d.reference(x, w, *fill(bias), table, s, p) + 0 * (x.sum() + w.sum()),
        ((n, maps, *size), (links, *k), *more),
        (maps * area(*k), len(table) * area(*k), positions, *[positions] * len(more)),
    )


@op
def subsample2d_(draw: Draw) -> Call:
    size, k, s, _, _ = windows(draw, padding=0, dilation=1)
    n, c, reduce = draw(BATCHES), draw(CHANNELS), draw(st.sampled_from(("sum", "mean")))
    more, fill = optional(draw, (c,))
    scale = 1.0 if reduce == "sum" else 1 / area(*k)
    positions = n * area(*outputs(size, k, s, (0, 0), (1, 1)))
    return Call(
        f"kernel_size={k}, stride={s}, reduce={reduce}",
        lambda x, w, *bias: F.subsample2d(x, w, *fill(bias), k, s, reduce=reduce),
        lambda x, w, *bias: subsample2d.reference(x, w, *fill(bias), k, s, scale),
        ((n, c, *size), (c,), *more),
        (area(*k) + 2, area(*k) + 2, positions * area(*k), *[positions] * len(more)),
    )


def pool_windows(draw: Draw, dilation: int):
    """Padding at most half a window; a ceil_mode that may leave the last window partly outside."""
    size, k, s, _, d = windows(draw, 5, 0, dilation)
    return size, k, s, tuple(draw(st.integers(0, n // 2)) for n in k), d, draw(FLAG)


@op
def max_pool2d_(draw: Draw) -> Call:
    size, k, s, p, d, ceil_mode = pool_windows(draw, 3)
    return Call(
        f"kernel_size={k}, stride={s}, padding={p}, dilation={d}, ceil_mode={ceil_mode}",
        lambda x: F.max_pool2d(x, k, s, p, d, ceil_mode),
        lambda x: max_pool2d.reference(x, k, s, p, d, ceil_mode)[0],
        ((draw(BATCHES), draw(CHANNELS), *size),),
        (0, area(*k)),
        magnitude=lambda x: max_pool2d.reference(x, k, s, p, d, ceil_mode)[0],
    )


@op
def avg_pool2d_(draw: Draw) -> Call:
    size, k, s, p, _, ceil_mode = pool_windows(draw, 1)
    arguments = (ceil_mode, draw(FLAG), draw(st.sampled_from((None, 1, 7, -3))))
    return Call(
        f"kernel_size={k}, stride={s}, padding={p}, ceil_mode, count_include_pad, divisor_override={arguments}",
        lambda x: F.avg_pool2d(x, k, s, p, *arguments),
        lambda x: avg_pool2d.reference(x, k, s, p, *arguments),
        ((draw(BATCHES), draw(CHANNELS), *size),),
        (area(*k) + 2, area(*k) + 2),
    )


@op
def adaptive_avg_pool2d_(draw: Draw) -> Call:
    size, out = (draw(SIZES), draw(SIZES)), pair(draw, 1, 9)
    return Call(
        f"output_size={out}",
        lambda x: F.adaptive_avg_pool2d(x, out),
        lambda x: adaptive_avg_pool2d.reference(x, out),
        ((draw(BATCHES), draw(CHANNELS), *size),),
        (area(*size) + 2, area(*out) + 2),
    )


@op
def local_response_norm_(draw: Draw) -> Call:
    n, alpha, beta = draw(st.integers(1, 9)), draw(st.floats(0, 1)), draw(st.sampled_from((0.75, 0.5, 1.0, 0.3)))
    mode, groups, relu = draw(st.sampled_from(("mean", "sum"))), draw(st.sampled_from((1, 1, 2, 3))), draw(FLAG)
    n = n - 1 + n % 2 if mode == "sum" else n
    k, activation = draw(st.sampled_from((1.0, 2.0))), "relu" if relu else None
    reference = lambda x: local_response_norm.reference(
        x, n, alpha / n if mode == "mean" else alpha, beta, k, groups, relu
    )

    def magnitude(x):
        """x * s^-beta, with the opposite sign before the derivative of s."""
        x = x.relu() if relu else x.abs()
        y = reference(x)
        return 2 * x * (y / x.clamp(min=1e-300)).detach() - y

    return Call(
        f"size={n}, alpha={alpha}, beta={beta}, k={k}, alpha_mode={mode}, groups={groups}, activation={activation}",
        lambda x: F.local_response_norm(x, n, alpha, beta, k, alpha_mode=mode, groups=groups, activation=activation),
        reference,
        ((draw(BATCHES), draw(CHANNELS) * groups, draw(SIZES), draw(SIZES)),),
        (2 * n + 6, 3 * n + 16),  # the roundings of s, of its power and of the products
        magnitude,
    )
