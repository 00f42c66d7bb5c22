"""Functions with torch.nn.functional's names and arguments, on fastcnn's kernels.

Each takes float32, float64, float16 or bfloat16 CPU tensors, batched or not, in any layout; the output's memory
format follows the input's, as torch's does. What fastcnn does not compute (complex, integer, other devices) runs
the stock PyTorch composition that stands beside the op in fastcnn/ops; `fastcnn.explain` says which.
"""

from .ops.max_pool2d import max_pool2d

__all__ = ["max_pool2d"]
