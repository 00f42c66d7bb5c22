"""Functions with torch.nn.functional's names and arguments, on fastcnn's kernels.

Each takes float32, float64, float16 or bfloat16 tensors of a CPU or, where the CUDA kernels are built, a GPU, batched
or not, in any layout; the output's memory format follows the input's, as torch's does. What fastcnn does not compute
(complex, integer, other devices) runs the stock PyTorch composition that stands beside the op in fastcnn/ops;
`fastcnn.explain` says which.
"""

from .ops._drop import drop_path, dropout, stochastic_depth
from .ops.adaptive_avg_pool2d import adaptive_avg_pool2d
from .ops.avg_pool2d import avg_pool2d
from .ops.batch_norm_relu import batch_norm_relu
from .ops.conv2d import conv2d
from .ops.conv2d_bn_relu import conv2d_bn_relu
from .ops.conv_transpose2d import conv_transpose2d
from .ops.local_conv2d import local_conv2d
from .ops.local_response_norm import local_response_norm
from .ops.lrn_max_pool2d import lrn_max_pool2d
from .ops.max_pool2d import max_pool2d
from .ops.max_unpool2d import max_unpool2d
from .ops.sparse_conv2d import sparse_conv2d
from .ops.subsample2d import subsample2d

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm_relu",
    "conv2d",
    "conv2d_bn_relu",
    "conv_transpose2d",
    "drop_path",
    "dropout",
    "local_conv2d",
    "local_response_norm",
    "lrn_max_pool2d",
    "max_pool2d",
    "max_unpool2d",
    "sparse_conv2d",
    "stochastic_depth",
    "subsample2d",
]
