#pragma once
#include <cstdint>

#include "ops/dtype.h"

namespace fastcnn::cuda {

// One value a channel, of any floating dtype; without data, `missing`.
struct ChannelValues {
  const void* data;
  int64_t stride;
  Dtype dtype;
  double missing;
};

// y = act((x - mean) / sqrt(var + eps) * weight + bias); x and y dense NHWC or NCHW.
struct BatchNormReluArgs {
  const void* x;
  void* y;
  Dtype dtype;
  bool channels_last, relu;
  int64_t n, c, pixels;  // pixels: of an image
  double eps;
  ChannelValues mean, var, weight, bias;
  void* affine;  // memory of [2][c] of the accumulator type: u = x * affine[0] + affine[1]
};

// Null, or why a kernel could not start.
const char* batch_norm_relu(const BatchNormReluArgs& args, void* stream);

}  // namespace fastcnn::cuda
