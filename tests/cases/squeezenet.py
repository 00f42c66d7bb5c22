"""The fire modules of SqueezeNet 1.1 (Iandola et al. 2016, 224x224): two widths, first and last."""

from .geometry import ConvCase

SQUEEZENET = (
    ConvCase("squeezenet.fire2.squeeze", 64, 16, 55, 1),
    ConvCase("squeezenet.fire2.expand1x1", 16, 64, 55, 1),
    ConvCase("squeezenet.fire9.squeeze", 512, 64, 13, 1),
    ConvCase("squeezenet.fire9.expand1x1", 64, 256, 13, 1),
    ConvCase("squeezenet.classifier", 512, 1000, 13, 1),
)
