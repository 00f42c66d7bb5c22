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

}  // namespace fastcnn
