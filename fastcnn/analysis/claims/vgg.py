"""VGG."""

from torch import nn

from .. import measure
from .._claim import Values, Verdict, claim


def _convolutions_and_linear(name: str) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in measure.network(name).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@claim(
    5,
    "VGG-16's input has 150 thousand values; a convolution of its five stages has 3.2 million, 1.6 million, 800, 400 "
    "and 100 thousand, and the poolings behind them have 800, 400, 200, 100 and 25 thousand.",
    Verdict.ROUNDED,
    {
        "input": 150_000, "conv1": 3_200_000, "pool1": 800_000, "conv2": 1_600_000, "pool2": 400_000,
        "conv3": 800_000, "pool3": 200_000, "conv4": 400_000, "pool4": 100_000, "conv5": 100_000, "pool5": 25_000,
    },
    {
        "input": 150_528, "conv1": 3_211_264, "pool1": 802_816, "conv2": 1_605_632, "pool2": 401_408,
        "conv3": 802_816, "pool3": 200_704, "conv4": 401_408, "pool4": 100_352, "conv5": 100_352, "pool5": 25_088,
    },
)  # fmt: skip
def values_by_stage() -> Values:
    figures = measure.summary("vgg16")
    found: dict[str, int] = {"input": figures.input[0] * figures.input[1] * figures.input[2]}
    stage = 1
    for layer in figures.layers:
        if layer.type == "Conv2d":
            found[f"conv{stage}"] = layer.activations
        elif layer.type == "MaxPool2d":
            found[f"pool{stage}"] = layer.activations
            stage += 1
    return found


@claim(
    6,
    "The values of VGG-16, 24 million, take 96 megabytes for an image in float32.",
    Verdict.WRONG,
    {"values": 24_000_000, "megabytes": 96.0},
    {"values": 15_237_608, "megabytes": 60.95, "values with a copy for each ReLU": 28_793_320},
    remark="the lecture notes' own rows add up to 15.2 million; the gradient of each doubles them in training",
)
def values_of_vgg16() -> Values:
    figures = measure.summary("vgg16")
    return {
        "values": figures.activations,
        "megabytes": round(figures.activation_bytes / 1e6, 2),
        "values with a copy for each ReLU": figures.activations
        + sum(layer.activations for layer in figures.layers if layer.type == "ReLU"),
    }


@claim(
    7,
    "VGG-16's convolutions have 1,728, 36,864, 73,728, 147,456, 294,912, 589,824 (twice), 1,179,648 and 2,359,296 "
    "(five times) weights, its linear layers 102,760,448, 16,777,216 and 4,096,000.",
    Verdict.EXACT,
    {
        "convolutions": (
            1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, *(2_359_296,) * 5,
        ),
        "linear layers": (102_760_448, 16_777_216, 4_096_000),
    },
    remark="without biases",
)  # fmt: skip
def weights_by_layer() -> Values:
    modules = _convolutions_and_linear("vgg16")
    return {
        "convolutions": tuple(m.weight.numel() for m in modules if isinstance(m, nn.Conv2d)),
        "linear layers": tuple(m.weight.numel() for m in modules if isinstance(m, nn.Linear)),
    }


@claim(
    8,
    "VGG-16 has 138 million parameters.",
    Verdict.ROUNDED,
    {"weights": 138_000_000, "parameters": 138_000_000},
    {"weights": 138_344_128, "parameters": 138_357_544},
)
def parameters_of_vgg16() -> Values:
    return {"weights": measure.weights(measure.network("vgg16")), "parameters": measure.summary("vgg16").parameters}


