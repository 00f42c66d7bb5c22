// The convolution as other CUDA ops call it.
#pragma once
#include "ops/conv2d_args.h"

namespace fastcnn {

// Means and sums of squared deviations of y's channels over slots of `pixels` pixels each, [2][channels][slots] of
// float; no data where the convolution's kernel does not take them.
struct ConvMoments {
  std::optional<Tensor> data;
  int64_t pixels;
};

Tensor conv2d_on_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Conv2dArgs& a,
                      int64_t accuracy, ConvMoments& moments);

}  // namespace fastcnn
