"""Training settings, published results and other history."""

import torch
from torch import nn

from .. import measure
from .._claim import Values, Verdict, claim, historical
from ..published import ALEXNET_FIGURES, ALEXNET_PUBLISHED, ALEXNET_TRAINING, RECTIFIERS_PUBLISHED, top5

_SETTINGS = ALEXNET_TRAINING


def _final_rate(factor: float) -> float:
    """The learning rate after as many plateaus of the validation error as the paper has."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=_SETTINGS["learning rate"])
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=0)
    schedule.step(1.0)
    for _ in range(int(_SETTINGS["reductions"])):
        schedule.step(1.0)
    return optimizer.param_groups[0]["lr"]


@claim(
    12,
    "AlexNet won ILSVRC-2012 with a top-5 error of 16.4 %.",
    Verdict.WRONG,
    {"winning entry": 16.4},
    {"winning entry": 15.3, "five networks": 16.4, "one network, validation": 18.2},
    published=("winning entry", "five networks", "one network, validation"),
    remark="16.4 % is the error of five networks' mean; the entry averaged seven",
)
def errors_of_alexnet() -> Values:
    return {
        "winning entry": top5("7 AlexNets, 2 of them pretrained", "ILSVRC-2012 test"),
        "five networks": top5("5 AlexNets", "ILSVRC-2012 test"),
        "one network, validation": top5("AlexNet", "ILSVRC-2012 validation"),
    }


@claim(
    13,
    "ZFNet won ILSVRC-2013 with a top-5 error of 11.7 %.",
    Verdict.WRONG,
    {"ZFNet's entry": 11.7},
    {"ZFNet's entry": 13.51},
    published=("ZFNet's entry",),
    remark="11.7 % is the winner's, Clarifai's",
)
def error_of_zfnet() -> Values:
    return {"ZFNet's entry": top5("ZFNet", "ILSVRC-2013 test")}


@claim(
    14,
    "The top-5 errors of VGG, GoogLeNet and ResNet in their competitions were 7.3, 6.7 and 3.57 %.",
    Verdict.ROUNDED,
    {"VGG": 7.3, "GoogLeNet": 6.7, "ResNet": 3.57},
    {"VGG": 7.32, "GoogLeNet": 6.65, "ResNet": 3.57},
    published=("VGG", "GoogLeNet", "ResNet"),
    remark="of ensembles, all three",
)
def errors_of_later_winners() -> Values:
    return {
        "VGG": top5("VGG ensemble", "ILSVRC-2014 test"),
        "GoogLeNet": top5("GoogLeNet ensemble", "ILSVRC-2014 test"),
        "ResNet": top5("ResNet ensemble", "ILSVRC-2015 test"),
    }


@claim(
    25,
    "Training AlexNet, the learning rate 0.01 was divided by 10 whenever the validation error stopped improving, "
    "three times.",
    Verdict.EXACT,
    {"divisor": 10, "reductions": 3},
    {"final learning rate": 1e-5},
    published=("divisor", "reductions"),
    remark="the final rate is torch's ReduceLROnPlateau's after three plateaus",
)
def reductions_of_the_learning_rate() -> Values:
    divisor = _SETTINGS["divisor"]
    return {
        "divisor": divisor,
        "reductions": _SETTINGS["reductions"],
        "final learning rate": round(_final_rate(1 / divisor), 12),
    }


@claim(
    26,
    "At each of these three plateaus the learning rate 0.01 was reduced by 10 %.",
    Verdict.WRONG,
    {"final learning rate": 0.00729},
    {"final learning rate": 1e-5},
    remark="it was divided by 10",
)
def reduction_by_ten_percent() -> Values:
    return {"final learning rate": round(_final_rate(1 / _SETTINGS["divisor"]), 12)}


@claim(
    27,
    "AlexNet was trained with dropout 0.5, batches of 128 images, momentum 0.9 and a learning rate of 0.01 at first.",
    Verdict.EXACT,
    {"dropout": (0.5, 0.5), "batch": 128, "momentum": 0.9, "learning rate": 0.01},
    published=("batch", "momentum", "learning rate"),
)
def settings_of_alexnet() -> Values:
    rates = tuple(m.p for m in measure.network("alexnet").modules() if isinstance(m, nn.Dropout))
    return {"dropout": rates, **{name: _SETTINGS[name] for name in ("batch", "momentum", "learning rate")}}


@claim(
    51,
    "The logistic function is 1 / (1 + e^x).",
    Verdict.WRONG,
    {"at 1": 0.268941},
    {"at 1": 0.731059},
    remark="1 / (1 + e^-x)",
)
def logistic_function() -> Values:
    model = measure.network("lenet5", activation="sigmoid")
    activation = model.get_submodule("act")
    return {"at 1": round(activation(torch.ones((), dtype=torch.float64)).item(), 6)}


@claim(
    75,
    "AlexNet was the first network with rectified linear units.",
    Verdict.WRONG,
    {"published before AlexNet's paper": False},
    {"published before AlexNet's paper": True},
    published=("published before AlexNet's paper",),
    remark="the paper itself cites Nair and Hinton (2010) for them",
)
def first_rectifiers() -> Values:
    return {"published before AlexNet's paper": RECTIFIERS_PUBLISHED < ALEXNET_PUBLISHED}


@claim(
    76,
    "AlexNet's paper shows 96 first-layer kernels, 48 of each GPU, 8 test images with the 5 likeliest labels of each, "
    "and 5 images with the 6 training images nearest to each.",
    Verdict.EXACT,
    {"kernels": 96, "kernels of each GPU": 48, "test images": (8, 5), "neighbours": (5, 6)},
    published=("test images", "neighbours"),
)
def figures_of_alexnets_paper() -> Values:
    model = measure.network("alexnet")
    conv1, conv2 = model.get_submodule("conv1"), model.get_submodule("conv2")
    assert isinstance(conv1, nn.Conv2d)
    assert isinstance(conv2, nn.Conv2d)
    figures = ALEXNET_FIGURES
    return {
        "kernels": conv1.out_channels,
        "kernels of each GPU": conv1.out_channels // conv2.groups,
        "test images": (figures["test images"], figures["labels of each"]),
        "neighbours": (figures["queries"], figures["neighbours of each"]),
    }


historical(35, "A human's top-5 error on ImageNet is about 5 %.", "5.1 % was measured of one trained annotator")
historical(36, "ResNet was better than the second by more than 10 % everywhere, in localization by 27 %.")
historical(
    52,
    "ImageNet has 15 million images of 22,000 classes; the competition's sets have 1.2 million, 50,000 and 150,000, "
    "1000 images for each of 1000 classes.",
    "1000 images for each of 1000 classes would be 1.0 million",
)
historical(
    53,
    "Two GPUs lower AlexNet's top-1 and top-5 errors by 1.7 and 1.2 %, normalization by 1.4 and 1.2 %, overlapping "
    "pooling by 0.4 and 0.3 %, colour augmentation the top-1 error by more than 1 %; without a middle layer it is "
    "about 2 % higher.",
)
historical(
    54,
    "A four-layer network with ReLUs reaches 25 % training error on CIFAR-10 six times faster than with tanh; "
    "normalization lowers its test error from 13 to 11 %.",
)
historical(64, "ZFNet reached 11.19 %, its entry 13.51 %, rank 8.", "11.19 % used additional training data")
historical(71, "VGG's errors in 2014 were 7.32 % and, in localization, 25.32 %, GoogLeNet's 6.65 and 26.44 %.")
historical(72, "AlexNet was trained for 90 epochs with three reductions of the learning rate, in five to six days.")
historical(
    77,
    "The error rates of SIFT features, of AlexNet's ensembles and of the other systems are those that the AlexNet "
    "paper's tables list.",
    "the table below",
)
