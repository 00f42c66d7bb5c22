"""Local response normalization layers: AlexNet's within each of two towers, and the others over all channels."""

from .geometry import LRNCase

LRNS = (
    LRNCase("alexnet.lrn1", 96, 55, k=2.0, alpha_mode="sum", groups=2),
    LRNCase("alexnet.lrn2", 256, 27, k=2.0, alpha_mode="sum", groups=2),
    LRNCase("zfnet.lrn1", 96, 55, k=2.0, alpha_mode="sum"),
    LRNCase("zfnet.lrn2", 256, 13, k=2.0, alpha_mode="sum"),
    LRNCase("googlenet.lrn1", 64, 56, k=1.0, alpha_mode="mean"),
    LRNCase("googlenet.lrn2", 192, 56, k=1.0, alpha_mode="mean"),
    LRNCase("vgg11_lrn.lrn1", 64, 224, k=2.0, alpha_mode="sum"),
)
