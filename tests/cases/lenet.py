"""LeNet-5 (LeCun et al. 1998) at 32x32: its convolutions, the C3 link table and the trainable subsampling layers."""

from .geometry import ConvCase, SparseConvCase, SubsampleCase

# Table I of the paper: the S2 maps that each C3 map reads.
C3_TABLE = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

LENET5 = (
    ConvCase("lenet5.c1", 1, 6, 32, 5),
    ConvCase("lenet5_dense.c3", 6, 16, 14, 5),
    ConvCase("lenet5.c5", 16, 120, 5, 5),
)
SPARSE = (SparseConvCase("lenet5.c3", 6, 14, 5, C3_TABLE),)
SUBSAMPLES = (SubsampleCase("lenet5.s2", 6, 28), SubsampleCase("lenet5.s4", 16, 10))
