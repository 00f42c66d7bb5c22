"""AlexNet's sizes, parameters and layers."""

import math

import torch
from torch import nn

from fastcnn.ops._face import pair

from .. import measure
from .._claim import Values, Verdict, claim

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
NEURONS = (*CONVOLUTIONS, "fc6", "fc7", "fc8")


def _neurons() -> dict[str, int]:
    layers = measure.layers("alexnet")
    return {name: layers[name].activations for name in NEURONS}


@claim(
    1,
    "AlexNet's first convolution, 11x11 with stride 4, makes 55x55 maps of a 227x227 image.",
    Verdict.EXACT,
    {"height and width": (55, 55)},
)
def conv1_of_227() -> Values:
    return {"height and width": measure.layers("alexnet")["conv1"].output[1:]}


@claim(
    2,
    "AlexNet's first convolution has 11 x 11 x 3 x 96, about 35,000, weights.",
    Verdict.ROUNDED,
    {"weights": 35_000},
    {"weights": 34_848, "with biases": 34_944},
)
def weights_of_conv1() -> Values:
    conv1 = measure.network("alexnet").get_submodule("conv1")
    return {"weights": measure.weights(conv1), "with biases": measure.parameters(conv1)}


@claim(
    3,
    "A convolution with an FxF kernel and stride S makes a map of (in - F) / S + 1 rows.",
    Verdict.WRONG,
    {"rows of AlexNet's conv2, of 27": 23.0, "rows of ZFNet's conv1, of 224": 109.5},
    {
        "rows of AlexNet's conv2, of 27": 27,
        "rows of ZFNet's conv1, of 224": 110,
        "convolutions of AlexNet, ZFNet, VGG-16 and ResNet-50": 76,
        "rows as floor((in + 2P - F) / S) + 1": 76,
        "rows as (in - F) / S + 1": 35,
    },
    remark="it leaves out the padding P and the rounding: floor((in + 2P - F) / S) + 1",
)
def rows_of_convolutions() -> Values:
    short = full = count = 0
    for name in ("alexnet", "zfnet", "vgg16", "resnet50"):
        for conv, rows_in, rows_out in measure.convolution_rows(name):
            (kernel, _), (stride, _), (padding, _) = conv.kernel_size, conv.stride, pair("", "padding", conv.padding)
            count += 1
            short += (rows_in - kernel) / stride + 1 == rows_out
            full += (rows_in + 2 * padding - kernel) // stride + 1 == rows_out
    return {
        "rows of AlexNet's conv2, of 27": measure.layers("alexnet")["conv2"].output[1],
        "rows of ZFNet's conv1, of 224": measure.layers("zfnet")["conv1"].output[1],
        "convolutions of AlexNet, ZFNet, VGG-16 and ResNet-50": count,
        "rows as floor((in + 2P - F) / S) + 1": full,
        "rows as (in - F) / S + 1": short,
    }