@claim(
    9,
    "Three 3x3 convolutions of C channels have 3 x 9 C^2 weights, one 7x7 convolution 49 C^2.",
    Verdict.EXACT,
    {"three 3x3, in C^2": 27.0, "one 7x7, in C^2": 49.0},
    {"two 3x3, in C^2": 18.0, "one 5x5, in C^2": 25.0, "1x7 and 7x1, in C^2": 14.0},
)
def weights_of_stacks() -> Values:
    channels = 48
    stacks: dict[str, tuple[int | tuple[int, int], ...]] = {
        "three 3x3": (3, 3, 3), "one 7x7": (7,), "two 3x3": (3, 3), "one 5x5": (5,), "1x7 and 7x1": ((1, 7), (7, 1)),
    }  # fmt: skip
    return {
        f"{name}, in C^2": measure.weights(measure.stack(channels, *kernels)) / channels**2
        for name, kernels in stacks.items()
    }


@claim(
    20,
    "VGG-16's first linear layer has 102 million weights, 74 % of the parameters; twice as wide, it would have 204 "
    "million.",
    Verdict.ROUNDED,
    {"weights": 102_000_000, "%": 74.0, "weights, twice as wide": 204_000_000},
    {"weights": 102_760_448, "%": 74.27, "weights, twice as wide": 205_520_896},
)
def first_linear_layer() -> Values:
    first = measure.network("vgg16").get_submodule("classifier.0")
    assert isinstance(first, nn.Linear)
    wide = nn.Linear(first.in_features, 2 * first.out_features, device="meta")
    count = first.weight.numel()
    return {
        "weights": count,
        "%": round(100 * count / measure.summary("vgg16").parameters, 2),
        "weights, twice as wide": wide.weight.numel(),
    }


@claim(
    21,
    "VGG-16 has 13 convolutions and 3 linear layers, and VGG-19 three convolutions more.",
    Verdict.EXACT,
    {"VGG-16": (13, 3), "VGG-19": (16, 3)},
)
def layers_of_vgg() -> Values:
    def counts(name: str) -> tuple[int, int]:
        modules = _convolutions_and_linear(name)
        linear = sum(isinstance(m, nn.Linear) for m in modules)
        return len(modules) - linear, linear

    return {"VGG-16": counts("vgg16"), "VGG-19": counts("vgg19")}


@claim(
    28,
    "One, two and three 3x3 convolutions in a row see 3x3, 5x5 and 7x7 pixels.",
    Verdict.EXACT,
    {"rows": (3, 5, 7)},
    remark="measured as the inputs on which the gradient of one output is not zero",
)
def rows_of_stacks() -> Values:
    return {"rows": tuple(measure.stacked_field(*(3,) * count) for count in (1, 2, 3))}


@claim(
    66,
    "A kernel of VGG-16's third convolution of stage 3 is 26x26x256, and the layer has (3 x 3 x 256 + 1) x 256 "
    "parameters.",
    Verdict.WRONG,
    {"kernel": (26, 26, 256), "parameters": 590_080},
    {"kernel": (3, 3, 256), "parameters": 590_080},
    remark="the parameters are right",
)
def kernel_of_conv3_3() -> Values:
    conv = _convolutions_and_linear("vgg16")[6]
    _, depth, height, width = conv.weight.shape
    return {"kernel": (height, width, depth), "parameters": measure.parameters(conv)}


@claim(
    67,
    "The parameters of VGG-16's layers, biases included, add up to 138,357,544.",
    Verdict.EXACT,
    {"parameters": 138_357_544},
    {
        "convolutions": (
            1_792, 36_928, 73_856, 147_584, 295_168, 590_080, 590_080, 1_180_160, *(2_359_808,) * 5,
        ),
        "linear layers": (102_764_544, 16_781_312, 4_097_000),
    },
)  # fmt: skip
def parameters_by_layer_of_vgg16() -> Values:
    modules = _convolutions_and_linear("vgg16")
    return {
        "parameters": sum(measure.parameters(m) for m in modules),
        "convolutions": tuple(measure.parameters(m) for m in modules if isinstance(m, nn.Conv2d)),
        "linear layers": tuple(measure.parameters(m) for m in modules if isinstance(m, nn.Linear)),
    }
