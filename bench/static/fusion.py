"""The bytes that fusion saves: what crosses the memory bus when each operation is a pass of its own, and what when
fastcnn's kernels do several at once. Counted from layers' sizes; nothing was timed.

A pass reads each of its operands once and writes its results once. Weights, statistics and other vectors are left out,
and so is what a cache keeps from one pass to the next.
"""

import math
from dataclasses import dataclass

from tests.cases import ConvCase, find

BYTES = 2  # float16, bfloat16


@dataclass(frozen=True)
class Pass:
    what: str
    read: int  # elements of one image's tensors
    written: int


@dataclass(frozen=True)
class Way:
    """One direction through a module."""

    module: str
    direction: str
    separate: tuple[Pass, ...]
    fused: tuple[Pass, ...]

    @property
    def saved(self) -> int:
        """Elements of an image."""
        return moved(self.separate) - moved(self.fused)


def moved(passes: tuple[Pass, ...]) -> int:
    return sum(each.read + each.written for each in passes)


def sizes(case: ConvCase) -> tuple[int, int]:
    """Elements of the input and the output of an image."""
    return math.prod(case.input_shape()), math.prod(case.output_shape())


def normalized(n: int, training: bool) -> list[Pass]:
    """Batch normalization and ReLU, each by itself. Training reads z for its statistics first."""
    statistics = [Pass("statistics", n, 0)] if training else []
    return [*statistics, Pass("normalization", n, n), Pass("ReLU", n, n)]


def conv_gradients(x: int, y: int) -> list[Pass]:
    return [Pass("input gradient", y, x), Pass("weight gradient", x + y, 0)]


def masked_gradients(x: int, y: int) -> list[Pass]:
    """Of a 1x1 convolution with bias and ReLU: each kernel reads y beside the gradient, to mask it."""
    return [
        Pass("input gradient, masked", 2 * y, x),
        Pass("weight gradient, masked", x + 2 * y, 0),
        Pass("bias gradient, masked", 2 * y, 0),
    ]


def relu_gradient(n: int) -> Pass:
    return Pass("ReLU gradient", 2 * n, n)


def norm_gradients(n: int) -> list[Pass]:
    """The sums over g and g * xhat, and then the gradient, each of g and z. The sign of a ReLU's input follows from z:
    a kernel that masks g, too, reads no more."""
    return [Pass("normalization's sums", 2 * n, 0), Pass("normalization's gradient", 2 * n, n)]


def bottleneck(name: str, reduce: ConvCase, spatial: ConvCase, expand: ConvCase) -> list[Way]:
    """conv1, conv2, conv3, each normalized; the input is added before the last ReLU."""
    x, t = sizes(reduce)
    u, y = sizes(spatial)[1], sizes(expand)[1]

    def forward(training: bool) -> list[Pass]:
        return [
            *(Pass("conv1", x, t), *normalized(t, training)),
            *(Pass("conv2", t, u), *normalized(u, training)),
            *(Pass("conv3", u, y), *normalized(y, training)[:-1]),
            *(Pass("residual", 2 * y, y), Pass("ReLU", y, y)),
        ]

    inference = (Pass("conv1+bn+relu", x, t), Pass("conv2+bn+relu", t, u), Pass("conv3+bn+residual+relu", u + y, y))
    training = (
        *(Pass("conv1+statistics", x, t), Pass("normalization+relu", t, t)),
        *(Pass("conv2+statistics", t, u), Pass("normalization+relu", u, u)),
        *(Pass("conv3+statistics", u, y), Pass("normalization+residual+relu", 2 * y, y)),
    )
    convs = [conv_gradients(x, t), conv_gradients(t, u), conv_gradients(u, y)]
    add = Pass("sum with the residual's gradient", 2 * x, x)
    apart = [
        *(relu_gradient(y), *norm_gradients(y), *convs[2]),
        *(relu_gradient(u), *norm_gradients(u), *convs[1]),
        *(relu_gradient(t), *norm_gradients(t), *convs[0], add),
    ]
    # With a residual in front of the ReLU its mask is read off y, and the masked gradient is the residual's, too.
    last = [
        Pass("normalization's sums, masked", 3 * y, 0),
        Pass("normalization's gradient, masked", 3 * y, 2 * y),
    ]
    together = [*last, *convs[2], *norm_gradients(u), *convs[1], *norm_gradients(t), *convs[0], add]
    return [
        Way(name, "inference", tuple(forward(False)), inference),
        Way(name, "training, forward", tuple(forward(True)), training),
        Way(name, "backward", tuple(apart), tuple(together)),
    ]


