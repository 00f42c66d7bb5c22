// The convolution as other CUDA ops call it.
#pragma once
#include "ops/conv2d_args.h"

namespace fastcnn {

Tensor conv2d_on_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Conv2dArgs& a,
                      int64_t accuracy);

}  // namespace fastcnn
