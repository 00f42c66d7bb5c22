"""1x1 layers of DenseNet-121 (Huang et al. 2016, 224x224), all behind a normalization and a ReLU: samples."""

from .geometry import ConvCase

DENSENET121 = (
    ConvCase("densenet121.denseblock1.1.conv1", 64, 128, 56, 1, bias=False),
    ConvCase("densenet121.denseblock1.2.conv1", 96, 128, 56, 1, bias=False),
    ConvCase("densenet121.transition1", 256, 128, 56, 1, bias=False),
    ConvCase("densenet121.denseblock3.24.conv1", 992, 128, 14, 1, bias=False),
    ConvCase("densenet121.denseblock4.16.conv1", 992, 128, 7, 1, bias=False),
)