def inception(name: str, cases: dict[str, ConvCase]) -> list[Way]:
    """1x1; 1x1, 3x3; 1x1, 5x5; max pooling, 1x1; concatenated. With biases and ReLUs, no normalization."""
    x, one = sizes(cases["1x1"])
    reduce3, three = sizes(cases["3x3"])
    reduce5, five = sizes(cases["5x5"])
    pool = sizes(cases["pool_proj"])[1]
    widths = (one, reduce3, three, reduce5, five, pool)
    y = one + three + five + pool
    spatial = [Pass("3x3", reduce3, three), Pass("5x5", reduce5, five)]
    forward = [
        *(Pass("1x1", x, one), Pass("3x3_reduce", x, reduce3), Pass("5x5_reduce", x, reduce5), *spatial),
        *(Pass("max pooling", x, x), Pass("pool_proj", x, pool)),
        *(Pass("ReLU", n, n) for n in widths),
        Pass("concatenation", y, y),
    ]
    fused = [
        Pass("three 1x1+relu in one launch", x, one + reduce3 + reduce5),
        *(*spatial, Pass("max pooling", x, x), Pass("pool_proj+relu into its slice", x, pool)),
        *(Pass("copy to its slice", n, n) for n in (one, three, five)),
    ]
    deep = [*conv_gradients(reduce3, three), *conv_gradients(reduce5, five)]
    pooling = Pass("max pooling's gradient", 2 * x, x)
    apart = [
        *(relu_gradient(n) for n in widths),
        *(Pass("bias gradient", n, 0) for n in widths),
        *(each for n in (one, reduce3, reduce5, pool) for each in conv_gradients(x, n)),
        *(*deep, pooling, *[Pass("sum of branches", 2 * x, x)] * 3),
    ]
    siblings = one + reduce3 + reduce5
    together = [
        Pass("input gradient of three 1x1, masked", 2 * siblings, x),
        *(each for n in (one, reduce3, reduce5) for each in masked_gradients(x, n)[1:]),
        *(each for n in (three, five) for each in (relu_gradient(n), Pass("bias gradient", n, 0))),
        *(*deep, *masked_gradients(x, pool), pooling, Pass("sum of branches", 2 * x, x)),
    ]
    return [Way(name, "forward", tuple(forward), tuple(fused)), Way(name, "backward", tuple(apart), tuple(together))]


def fire(name: str, squeeze: ConvCase, expand: ConvCase) -> list[Way]:
    """1x1 to few channels; from these 1x1 and 3x3 to equally many, concatenated. With biases and ReLUs."""
    (x, s), e = sizes(squeeze), sizes(expand)[1]
    forward = [
        *(Pass("squeeze", x, s), Pass("expand1x1", s, e), Pass("expand3x3", s, e)),
        *(Pass("ReLU", n, n) for n in (s, e, e)),
        Pass("concatenation", 2 * e, 2 * e),
    ]
    fused = [
        *(Pass("squeeze+relu", x, s), Pass("expand1x1+relu into its slice", s, e), Pass("expand3x3+relu", s, e)),
        Pass("copy to its slice", e, e),
    ]
    add = Pass("sum of branches", 2 * s, s)
    apart = [
        *(relu_gradient(n) for n in (s, e, e)),
        *(Pass("bias gradient", n, 0) for n in (s, e, e)),
        *(*conv_gradients(s, e), *conv_gradients(s, e), add, *conv_gradients(x, s)),
    ]
    together = [
        *(*masked_gradients(s, e), *masked_gradients(x, s), add),
        *(relu_gradient(e), Pass("bias gradient", e, 0), *conv_gradients(s, e)),
    ]
    return [Way(name, "forward", tuple(forward), tuple(fused)), Way(name, "backward", tuple(apart), tuple(together))]


