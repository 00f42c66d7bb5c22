"""Named layers of published networks, as data: the geometries that the tests check and the benchmarks time.

`ALEXNET`, `VGG16` and `RESNET50` hold every convolution of their network, each distinct geometry once (`count` says how
often it occurs); the other tuples hold samples. `POOLS`, `AVG_POOLS`, `ADAPTIVE_POOLS`, `LRNS`, `SPARSE` and
`SUBSAMPLES` hold the layers that are not convolutions. `find("alexnet.conv2")` looks one up.
"""

from .alexnet import ALEXNET, ALEXNET_OWT
from .densenet import DENSENET121
from .geometry import AdaptivePoolCase, ConvCase, LRNCase, PoolCase, SparseConvCase, SubsampleCase
from .googlenet import DEEPLAB, GOOGLENET, INCEPTION_V3
from .lenet import LENET5, SPARSE, SUBSAMPLES
from .lrn import LRNS
from .mobilenet import MOBILENET
from .pool import ADAPTIVE_POOLS, AVG_POOLS, POOLS
from .resnet import RESNET50, RESNEXT50
from .squeezenet import SQUEEZENET
from .vgg import VGG16

CONVS = (
    *ALEXNET,
    *ALEXNET_OWT,
    *VGG16,
    *RESNET50,
    *RESNEXT50,
    *MOBILENET,
    *LENET5,
    *GOOGLENET,
    *INCEPTION_V3,
    *DEEPLAB,
    *SQUEEZENET,
    *DENSENET121,
)
CASES = {
    case.name: case for family in (CONVS, POOLS, AVG_POOLS, ADAPTIVE_POOLS, LRNS, SPARSE, SUBSAMPLES) for case in family
}
find = CASES.__getitem__

__all__ = [
    "ADAPTIVE_POOLS",
    "ALEXNET",
    "ALEXNET_OWT",
    "AVG_POOLS",
    "CASES",
    "CONVS",
    "DEEPLAB",
    "DENSENET121",
    "GOOGLENET",
    "INCEPTION_V3",
    "LENET5",
    "LRNS",
    "MOBILENET",
    "POOLS",
    "RESNET50",
    "RESNEXT50",
    "SPARSE",
    "SQUEEZENET",
    "SUBSAMPLES",
    "VGG16",
    "AdaptivePoolCase",
    "ConvCase",
    "LRNCase",
    "PoolCase",
    "SparseConvCase",
    "SubsampleCase",
    "find",
]
