"""Samples of GoogLeNet (Szegedy et al. 2014, 224x224), Inception v3 (2015, 299x299) and DeepLab (Chen et al. 2014)."""

from .geometry import ConvCase

GOOGLENET = (
    ConvCase("googlenet.conv1", 3, 64, 224, 7, stride=2, padding=3),
    ConvCase("googlenet.conv2_reduce", 64, 64, 56, 1),
    ConvCase("googlenet.conv2", 64, 192, 56, 3, padding=1),
    ConvCase("googlenet.3a.1x1", 192, 64, 28, 1),
    ConvCase("googlenet.3a.3x3_reduce", 192, 96, 28, 1),
    ConvCase("googlenet.3a.3x3", 96, 128, 28, 3, padding=1),
    ConvCase("googlenet.3a.5x5_reduce", 192, 16, 28, 1),
    ConvCase("googlenet.3a.5x5", 16, 32, 28, 5, padding=2),
    ConvCase("googlenet.3a.pool_proj", 192, 32, 28, 1),
    ConvCase("googlenet.4b.3x3", 112, 224, 14, 3, padding=1),
    ConvCase("googlenet.4e.5x5", 32, 128, 14, 5, padding=2),
    ConvCase("googlenet.5b.1x1", 832, 384, 7, 1),
    ConvCase("googlenet.5b.3x3", 192, 384, 7, 3, padding=1),
    ConvCase("googlenet.5b.5x5", 48, 128, 7, 5, padding=2),
)

INCEPTION_V3 = (
    ConvCase("inception_v3.conv2a", 32, 32, 149, 3, bias=False),
    ConvCase("inception_v3.6b.1x7", 128, 128, 17, (1, 7), padding=(0, 3), bias=False),
    ConvCase("inception_v3.6b.7x1", 128, 192, 17, (7, 1), padding=(3, 0), bias=False),
    ConvCase("inception_v3.7b.1x3", 384, 384, 8, (1, 3), padding=(0, 1), bias=False),
)

DEEPLAB = (ConvCase("deeplab.conv5_1", 512, 512, 41, 3, padding=2, dilation=2),)
