"""The depthwise layers of MobileNet (Howard et al. 2017) at 224x224; each is followed by a 1x1 that is not listed."""

from .geometry import ConvCase

# (channels, map size, stride, how often)
_LAYERS = (
    (32, 112, 1, 1),
    (64, 112, 2, 1),
    (128, 56, 1, 1),
    (128, 56, 2, 1),
    (256, 28, 1, 1),
    (256, 28, 2, 1),
    (512, 14, 1, 5),
    (512, 14, 2, 1),
    (1024, 7, 1, 1),
)

MOBILENET = tuple(
    ConvCase(f"mobilenet.dw{c}_{n}_s{s}", c, c, n, 3, stride=s, padding=1, groups=c, bias=False, count=count)
    for c, n, s, count in _LAYERS
)
