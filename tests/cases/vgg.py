"""VGG-16 (Simonyan, Zisserman 2014), configuration D, at 224x224."""

from .geometry import ConvCase

VGG16 = (
    ConvCase("vgg16.conv1_1", 3, 64, 224, 3, padding=1),
    ConvCase("vgg16.conv1_2", 64, 64, 224, 3, padding=1),
    ConvCase("vgg16.conv2_1", 64, 128, 112, 3, padding=1),
    ConvCase("vgg16.conv2_2", 128, 128, 112, 3, padding=1),
    ConvCase("vgg16.conv3_1", 128, 256, 56, 3, padding=1),
    ConvCase("vgg16.conv3_2", 256, 256, 56, 3, padding=1, count=2),
    ConvCase("vgg16.conv4_1", 256, 512, 28, 3, padding=1),
    ConvCase("vgg16.conv4_2", 512, 512, 28, 3, padding=1, count=2),
    ConvCase("vgg16.conv5_1", 512, 512, 14, 3, padding=1, count=3),
)
