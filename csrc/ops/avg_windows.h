// avg_pool2d and adaptive_avg_pool2d differ in their windows and divisors only; both run this.
#pragma once
#include "ops/avg_pool2d.h"
#include "ops/avg_pool2d_plan.h"

namespace fastcnn {

// One axis of an average pooling: of each output position the window and its divisor.
struct AvgAxis {
  Windows windows;
  std::vector<double> divisors;
  int64_t k = 0, s = 0, p = 0;  // of equal windows
};

Tensor avg_windows(const char* op, const Tensor& x, AvgAxis rows, AvgAxis columns);

// The gradient of an input of `size` from that of the output, laid out as channels_last says.
Tensor avg_windows_backward(const char* op, const Tensor& grad, const Ints& size, bool channels_last, AvgAxis rows,
                            AvgAxis columns);

}  // namespace fastcnn
