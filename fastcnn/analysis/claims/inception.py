"""GoogLeNet and the inception module; SqueezeNet and Network in Network, which are small for like reasons."""

import torch
from torch import nn

from fastcnn.models import GoogLeNet
from fastcnn.models.googlenet import GoogLeNetOutputs, Inception
from fastcnn.models.layers import record_calls

from .. import measure
from .._claim import Values, Verdict, claim


def _modules() -> dict[str, Inception]:
    children = measure.network("googlenet").named_children()
    return {name: module for name, module in children if isinstance(module, Inception)}


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@claim(
    10,
    "An inception module of 128 1x1, 192 3x3 and 96 5x5 kernels and pooling of 256 channels has 672 output channels.",
    Verdict.EXACT,
    {"output channels": 672},
    {"of the branches": (128, 192, 96, 256)},
)
def channels_of_a_naive_module() -> Values:
    module = measure.naive_inception()
    branches = tuple(measure.output_size(branch, *measure.INCEPTION_INPUT)[0] for branch in module.children())
    return {"output channels": measure.output_size(module, *measure.INCEPTION_INPUT)[0], "of the branches": branches}


@claim(
    11,
    "The loss of each of GoogLeNet's auxiliary classifiers counts 0.3 times.",
    Verdict.EXACT,
    {"weights": (0.3, 0.3)},
    {"auxiliary layers that a prediction runs": 0, "auxiliary layers that training runs": 14},
    remark="in the training loss only; the prediction does not contain them",
)
def weights_of_auxiliary_losses() -> Values:
    generator = torch.Generator().manual_seed(0)
    main, second, first = torch.randn(3, 4, 10, generator=generator, dtype=torch.float64)
    target = torch.arange(4)
    with torch.device("meta"):
        model = GoogLeNet(10)
    without = model.loss(GoogLeNetOutputs(main, None, None), target)

    def weight(outputs: GoogLeNetOutputs, auxiliary: torch.Tensor) -> float:
        own = nn.functional.cross_entropy(auxiliary, target)
        return round(float((model.loss(outputs, target) - without) / own), 9)

    def auxiliary_layers(training: bool) -> int:
        with torch.no_grad(), record_calls(model.train(training)) as calls:
            model(torch.empty(1, 3, 224, 224, device="meta"))
        return sum(call.name.startswith("aux") for call in calls)

    return {
        "weights": (
            weight(GoogLeNetOutputs(main, None, first), first),
            weight(GoogLeNetOutputs(main, second, None), second),
        ),
        "auxiliary layers that a prediction runs": auxiliary_layers(False),
        "auxiliary layers that training runs": auxiliary_layers(True),
    }


@claim(
    22,
    "GoogLeNet has 5 million parameters, twelve times fewer than AlexNet.",
    Verdict.WRONG,
    {"parameters": 5_000_000, "AlexNet : GoogLeNet": 12.0},
    {"parameters": 6_998_552, "AlexNet : GoogLeNet": 8.71},
    remark="without the auxiliary classifiers, which only training needs",
)
def parameters_of_googlenet() -> Values:
    own = measure.summary("googlenet", aux_logits=False).parameters
    return {"parameters": own, "AlexNet : GoogLeNet": round(measure.summary("alexnet").parameters / own, 2)}


@claim(
    29,
    "The inception module without 1x1 reductions makes 28x28 maps of 672 channels of 28x28 maps of 256.",
    Verdict.EXACT,
    {"input": (256, 28, 28), "output": (672, 28, 28)},
)
def sizes_of_a_naive_module() -> Values:
    size = measure.INCEPTION_INPUT
    return {"input": size, "output": measure.output_size(measure.naive_inception(), *size)}


@claim(
    30,
    "The convolutions of that module take 854 million multiplications.",
    Verdict.EXACT,
    {"millions": 854},
    {"multiply-adds": 854_196_224, "of 1x1, 3x3 and 5x5": (25_690_112, 346_816_512, 481_689_600), "weights": 1_089_536},
)
def cost_of_a_naive_module() -> Values:
    module = measure.naive_inception()
    macs = measure.inception_macs(module)
    return {
        "millions": round(sum(macs) / 1e6),
        "multiply-adds": sum(macs),
        "of 1x1, 3x3 and 5x5": tuple(macs),
        "weights": measure.weights(module),
    }


@claim(
    31,
    "With 1x1 convolutions to 64 channels before the 3x3 and 5x5 ones and after the pooling, the module takes 358 "
    "million multiplications.",
    Verdict.WRONG,
    {"millions": 358},
    {
        "millions": 271,
        "multiply-adds": 271_351_808,
        "% of the module without them": 31.8,
        "with the 3x3 twice": 358_055_936,
        "weights": 346_112,
    },
    remark="358 million counts the 3x3 convolution twice",
)
def cost_of_a_module_with_bottlenecks() -> Values:
    module = measure.bottleneck_inception()
    macs = measure.inception_macs(module)
    three = next(cost for conv, cost in zip(_convolutions(module), macs, strict=True) if conv.kernel_size == (3, 3))
    return {
        "millions": round(sum(macs) / 1e6),
        "multiply-adds": sum(macs),
        "% of the module without them": round(
            100 * sum(macs) / sum(measure.inception_macs(measure.naive_inception())), 1
        ),
        "with the 3x3 twice": sum(macs) + three,
        "weights": measure.weights(module),
    }