@claim(
    4,
    "AlexNet's maps are 55, 27, 27, 13, 13 and 6 rows high, and its fully connected layers have 4096, 4096 and 1000 "
    "outputs.",
    Verdict.EXACT,
    {"rows": (55, 27, 27, 13, 13, 6), "outputs": (4096, 4096, 1000)},
)
def sizes_of_alexnet() -> Values:
    layers = measure.layers("alexnet")
    rows = tuple(layers[name].output[1] for name in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5"))
    return {"rows": rows, "outputs": tuple(layers[name].output[0] for name in ("fc6", "fc7", "fc8"))}


@claim(
    19,
    "AlexNet's first fully connected layer reads 9216 features.",
    Verdict.EXACT,
    {"inputs of fc6": 9216},
)
def inputs_of_fc6() -> Values:
    fc6 = measure.network("alexnet").get_submodule("fc6")
    assert isinstance(fc6, nn.Linear)
    return {"inputs of fc6": fc6.in_features}


@claim(
    39,
    "AlexNet has 60 million parameters.",
    Verdict.ROUNDED,
    {"parameters": 60_000_000},
    {"parameters": 60_965_224},
    tolerance=0.02,
)
def parameters_of_alexnet() -> Values:
    return {"parameters": measure.summary("alexnet").parameters}


@claim(
    40,
    "AlexNet has 650,000 neurons.",
    Verdict.ROUNDED,
    {"neurons": 650_000},
    {"neurons": 659_272, "with 253,440 for conv1": 622_312},
    tolerance=0.02,
    remark="the paper's own list, whose conv1 has 253,440, adds up to less",
)
def neurons_of_alexnet() -> Values:
    neurons = _neurons()
    total = sum(neurons.values())
    return {"neurons": total, "with 253,440 for conv1": total - neurons["conv1"] + 253_440}


@claim(
    41,
    "AlexNet's first convolution has 253,440 neurons.",
    Verdict.WRONG,
    {"neurons": 253_440},
    {"neurons": 290_400, "55 x 48 x 96": 253_440},
    remark="55 x 55 x 96; the number printed in the paper is 55 x 48 x 96",
)
def neurons_of_conv1() -> Values:
    channels, height, _ = measure.layers("alexnet")["conv1"].output
    return {"neurons": _neurons()["conv1"], "55 x 48 x 96": height * (channels // 2) * channels}


@claim(
    42,
    "The layers of AlexNet behind the first have 186,624, 64,896, 64,896, 43,264, 4096, 4096 and 1000 neurons.",
    Verdict.EXACT,
    {"neurons": (186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000)},
)
def neurons_behind_conv1() -> Values:
    return {"neurons": tuple(_neurons().values())[1:]}


@claim(
    43,
    "An image of 224x224 pixels gives AlexNet 150,528 input values.",
    Verdict.EXACT,
    {"input values": 150_528},
)
def input_values() -> Values:
    return {"input values": math.prod(measure.summary("alexnet_owt").input)}


@claim(
    44,
    "AlexNet's first convolution, without padding, makes 55x55 maps of a 224x224 image.",
    Verdict.WRONG,
    {"rows of 224, without padding": 55},
    {"rows of 224, without padding": 54, "rows of 227, without padding": 55, "rows of 224, padding 2": 55},
    remark="the image has to have 227x227 pixels, or a padding of 2",
)
def conv1_of_224() -> Values:
    plain = measure.network("alexnet").get_submodule("conv1")
    padded = measure.network("alexnet_owt").get_submodule("features.0")
    return {
        "rows of 224, without padding": measure.output_size(plain, 3, 224, 224)[1],
        "rows of 227, without padding": measure.output_size(plain, 3, 227, 227)[1],
        "rows of 224, padding 2": measure.output_size(padded, 3, 224, 224)[1],
    }


@claim(
    45,
    "The kernels of AlexNet's convolutions 2 to 5 are 5x5x48, 3x3x256, 3x3x192 and 3x3x192.",
    Verdict.EXACT,
    {"conv2": (5, 5, 48), "conv3": (3, 3, 256), "conv4": (3, 3, 192), "conv5": (3, 3, 192)},
)
def kernels_of_alexnet() -> Values:
    def kernel(name: str) -> tuple[int, ...]:
        _, depth, height, width = measure.network("alexnet").get_parameter(f"{name}.weight").shape
        return height, width, depth

    return {name: kernel(name) for name in CONVOLUTIONS[1:]}


@claim(
    46,
    "No convolution of AlexNet holds more than 1 % of its parameters.",
    Verdict.WRONG,
    {"convolutions above 1 %": 0},
    {"convolutions above 1 %": 2, "conv3, %": 1.452, "conv4, %": 1.089},
)
def shares_of_convolutions() -> Values:
    shares = measure.parameter_shares("alexnet")
    return {
        "convolutions above 1 %": sum(shares[name] > 0.01 for name in CONVOLUTIONS),
        "conv3, %": round(100 * shares["conv3"], 3),
        "conv4, %": round(100 * shares["conv4"], 3),
    }


@claim(
    47,
    "The label of an image, one of 1000 classes, gives 10 bits of constraint.",
    Verdict.ROUNDED,
    {"bits": 10},
    {"bits": 9.966},
)
def bits_of_a_label() -> Values:
    return {"bits": round(math.log2(measure.layers("alexnet")["fc8"].output[0]), 3)}


@claim(
    48,
    "Crops of 224x224 pixels of a 256x256 image, and their reflections, enlarge the training set 2048 times.",
    Verdict.WRONG,
    {"different crops": 2048},
    {"different crops": 2178},
    remark="33 x 33 positions and two reflections; 32 x 32 x 2 leaves out a row and a column of positions",
)
def different_crops() -> Values:
    pixels = torch.arange(256 * 256).view(256, 256)
    crops = pixels.unfold(0, 224, 1).unfold(1, 224, 1)  # (33, 33, 224, 224), a view
    upright = crops[..., [0, -1]].flatten(0, 1).flatten(1)  # two columns tell a crop from every other
    both = torch.cat((upright, crops.flip(-1)[..., [0, -1]].flatten(0, 1).flatten(1)))
    return {"different crops": both.unique(dim=0).shape[0]}


@claim(
    49,
    "Pooling 2x2 windows with stride 2 gives AlexNet maps of the same sizes as pooling 3x3 windows with stride 2.",
    Verdict.EXACT,
    {"rows, 2x2": (27, 13, 6)},
    {"rows, 3x3": (27, 13, 6)},
)
def rows_after_pooling() -> Values:
    layers = measure.layers("alexnet")
    before = [layers[name].output for name in ("conv1", "conv2", "conv5")]
    return {
        "rows, 2x2": tuple(measure.output_size(nn.MaxPool2d(2, 2), *size)[1] for size in before),
        "rows, 3x3": tuple(layers[name].output[1] for name in ("pool1", "pool2", "pool5")),
    }


@claim(
    50,
    "The constant alpha of AlexNet's local response normalization is 104.",
    Verdict.WRONG,
    {"alpha": 104},
    {"alpha": 1e-4},
    remark="ten to the power of minus four, printed without its exponent",
)
def alpha_of_alexnet() -> Values:
    return {"alpha": measure.network("alexnet").get_submodule("norm1").alpha}  # type: ignore[dict-item]


@claim(
    58,
    "AlexNet's last layer has (4096 + 1) x 1000 x 2 parameters.",
    Verdict.WRONG,
    {"parameters of fc8": (4096 + 1) * 1000 * 2},
    {"parameters of fc8": 4_097_000},
    remark="the layer is there once, not once for each GPU",
)
def parameters_of_fc8() -> Values:
    return {"parameters of fc8": measure.layers("alexnet")["fc8"].parameters}


@claim(
    59,
    "The maps that AlexNet's third convolution reads are 384 deep, 13 x 13 x 192 on each of the two GPUs.",
    Verdict.WRONG,
    {"depth": 384, "on each GPU": (13, 13, 192)},
    {"depth": 256, "on each GPU": (13, 13, 128)},
)
def input_of_conv3() -> Values:
    depth, height, width = measure.layers("alexnet")["pool2"].output
    towers = measure.network("alexnet").get_submodule("conv2").groups
    return {"depth": depth, "on each GPU": (height, width, depth // towers)}  # type: ignore[operator,dict-item]


@claim(
    60,
    "In AlexNet, the normalization follows the pooling and precedes the ReLU.",
    Verdict.WRONG,
    {"order": ("conv", "pool", "LRN", "ReLU")},
    {"order": ("conv", "ReLU", "LRN", "pool")},
)
def order_of_alexnets_layers() -> Values:
    model = measure.network("alexnet")
    order: list[str] = []
    for name in list(measure.layers("alexnet"))[:3]:
        module = model.get_submodule(name)
        if isinstance(module, nn.LocalResponseNorm):
            order += ["ReLU", "LRN"] if getattr(module, "activation", None) == "relu" else ["LRN"]
        else:
            order.append("conv" if isinstance(module, nn.Conv2d) else "pool")
    return {"order": tuple(order)}


@claim(
    61,
    "AlexNet's layers conv1 to fc7 have 34,944, 307,456, 885,120, 663,936, 442,624, 37,752,832 and 16,781,312 "
    "parameters.",
    Verdict.EXACT,
    {"parameters": (34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312)},
)
def parameters_by_layer() -> Values:
    layers = measure.layers("alexnet")
    return {"parameters": tuple(layers[name].parameters for name in NEURONS[:-1])}