def dense_layer(name: str, conv1: ConvCase, growth: int = 32) -> list[Way]:
    """Normalization, ReLU, 1x1, normalization, ReLU, 3x3 to `growth` maps, which are concatenated with the input."""
    x, b = sizes(conv1)
    k = b // conv1.out_channels * growth
    cat = Pass("concatenation", x + k, x + k)

    def forward(training: bool) -> list[Pass]:
        return [
            *(*normalized(x, training), Pass("conv1", x, b)),
            *(*normalized(b, training), Pass("conv2", b, k), cat),
        ]

    inference = (Pass("bn+relu+conv1+bn+relu", x, b), Pass("conv2", b, k), cat)
    training = (
        *(Pass("statistics", x, 0), Pass("normalization+relu+conv1+statistics", x, b)),
        *(Pass("normalization+relu", b, b), Pass("conv2", b, k), cat),
    )
    add = Pass("sum with the other layers' gradients", 2 * x, x)
    convs = conv_gradients(b, k), conv_gradients(x, b)
    apart = [
        *(*convs[0], relu_gradient(b), *norm_gradients(b)),
        *(*convs[1], relu_gradient(x), *norm_gradients(x), add),
    ]
    # What the forward pass normalized while it loaded, the weight gradient reads: it is computed once more.
    again = Pass("normalization+relu", x, x)
    together = [*convs[0], *norm_gradients(b), again, *convs[1], *norm_gradients(x), add]
    return [
        Way(name, "inference", tuple(forward(False)), inference),
        Way(name, "training, forward", tuple(forward(True)), training),
        Way(name, "backward", tuple(apart), tuple(together)),
    ]


def ways() -> list[Way]:
    found = []
    for stage in range(1, 5):
        at = f"resnet50.layer{stage}"
        second = f"{at}.0" if stage == 1 else f"{at}.1"
        convs = find(f"{at}.1.conv1"), find(f"{second}.conv2"), find(f"{at}.0.conv3")
        found += bottleneck(f"ResNet-50 layer{stage}.1", *convs)
    branches = ("1x1", "3x3", "5x5", "pool_proj")
    found += inception("GoogLeNet 3a", {branch: find(f"googlenet.3a.{branch}") for branch in branches})
    for module in ("fire2", "fire9"):
        convs = find(f"squeezenet.{module}.squeeze"), find(f"squeezenet.{module}.expand1x1")
        found += fire(f"SqueezeNet 1.1 {module}", *convs)
    for block, layer in ((1, 2), (3, 24)):
        found += dense_layer(
            f"DenseNet-121 denseblock{block}.{layer}", find(f"densenet121.denseblock{block}.{layer}.conv1")
        )
    return found


COLUMNS = ("module", "direction", "passes", "MB", "fused passes", "MB", "saved")
TITLE = "Bytes that fusion saves"
TEXT = (
    "Of one image in 16 bits: what crosses the memory bus when every operation is a pass of its own, as eager PyTorch "
    "runs it (a convolution with its bias counts as one), and with fastcnn's kernels. Weights and statistics are left "
    "out. Where a gradient's mask is read by three kernels, of input, weight and bias, that is as many bytes as a pass "
    "for it: a fire module's backward saves the masked gradient's memory, but no traffic. Counted from sizes, not "
    "measured."
)


def megabytes(elements: int) -> str:
    return f"{elements * BYTES / 1e6:.2f}"


def rows() -> list[tuple[str, ...]]:
    return [
        (
            way.module,
            way.direction,
            str(len(way.separate)),
            megabytes(moved(way.separate)),
            str(len(way.fused)),
            megabytes(moved(way.fused)),
            f"{way.saved / moved(way.separate):.0%}",
        )
        for way in ways()
    ]


def table() -> str:
    """The section of docs/gpu-static.md."""
    from .report import Table

    return Table(TITLE, TEXT, COLUMNS, rows()).markdown()
