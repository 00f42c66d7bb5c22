"""ResNet-50 (He et al. 2015, stride on the 3x3 as torchvision has it), ResNeXt's grouped layers (Xie et al. 2017)."""

from .geometry import ConvCase

# layer1's downsample has the geometry of its conv3, hence the fourth there.
RESNET50 = (
    ConvCase("resnet50.conv1", 3, 64, 224, 7, stride=2, padding=3, bias=False),
    ConvCase("resnet50.layer1.0.conv1", 64, 64, 56, 1, bias=False),
    ConvCase("resnet50.layer1.0.conv2", 64, 64, 56, 3, padding=1, bias=False, count=3),
    ConvCase("resnet50.layer1.0.conv3", 64, 256, 56, 1, bias=False, count=4),
    ConvCase("resnet50.layer1.1.conv1", 256, 64, 56, 1, bias=False, count=2),
    ConvCase("resnet50.layer2.0.conv1", 256, 128, 56, 1, bias=False),
    ConvCase("resnet50.layer2.0.conv2", 128, 128, 56, 3, stride=2, padding=1, bias=False),
    ConvCase("resnet50.layer2.0.conv3", 128, 512, 28, 1, bias=False, count=4),
    ConvCase("resnet50.layer2.0.downsample", 256, 512, 56, 1, stride=2, bias=False),
    ConvCase("resnet50.layer2.1.conv1", 512, 128, 28, 1, bias=False, count=3),
    ConvCase("resnet50.layer2.1.conv2", 128, 128, 28, 3, padding=1, bias=False, count=3),
    ConvCase("resnet50.layer3.0.conv1", 512, 256, 28, 1, bias=False),
    ConvCase("resnet50.layer3.0.conv2", 256, 256, 28, 3, stride=2, padding=1, bias=False),
    ConvCase("resnet50.layer3.0.conv3", 256, 1024, 14, 1, bias=False, count=6),
    ConvCase("resnet50.layer3.0.downsample", 512, 1024, 28, 1, stride=2, bias=False),
    ConvCase("resnet50.layer3.1.conv1", 1024, 256, 14, 1, bias=False, count=5),
    ConvCase("resnet50.layer3.1.conv2", 256, 256, 14, 3, padding=1, bias=False, count=5),
    ConvCase("resnet50.layer4.0.conv1", 1024, 512, 14, 1, bias=False),
    ConvCase("resnet50.layer4.0.conv2", 512, 512, 14, 3, stride=2, padding=1, bias=False),
    ConvCase("resnet50.layer4.0.conv3", 512, 2048, 7, 1, bias=False, count=3),
    ConvCase("resnet50.layer4.0.downsample", 1024, 2048, 14, 1, stride=2, bias=False),
    ConvCase("resnet50.layer4.1.conv1", 2048, 512, 7, 1, bias=False, count=2),
    ConvCase("resnet50.layer4.1.conv2", 512, 512, 7, 3, padding=1, bias=False, count=2),
)

# 4, 8, 16 and 32 channels a group.
RESNEXT50 = (
    ConvCase("resnext50.layer1.0.conv2", 128, 128, 56, 3, padding=1, groups=32, bias=False, count=3),
    ConvCase("resnext50.layer2.0.conv2", 256, 256, 56, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext50.layer2.1.conv2", 256, 256, 28, 3, padding=1, groups=32, bias=False, count=3),
    ConvCase("resnext50.layer3.0.conv2", 512, 512, 28, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext50.layer3.1.conv2", 512, 512, 14, 3, padding=1, groups=32, bias=False, count=5),
    ConvCase("resnext50.layer4.0.conv2", 1024, 1024, 14, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext50.layer4.1.conv2", 1024, 1024, 7, 3, padding=1, groups=32, bias=False, count=2),
)

# 4 to 32 channels a group in twice as many groups.
RESNEXT101_64X4D = (
    ConvCase("resnext101_64x4d.layer1.0.conv2", 256, 256, 56, 3, padding=1, groups=64, bias=False, count=3),
    ConvCase("resnext101_64x4d.layer2.0.conv2", 512, 512, 56, 3, stride=2, padding=1, groups=64, bias=False),
    ConvCase("resnext101_64x4d.layer2.1.conv2", 512, 512, 28, 3, padding=1, groups=64, bias=False, count=3),
    ConvCase("resnext101_64x4d.layer3.0.conv2", 1024, 1024, 28, 3, stride=2, padding=1, groups=64, bias=False),
    ConvCase("resnext101_64x4d.layer3.1.conv2", 1024, 1024, 14, 3, padding=1, groups=64, bias=False, count=22),
    ConvCase("resnext101_64x4d.layer4.0.conv2", 2048, 2048, 14, 3, stride=2, padding=1, groups=64, bias=False),
    ConvCase("resnext101_64x4d.layer4.1.conv2", 2048, 2048, 7, 3, padding=1, groups=64, bias=False, count=2),
)

# 8 to 64 channels a group.
RESNEXT101_32X8D = (
    ConvCase("resnext101_32x8d.layer1.0.conv2", 256, 256, 56, 3, padding=1, groups=32, bias=False, count=3),
    ConvCase("resnext101_32x8d.layer2.0.conv2", 512, 512, 56, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext101_32x8d.layer2.1.conv2", 512, 512, 28, 3, padding=1, groups=32, bias=False, count=3),
    ConvCase("resnext101_32x8d.layer3.0.conv2", 1024, 1024, 28, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext101_32x8d.layer3.1.conv2", 1024, 1024, 14, 3, padding=1, groups=32, bias=False, count=22),
    ConvCase("resnext101_32x8d.layer4.0.conv2", 2048, 2048, 14, 3, stride=2, padding=1, groups=32, bias=False),
    ConvCase("resnext101_32x8d.layer4.1.conv2", 2048, 2048, 7, 3, padding=1, groups=32, bias=False, count=2),
)
