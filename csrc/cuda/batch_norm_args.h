// What the CUDA ops on the batch normalization kernels share on torch's side.
#pragma once
#include "cuda/batch_norm_relu.cuh"
#include "cuda/registration.h"
#include "ops/batch_norm_args.h"

namespace fastcnn {

inline cuda::ChannelValues channel_values(const char* op, const char* argument, const std::optional<Tensor>& t,
                                          int64_t channels, double missing) {
  if (!t) return {nullptr, 0, Dtype::f32, missing};
  check_values(op, argument, *t, channels);
  return {t->const_data_ptr(), t->stride(0), dtype_of(op, *t), missing};
}

// The kernels' view of x, which is dense in `format`.
inline cuda::BatchNormReluArgs norm_args(const char* op, const Tensor& x, MemoryFormat format, bool relu, double eps) {
  cuda::BatchNormReluArgs p{};
  p.x = x.const_data_ptr(), p.dtype = dtype_of(op, x), p.relu = relu, p.eps = eps;
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.n = x.size(0), p.c = x.size(1), p.pixels = x.size(2) * x.size(3);
  return p;
}

// What an op calls the values of a channel.
struct ChannelNames {
  const char *mean, *var, *weight, *bias;
};

// y = act((x - mean) / sqrt(var + eps) * weight + bias + residual) by given statistics.
inline Tensor normalized(const char* op, const ChannelNames& names, const Tensor& input, const Tensor& mean,
                         const Tensor& var, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& residual, double eps, bool relu) {
  const Tensor x = dense(input);
  if (residual) check_like(op, "residual", *residual, x);
  const MemoryFormat format = format_of(x);
  cuda::BatchNormReluArgs p = norm_args(op, x, format, relu, eps);
  p.mean = channel_values(op, names.mean, mean, p.c, 0);
  p.weight = channel_values(op, names.weight, weight, p.c, 1);
  p.bias = channel_values(op, names.bias, bias, p.c, 0);
  p.var = channel_values(op, names.var, var, p.c, 1);
  Tensor y = empty(sizes(x), x, format);
  if (!y.numel()) return y;
  const Tensor r = residual ? torch::stable::contiguous(*residual, format) : x;
  if (residual) p.residual = r.const_data_ptr();
  Tensor affine = empty({2, p.c}, x, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.y = y.mutable_data_ptr(), p.affine = affine.mutable_data_ptr();
  launched(op, x, [&](void* stream) { return cuda::batch_norm_relu(p, stream); });
  return y;
}

}  // namespace fastcnn
