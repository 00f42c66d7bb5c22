"""Pooling layers of AlexNet, ZFNet, GoogLeNet, ResNet, VGG-16, DenseNet and Inception v3."""

from .geometry import AdaptivePoolCase, PoolCase

# Max pooling.
POOLS = (
    PoolCase("alexnet.pool1", 96, 55, 3, 2),
    PoolCase("alexnet.pool2", 256, 27, 3, 2),
    PoolCase("alexnet.pool5", 256, 13, 3, 2),
    PoolCase("zfnet.pool1", 96, 110, 3, 2, ceil_mode=True),
    PoolCase("zfnet.pool2", 256, 26, 3, 2, ceil_mode=True),
    PoolCase("googlenet.pool1", 64, 112, 3, 2, ceil_mode=True),
    PoolCase("googlenet.pool2", 192, 56, 3, 2, ceil_mode=True),
    PoolCase("googlenet.3a.pool", 192, 28, 3, 1, padding=1),
    PoolCase("googlenet.pool3", 480, 28, 3, 2, ceil_mode=True),
    PoolCase("googlenet.pool4", 832, 14, 3, 2, ceil_mode=True),
    PoolCase("resnet50.maxpool", 64, 112, 3, 2, padding=1),
    PoolCase("vgg16.pool1", 64, 224, 2, 2),
    PoolCase("vgg16.pool3", 256, 56, 2, 2),
    PoolCase("vgg16.pool5", 512, 14, 2, 2),
)

AVG_POOLS = (
    PoolCase("googlenet.avgpool", 1024, 7, 7, 1),
    PoolCase("densenet121.transition1", 128, 56, 2, 2),
    PoolCase("densenet121.transition3", 512, 14, 2, 2),
    PoolCase("inception_v3.5b.avg", 192, 35, 3, 1, padding=1),
    PoolCase("nin_cifar.pool2", 192, 16, 3, 2, ceil_mode=True),
)

# torchvision's AlexNet and VGG pool to a fixed size whatever the image's; the sizes here come from a 320x320 image.
ADAPTIVE_POOLS = (
    AdaptivePoolCase("resnet50.avgpool", 2048, 7, 1),
    AdaptivePoolCase("resnet18.avgpool", 512, 7, 1),
    AdaptivePoolCase("squeezenet1_1.avgpool", 1000, 13, 1),
    AdaptivePoolCase("vgg16.avgpool_320", 512, 10, 7),
    AdaptivePoolCase("alexnet_owt.avgpool_320", 256, 9, 6),
)
