#include "cuda/batch_norm_args.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "batch_norm_relu";

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_one_device(kOp, input, running_mean, running_var, weight, bias);
  check_4d(kOp, "input", input);
  dtype_of(kOp, input);
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  cuda::BatchNormReluArgs p = norm_args(kOp, x, format, relu, eps);
  p.mean = channel_values(kOp, "running_mean", running_mean, p.c, 0);
  p.weight = channel_values(kOp, "weight", weight, p.c, 1), p.bias = channel_values(kOp, "bias", bias, p.c, 0);
  p.var = channel_values(kOp, "running_var", running_var, p.c, 1);
  Tensor y = empty(sizes(x), x, format);
  if (!y.numel()) return y;
  Tensor affine = empty({2, p.c}, x, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.y = y.mutable_data_ptr(), p.affine = affine.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::batch_norm_relu(p, stream); });
  return y;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
  m.impl("_batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
}
