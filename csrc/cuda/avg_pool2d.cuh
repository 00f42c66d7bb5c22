#pragma once
#include <cstdint>

#include "ops/dtype.h"

namespace fastcnn::cuda {

// Output q of `out` averages the input positions [q*s - p, q*s - p + k) of `in`; adaptive (k == 0): those from
// floor(q*in/out) to ceil((q+1)*in/out).
struct AvgPoolAxis {
  int64_t in, out, k, s, p;
};

// Average pooling, or its gradient: y from x of `in` to `out`, backward the gradient of x, y, from that of y, x.
// Tensors are dense NHWC or NCHW.
struct AvgPool2dArgs {
  const void* x;
  void* y;
  Dtype dtype;
  bool channels_last, backward;
  bool count_include_pad;
  double divisor;  // 0: as many as the window holds
  int64_t n, c;
  AvgPoolAxis rows, columns;
};

// Null, or why the kernel could not start.
const char* avg_pool2d(const AvgPool2dArgs& args, void* stream);

}  // namespace fastcnn::cuda
