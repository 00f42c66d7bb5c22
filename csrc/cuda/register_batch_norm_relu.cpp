#include "cuda/batch_norm_relu.cuh"
#include "cuda/registration.h"
#include "ops/batch_norm_args.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "batch_norm_relu";

cuda::ChannelValues channel_values(const char* argument, const OptionalTensor& t, int64_t channels, double missing) {
  if (!t) return {nullptr, 0, Dtype::f32, missing};
  check_values(kOp, argument, *t, channels);
  return {t->const_data_ptr(), t->stride(0), dtype_of(kOp, *t), missing};
}

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_one_device(kOp, input, running_mean, running_var, weight, bias);
  check_4d(kOp, "input", input);
  cuda::BatchNormReluArgs p{};
  p.dtype = dtype_of(kOp, input), p.relu = relu, p.eps = eps;
  p.n = input.size(0), p.c = input.size(1), p.pixels = input.size(2) * input.size(3);
  p.mean = channel_values("running_mean", running_mean, p.c, 0);
  p.weight = channel_values("weight", weight, p.c, 1), p.bias = channel_values("bias", bias, p.c, 0);
  p.var = channel_values("running_var", running_var, p.c, 1);
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  Tensor y = empty(sizes(x), x, format);
  if (!y.numel()) return y;
  Tensor affine = empty({2, p.c}, x, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr(), p.affine = affine.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::batch_norm_relu(p, stream); });
  return y;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
  m.impl("_batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
}
