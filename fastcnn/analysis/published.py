"""Figures from the literature that nothing here reproduces: error rates (percent) and training settings.

The data sets and trained weights behind them are not part of this package.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """An error rate in percent; None where none is published."""

    system: str
    data: str
    top1: float | None
    top5: float | None


RESULTS = (
    Result("sparse coding", "ILSVRC-2010 test", 47.1, 28.2),
    Result("SIFT and Fisher vectors", "ILSVRC-2010 test", 45.7, 25.7),
    Result("AlexNet", "ILSVRC-2010 test", 37.5, 17.0),
    Result("SIFT and Fisher vectors", "ILSVRC-2012 test", None, 26.2),
    Result("AlexNet", "ILSVRC-2012 validation", 40.7, 18.2),
    Result("5 AlexNets", "ILSVRC-2012 validation", 38.1, 16.4),
    Result("5 AlexNets", "ILSVRC-2012 test", None, 16.4),
    Result("AlexNet, pretrained on 22,000 classes", "ILSVRC-2012 validation", 39.0, 16.6),
    Result("7 AlexNets, 2 of them pretrained", "ILSVRC-2012 validation", 36.7, 15.4),
    Result("7 AlexNets, 2 of them pretrained", "ILSVRC-2012 test", None, 15.3),
    Result("AlexNet with a sixth convolution", "ImageNet, fall 2009, 10,184 classes", 67.4, 40.9),
    Result("best before AlexNet", "ImageNet, fall 2009, 10,184 classes", 78.1, 60.9),
    Result("ZFNet", "ILSVRC-2013 test", None, 13.51),
    Result("Clarifai, with additional training data", "ILSVRC-2013 test", None, 11.19),
    Result("VGG ensemble", "ILSVRC-2014 test", None, 7.32),
    Result("GoogLeNet ensemble", "ILSVRC-2014 test", None, 6.65),
    Result("ResNet ensemble", "ILSVRC-2015 test", None, 3.57),
    Result("four-layer network", "CIFAR-10 test", 13.0, None),
    Result("four-layer network with normalization", "CIFAR-10 test", 11.0, None),
)


def top5(system: str, data: str) -> float:
    """The published top-5 error; KeyError where none is."""
    found = [r.top5 for r in RESULTS if (r.system, r.data) == (system, data) and r.top5 is not None]
    if not found:
        raise KeyError(f"no top-5 error of {system!r} on {data!r}")
    return found[0]


# Krizhevsky, Sutskever, Hinton (2012), section 5
ALEXNET_TRAINING = {"batch": 128, "momentum": 0.9, "learning rate": 0.01, "divisor": 10, "reductions": 3}
ALEXNET_FIGURES = {"test images": 8, "labels of each": 5, "queries": 5, "neighbours of each": 6}  # figure 4

# Nair, Hinton: Rectified Linear Units Improve Restricted Boltzmann Machines, which the AlexNet paper cites for them
RECTIFIERS_PUBLISHED = 2010
ALEXNET_PUBLISHED = 2012
