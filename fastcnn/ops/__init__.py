"""One module per op: fake kernel, autograd, vmap, FLOPs, float64 reference, functional face. Importing registers."""

from . import (  # noqa: F401
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm_relu,
    conv2d,
    local_response_norm,
    lrn_max_pool2d,
    max_pool2d,
    max_unpool2d,
    sparse_conv2d,
    subsample2d,
)
