"""What a random call of each function is. An entry draws arguments and says the size of each tensor and the formula."""

import math

import torch
from hypothesis import strategies as st

import fastcnn.functional as F
from fastcnn.ops import (
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm_relu,
    conv2d,
    conv2d_bn_relu,
    conv_transpose2d,
    local_conv2d,
    local_response_norm,
    max_pool2d,
    max_unpool2d,
    sparse_conv2d,
    subsample2d,
)

from .harness import Call, Draw

OPS = {}
# Their outputs are drawn, and have no formula; tests/test_drop.py has their distributions.
RANDOM = {"drop_path", "dropout", "stochastic_depth"}
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


def convolution(draw: Draw, groups: tuple[int, ...]):
    """Batch, window, groups and channels per group; one in four repays Winograd's algorithm, or nearly."""
    if draw(st.integers(0, 3)) == 0:
        size = draw(st.sampled_from((13, 20, 29))), draw(st.sampled_from((12, 17, 31)))
        channels = st.sampled_from((16, 17, 33))
        window = size, (3, 3), (1, 1), pair(draw, 0, 3), (1, 1)
        return draw(st.sampled_from((1, 2, 5))), window, draw(st.sampled_from((1, 2))), draw(channels), draw(channels)
    window = windows(draw)
    count, inputs, per_group = draw(st.sampled_from(groups)), draw(CHANNELS), draw(CHANNELS)
    if draw(FLAG):
        per_group = inputs  # where groups of 1, 2, 4 or 8 have a kernel of their own
    return draw(BATCHES), window, count, inputs, per_group


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
in_tiles = lambda k, s, d: (k, s, d) == ((3, 3), (1, 1), (1, 1))


@op
def conv2d_(draw: Draw) -> Call:
    n, (size, k, s, p, d), groups, inputs, per_group = convolution(draw, (1, 1, 2, 3, 8))
    out, o = outputs(size, k, s, p, d), per_group * groups
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
        same_bits=not in_tiles(k, s, d),  # a packed weight repays Winograd's algorithm sooner
        tiles=in_tiles(k, s, d),
    )


def channelwise(v):
    return v.view(-1, 1, 1)


def folded(x, w, bias, residual, gamma, beta, mean, var, geometry, sign=1):
    """conv2d_bn_relu's formula, inference; on absolute values with sign -1, the sum of its terms' magnitudes."""
    z = conv2d.reference(x, w, bias, None, *geometry, False) - sign * channelwise(mean)
    u = z / channelwise(var + 1e-5).sqrt()
    u = u if gamma is None else u * channelwise(gamma)
    u = u if beta is None else u + channelwise(beta)
    return u if residual is None else u + residual


def normalized_magnitude(x, w, bias, residual, gamma, beta, geometry):
    """Of what rounding may change y by, in units of one rounding of z's terms; to first order, as are the gradients.

    With Z the sum of magnitudes in z, u = (z - mean) / s is off by D = (Z + mean(Z) + |u| mean(|u| Z)) / s, and 1 / s
    by a relative mean(|u| Z) / s. That the gradient dz = gamma / s * (g - mean(g) - u * mean(g * u)) is off by is what
    autograd makes of `moved`, a symmetric form.
    """
    absolute = [None if t is None else t.abs() for t in (x, w, bias)]
    total = conv2d.reference(*absolute, None, *geometry, False)
    _, z, mean, var = (
        t.detach() for t in conv2d_bn_relu.reference(x, w, bias, None, None, None, geometry, 1e-5, False)
    )
    average = lambda t: t.mean((0, 2, 3), keepdim=True)
    s = channelwise(var + 1e-5).sqrt()
    u = ((z - channelwise(mean)) / s).abs()
    scale = 1.0 if gamma is None else channelwise(gamma.detach().abs())
    known = total.detach()
    d = (known + average(known) + u * average(u * known)) / s
    moved = (total + average(total) + u * average(u * total)) * (1 + average(u * known) / s)
    moved = scale / s * (moved + u * average(d * total) + d * average(u * total))
    y = scale * (u + d) + moved - moved.detach()
    y = y if gamma is None else y + channelwise(gamma - gamma.detach()) * (u + d)
    y = y if beta is None else y + channelwise(beta.abs())
    y = y if residual is None else y + residual.abs()
    # Past that, what is second order in bfloat16's roundings counts: channels of (nearly) equal values.
    return y * 1e30 if (d > 64).any() else y


