// Schemas come from Python, copied from torch.ops.fastcnn's; this defines the namespace.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastcnn_simt, m) { (void)m; }