@claim(
    32,
    "In every branch but the 1x1 one, an inception module has a 1x1 convolution first.",
    Verdict.WRONG,
    {"branches that start with a 1x1 convolution": 4},
    {
        "branches that start with a 1x1 convolution": 3,
        "pooling branch": ("pool", "1x1"),
        "output channels": 480,
    },
    remark="in the pooling branch it follows the pooling",
)
def order_of_the_branches() -> Values:
    module = measure.bottleneck_inception()

    def kinds(branch: nn.Module) -> tuple[str, ...]:
        parts = [m for m in branch.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
        return tuple("pool" if isinstance(m, nn.MaxPool2d) else "x".join(map(str, m.kernel_size)) for m in parts)

    orders = [kinds(branch) for branch in module.children()]
    return {
        "branches that start with a 1x1 convolution": sum(order[0] == "1x1" for order in orders),
        "pooling branch": next(order for order in orders if "pool" in order),
        "output channels": measure.output_size(module, *measure.INCEPTION_INPUT)[0],
    }


@claim(
    68,
    "The 1x1 convolutions of an inception module have stride 2 and halve the maps.",
    Verdict.WRONG,
    {"strides": (2,), "rows of 3a, of 28": 14},
    {"strides": (1,), "rows of 3a, of 28": 28},
)
def strides_of_1x1_convolutions() -> Values:
    found = {
        conv.stride for module in _modules().values() for conv in _convolutions(module) if conv.kernel_size == (1, 1)
    }
    first = _modules()["inception3a"]
    return {
        "strides": tuple(sorted({rows for stride in found for rows in stride})),
        "rows of 3a, of 28": measure.output_size(first, 192, 28, 28)[1],
    }


@claim(
    69,
    "In an inception module of C1 input channels whose pooling branch has C2 output channels, that branch's 1x1 "
    "convolution has (3 x 3 x C2 + 1) x C2 parameters, the pooling's output C2 channels, and the second branch's "
    "1x1 convolution reads C2 channels (3a: C1 = 192, C2 = 32).",
    Verdict.WRONG,
    {
        "parameters of the 1x1 behind the pooling": (3 * 3 * 32 + 1) * 32,
        "channels of the pooling's output": 32,
        "channels that the second branch reads": 32,
    },
    {
        "parameters of the 1x1 behind the pooling": 6_176,
        "channels of the pooling's output": 192,
        "channels that the second branch reads": 192,
    },
    remark="(C1 + 1) x C2 parameters; C1 channels in both other places",
)
def pooling_branch_of_3a() -> Values:
    first = _modules()["inception3a"]
    pool = next(m for m in first.branch4.modules() if isinstance(m, nn.MaxPool2d))
    (conv,) = _convolutions(first.branch4)
    reduction = _convolutions(first.branch2)[0]
    return {
        "parameters of the 1x1 behind the pooling": measure.parameters(conv),
        "channels of the pooling's output": measure.output_size(pool, reduction.in_channels, 28, 28)[0],
        "channels that the second branch reads": reduction.in_channels,
    }


@claim(
    70,
    "The 1x1, 3x3 and 5x5 convolutions of an inception module have paddings of 0, 1 and 2.",
    Verdict.EXACT,
    {"1x1": (0, 0), "3x3": (1, 1), "5x5": (2, 2)},
)
def paddings() -> Values:
    found = {
        ("x".join(map(str, conv.kernel_size)), conv.padding)
        for module in _modules().values()
        for conv in _convolutions(module)
    }
    assert len(found) == len(dict(found)), "a kernel size with two paddings"
    return dict(sorted(found))  # type: ignore[arg-type]


@claim(
    37,
    "SqueezeNet has 50 times fewer parameters than AlexNet.",
    Verdict.ROUNDED,
    {"AlexNet : SqueezeNet 1.0": 50.0, "AlexNet : SqueezeNet 1.1": 50.0},
    {"AlexNet : SqueezeNet 1.0": 48.8, "AlexNet : SqueezeNet 1.1": 49.3},
    tolerance=0.025,
)
def parameters_of_squeezenet() -> Values:
    alexnet = measure.summary("alexnet").parameters
    names = {"1.0": "squeezenet1_0", "1.1": "squeezenet1_1"}
    return {
        f"AlexNet : SqueezeNet {version}": round(alexnet / measure.summary(name).parameters, 1)
        for version, name in names.items()
    }


@claim(
    38,
    "SqueezeNet's parameters take less than half a megabyte.",
    Verdict.WRONG,
    {"less than 0.5 MB": True},
    {"less than 0.5 MB": False, "megabytes in float32": 4.99},
    remark="only after pruning and quantization (Deep Compression)",
)
def size_of_squeezenet() -> Values:
    size = sum(p.numel() * p.element_size() for p in measure.network("squeezenet1_0").parameters()) / 1e6
    return {"less than 0.5 MB": size < 0.5, "megabytes in float32": round(size, 2)}


@claim(
    65,
    "A Network in Network for 32x32 images and 100 classes has layers of 448, 272, 9,280, 4,160, 57,700 and 10,100 "
    "parameters, and its first maps (32 - 3 + 1) / 1 rows.",
    Verdict.EXACT,
    {"layers": (448, 272, 9_280, 4_160, 57_700, 10_100), "rows": 30},
    {"all": 81_960, "rows of the ImageNet network's conv1": 54},
    remark="the formula for rows holds for stride 1 only: (224 - 11 + 1) / 4 would be 53.5",
)
def parameters_of_nin() -> Values:
    figures = measure.summary("nin_seed")
    return {
        "layers": tuple(layer.parameters for layer in figures.layers if layer.parameters),
        "rows": figures.layers[0].output[1],
        "all": figures.parameters,
        "rows of the ImageNet network's conv1": measure.summary("nin_imagenet").layers[0].output[1],
    }