@op
def conv2d_bn_relu_(draw: Draw) -> Call:
    n, (size, k, s, p, d), groups, inputs, per_group = convolution(draw, (1, 1, 2, 8))
    out, o, training, relu = outputs(size, k, s, p, d), per_group * groups, draw(FLAG), draw(FLAG)
    n = max(n, -(-16 // area(*out))) if n and training else n  # values enough for a variance
    geometry = (s, p, d, groups)
    more, fill = optional(draw, (o,), (n, o, *out), (o,), (o,))
    sizes = ((n, inputs * groups, *size), (o, inputs, *k), *more)
    activation = "relu" if relu else None
    terms = [inputs * area(*k) + 8, per_group * area(*k) + 8, *[n * area(*out) + 8] * (1 + len(more))]
    what = f"stride={s}, padding={p}, dilation={d}, groups={groups}, relu={relu}, training={training}"

    if training:

        def function(x, w, *rest):
            bias, residual, gamma, beta = fill(rest)
            return F.conv2d_bn_relu(
                x, w, bias, None, None, gamma, beta, *geometry, training=True, activation=activation, residual=residual
            )

        return Call(
            what,
            function,
            lambda x, w, *rest: conv2d_bn_relu.reference(x, w, *fill(rest), geometry, 1e-5, relu)[0],
            sizes,
            tuple(t + n * area(*out) for t in terms),  # each needs the channel's mean and variance
            lambda x, w, *rest: normalized_magnitude(x, w, *fill(rest), geometry),
            gradients=not relu,
            tiles=in_tiles(k, s, d),
        )

    def statistics(mean, v):
        """As wide as the kernels', a variance of 0.5 at least."""
        wide = torch.float64 if v.dtype == torch.float64 else torch.float32
        return mean.to(wide), v.to(wide).square() + 0.5

    def function(x, w, mean, v, *rest):
        bias, residual, gamma, beta = fill(rest)
        return F.conv2d_bn_relu(
            x, w, bias, *statistics(mean, v), gamma, beta, *geometry, activation=activation, residual=residual
        )

    def reference(x, w, mean, v, *rest):
        y = folded(x, w, *fill(rest), *statistics(mean, v), geometry)
        return y.relu() if relu else y

    def magnitude(x, w, mean, v, *rest):
        rest = [None if t is None else t.abs() for t in fill(rest)]
        return folded(x.abs(), w.abs(), *rest, *statistics(mean.abs(), v), geometry, sign=-1)

    return Call(
        what,
        function,
        reference,
        (*sizes[:2], (o,), (o,), *sizes[2:]),
        (*terms[:3], terms[2] + terms[0], terms[2] + terms[0], *[t + terms[0] for t in terms[3:]]),
        magnitude,
        gradients=not relu,
        same_bits=False,  # without gradients the folded weight is as wide as the accumulator
        tiles=in_tiles(k, s, d),
    )


@op
def batch_norm_relu_(draw: Draw) -> Call:
    n, c, size, relu = draw(BATCHES), draw(CHANNELS), pair(draw, 1, 17), draw(FLAG)
    more, fill = optional(draw, (c,), (c,))

    def statistics(mean, v):
        """Constants as wide as the kernel's, a variance of 0.5 at least."""
        return widened(mean.detach()), widened(v.detach()).square() + 0.5

    def widened(t):
        return t if t is None or t.dtype == torch.float64 else t.float()

    def function(x, mean, v, *rest):
        """All of the normalization as wide: PyTorch, which computes where gradients are wanted, takes no mixture."""
        affine = map(widened, fill(rest))
        return F.batch_norm_relu(x, *statistics(mean, v), *affine, activation="relu" if relu else None)

    def magnitude(x, mean, v, *rest):
        mean, var = statistics(mean, v)
        gamma, beta = (None if t is None else t.abs() for t in fill(rest))
        return batch_norm_relu.reference(x.abs(), -mean.abs(), var, gamma, beta, 1e-5, False)

    return Call(
        f"relu={relu}",
        function,
        lambda x, mean, v, *rest: batch_norm_relu.reference(x, *statistics(mean, v), *fill(rest), 1e-5, relu),
        ((n, c, *size), (c,), (c,), *more),
        (8,) * (4 + len(more)),
        magnitude,
        gradients=False,  # of running statistics there are none
        same_bits=False,  # with gradients PyTorch computes
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
def max_unpool2d_(draw: Draw) -> Call:
    k, s, size, overlap = pair(draw, 1, 5), pair(draw, 1, 4), pair(draw, 1, 7), draw(st.sampled_from(("assign", "sum")))
    p = tuple(draw(st.integers(0, (n - 1) // 2)) for n in k)
    default = [(n - 1) * f + e - 2 * q for n, e, f, q in zip(size, k, s, p)]
    out = tuple(draw(st.integers(max(1, n - f + 1), n + f - 1)) for n, f in zip(default, s))
    shape = (draw(st.sampled_from((1, 2, 0))), draw(st.sampled_from((1, 3, 8, 17))), *size)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    places = torch.randint(0, draw(st.sampled_from((1, 4, 1 << 30))), shape, generator=random) % area(*out)
    if draw(FLAG):
        places = places.to(memory_format=torch.channels_last)

    def reference(x):
        """By torch's rule every input's gradient is that of its place, as if all were added there."""
        y = max_unpool2d.reference(x.detach(), places, out, overlap == "sum")
        added = x.new_zeros(*shape[:2], area(*out)).scatter_add(2, places.flatten(2), x.flatten(2)).view(y.shape)
        return y + (added - added.detach())

    return Call(
        f"kernel_size={k}, stride={s}, padding={p}, output_size={out}, overlap={overlap}",
        lambda x: F.max_unpool2d(x, places, k, s, p, out, overlap=overlap),
        reference,
        (shape,),
        (area(*size), 0),
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


def normalization(draw: Draw):
    """Arguments of local_response_norm, by position and by name, and of its formula."""
    n, alpha, beta = draw(st.integers(1, 9)), draw(st.floats(0, 1)), draw(st.sampled_from((0.75, 0.5, 1.0, 0.3)))
    mode, groups, relu = draw(st.sampled_from(("mean", "sum"))), draw(st.sampled_from((1, 1, 2, 3))), draw(FLAG)
    n = n - 1 + n % 2 if mode == "sum" else n
    k = draw(st.sampled_from((1.0, 2.0)))
    named = {"alpha_mode": mode, "groups": groups, "activation": "relu" if relu else None}
    return (n, alpha, beta, k), named, (n, alpha / n if mode == "mean" else alpha, beta, k, groups, relu)


@op
def local_response_norm_(draw: Draw) -> Call:
    positional, named, formula = normalization(draw)
    n, *_, groups, relu = formula
    reference = lambda x: local_response_norm.reference(x, *formula)

    def magnitude(x):
        """x * s^-beta, with the opposite sign before the derivative of s."""
        x = x.relu() if relu else x.abs()
        y = reference(x)
        return 2 * x * (y / x.clamp(min=1e-300)).detach() - y

    return Call(
        f"size, alpha, beta, k={positional}, {named}",
        lambda x: F.local_response_norm(x, *positional, **named),
        reference,
        ((draw(BATCHES), draw(CHANNELS) * groups, draw(SIZES), draw(SIZES)),),
        (2 * n + 6, 3 * n + 16),  # the roundings of s, of its power and of the products
        magnitude,
    )


@op
def lrn_max_pool2d_(draw: Draw) -> Call:
    positional, named, formula = normalization(draw)
    size, *window = pool_windows(draw, 3)

    def function(x):
        """In float64 the windows' maxima have other positions where two round to one value: gradients by the pair's."""
        y = F.lrn_max_pool2d(x, *positional, *window, **named)
        pair = F.max_pool2d(F.local_response_norm(x, *positional, **named), *window)
        assert y.equal(pair), "output differs from the pair of functions'"
        if torch.is_grad_enabled():
            mine, theirs = (torch.autograd.grad(t, x, y.detach(), retain_graph=True)[0] for t in (y, pair))
            assert mine.equal(theirs), "gradient differs from the pair of functions'"
        return y

    pooled = lambda y: max_pool2d.reference(y, *window)[0]
    return Call(
        f"size, alpha, beta, k={positional}, {named}, kernel_size, stride, padding, dilation, ceil_mode={window}",
        function,
        lambda x: pooled(local_response_norm.reference(x, *formula)),
        ((draw(BATCHES), draw(CHANNELS) * named["groups"], *size),),
        (2 * formula[0] + 6, 0),
        lambda x: pooled(local_response_norm.reference(x, *formula).abs()),
        gradients=False,
    )
