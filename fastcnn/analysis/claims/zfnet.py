"""ZFNet."""

from torch import nn

from .. import measure
from .._claim import Values, Verdict, claim


def _conv(name: str, layer: str) -> nn.Conv2d:
    conv = measure.network(name).get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _widths(name: str) -> tuple[int, int, int]:
    return _conv(name, "conv3").out_channels, _conv(name, "conv4").out_channels, _conv(name, "conv5").out_channels


@claim(
    15,
    "ZFNet's first convolution has fewer kernels than AlexNet's.",
    Verdict.WRONG,
    {"fewer kernels": True},
    {
        "fewer kernels": False,
        "kernels of AlexNet and ZFNet": (96, 96),
        "their rows": (11, 7),
        "strides": (4, 2),
    },
    remark="as many, but smaller ones at a smaller stride",
)
def first_convolutions() -> Values:
    alexnet, zfnet = _conv("alexnet", "conv1"), _conv("zfnet", "conv1")
    return {
        "fewer kernels": zfnet.out_channels < alexnet.out_channels,
        "kernels of AlexNet and ZFNet": (alexnet.out_channels, zfnet.out_channels),
        "their rows": (alexnet.kernel_size[0], zfnet.kernel_size[0]),
        "strides": (alexnet.stride[0], zfnet.stride[0]),
    }


@claim(
    16,
    "ZFNet's convolutions 3 to 5 have 512, 1024 and 512 channels.",
    Verdict.WRONG,
    {"the paper's network": (512, 1024, 512)},
    {"the paper's network": (384, 384, 256), "the lecture notes'": (512, 1024, 512)},
    remark="the paper's table has 384, 384 and 256; `zfnet` and `zfnet_cs231n` are both here",
)
def widths_of_zfnet() -> Values:
    return {"the paper's network": _widths("zfnet"), "the lecture notes'": _widths("zfnet_cs231n")}


@claim(
    23,
    "ZFNet's second and third convolutions have stride 2.",
    Verdict.WRONG,
    {"convolutions with stride 2": ("conv2", "conv3")},
    {"convolutions with stride 2": ("conv1", "conv2")},
)
def strides_of_zfnet() -> Values:
    names = [f"conv{i}" for i in range(1, 6)]
    return {"convolutions with stride 2": tuple(name for name in names if _conv("zfnet", name).stride == (2, 2))}


@claim(
    24,
    "ZFNet's third and fourth convolutions are wider than AlexNet's.",
    Verdict.WRONG,
    {"wider": ("conv3", "conv4")},
    {"wider": (), "wider in the lecture notes' network": ("conv3", "conv4", "conv5")},
    remark="none is in the paper's table",
)
def wider_convolutions() -> Values:
    def wider(name: str) -> tuple[str, ...]:
        pairs = zip(_widths("alexnet"), _widths(name))
        return tuple(f"conv{i}" for i, (alexnet, zfnet) in enumerate(pairs, 3) if zfnet > alexnet)

    return {"wider": wider("zfnet"), "wider in the lecture notes' network": wider("zfnet_cs231n")}


@claim(
    62,
    "ZFNet makes maps of 110, 55, 26, 13 and 6 rows of a 224x224 image.",
    Verdict.EXACT,
    {"rows": (110, 55, 26, 13, 6)},
    {"rows of conv1 without padding": 109, "rows of both first poolings without ceil_mode": (54, 12)},
    remark="only with a padding of 1 in conv1 and with ceil_mode in the first two poolings",
)
def rows_of_zfnet() -> Values:
    layers = measure.layers("zfnet")
    conv1 = _conv("zfnet", "conv1")
    unpadded = nn.Conv2d(3, conv1.out_channels, conv1.kernel_size, conv1.stride, device="meta")  # type: ignore[arg-type]
    pool = nn.MaxPool2d(3, 2)
    return {
        "rows": tuple(layers[name].output[1] for name in ("conv1", "pool1", "conv2", "pool2", "pool5")),
        "rows of conv1 without padding": measure.output_size(unpadded, *measure.summary("zfnet").input)[1],
        "rows of both first poolings without ceil_mode": tuple(
            measure.output_size(pool, *layers[name].output)[1] for name in ("conv1", "conv2")
        ),
    }


@claim(
    63,
    "ZFNet's layers have 14,208, 614,656, 885,120, 1,327,488, 884,992, 37,752,832, 16,781,312 and 4,097,000 "
    "parameters, 62,357,608 in all.",
    Verdict.EXACT,
    {
        "layers": (14_208, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000),
        "all": 62_357_608,
    },
)
def parameters_of_zfnet() -> Values:
    figures = measure.summary("zfnet")
    return {
        "layers": tuple(layer.parameters for layer in figures.layers if layer.parameters),
        "all": figures.parameters,
    }
