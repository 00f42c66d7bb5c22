"""AlexNet with two towers (Krizhevsky, Sutskever, Hinton 2012) at 227x227, and "one weird trick" AlexNet at 224x224."""

from .geometry import ConvCase

ALEXNET = (
    ConvCase("alexnet.conv1", 3, 96, 227, 11, stride=4),
    ConvCase("alexnet.conv2", 96, 256, 27, 5, padding=2, groups=2),
    ConvCase("alexnet.conv3", 256, 384, 13, 3, padding=1),
    ConvCase("alexnet.conv4", 384, 384, 13, 3, padding=1, groups=2),
    ConvCase("alexnet.conv5", 384, 256, 13, 3, padding=1, groups=2),
)

ALEXNET_OWT = (
    ConvCase("alexnet_owt.conv1", 3, 64, 224, 11, stride=4, padding=2),
    ConvCase("alexnet_owt.conv2", 64, 192, 27, 5, padding=2),
    ConvCase("alexnet_owt.conv3", 192, 384, 13, 3, padding=1),
    ConvCase("alexnet_owt.conv4", 384, 256, 13, 3, padding=1),
    ConvCase("alexnet_owt.conv5", 256, 256, 13, 3, padding=1),
)
