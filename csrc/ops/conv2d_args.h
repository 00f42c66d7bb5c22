// What the ops on conv2d's kernels share on torch's side: their arguments, and the sum that is conv2d's input gradient
// and the transposed convolution's output.
#pragma once
#include <memory>

#include "ops/tensor.h"

namespace fastcnn {

struct Conv2dArgs {
  Pair stride, padding, dilation;
  int64_t groups;
};

inline Conv2dArgs read_args(const char* op, const Ints& stride, const Ints& padding, const Ints& dilation,
                            int64_t groups) {
  // torch's words first, where it has some.
  const auto least = [](const Ints& v) { return v.empty() ? 0 : *std::min_element(v.begin(), v.end()); };
  FASTCNN_CHECK(groups > 0, op, ": non-positive groups is not supported, but got groups=", groups);
  FASTCNN_CHECK(least(padding) >= 0, op, ": negative padding is not supported, but got padding with ", least(padding));
  FASTCNN_CHECK(stride.empty() || least(stride) > 0, op, ": non-positive stride is not supported, but got stride with ",
                least(stride));
  FASTCNN_CHECK(dilation.empty() || least(dilation) > 0, op,
                ": dilation should be greater than zero, but got dilation with ", least(dilation));
  return {pair(op, "stride", stride, 1), pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1), groups};
}

// Means and sums of squared deviations of an output's channels, slot by slot: see Conv2dParams::moments.
struct Moments {
  std::unique_ptr<char[]> data;
  int64_t slots;
  int64_t row, pixels;  // of a row that slots cut, and of all rows
};

// The convolution and, from its epilogue, the moments of its output. An empty output has none.
Tensor conv2d_with_moments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                           const Conv2dArgs& a, int64_t accuracy, Moments& moments);

// y of size [n, c, h, w]: the adjoint, applied to x, of the convolution with weight [o, c/groups, kh, kw] of something
// of y's size, plus bias[c]. Rows and columns of y that no window of x reaches hold the bias alone.
Tensor transposed_conv2d(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Ints& size, const Conv2dArgs& a);

}  // namespace fastcnn
