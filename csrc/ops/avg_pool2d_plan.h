// Average pooling's arguments, checked: what the CPU's and the CUDA ops share.
#pragma once
#include "ops/pool.h"

namespace fastcnn {

struct AvgGeometry {
  PoolGeometry g;
  Pair out;
};
inline AvgGeometry avg_geometry(const char* op, int64_t h, int64_t w, const Ints& kernel, const Ints& stride,
                                const Ints& padding, bool ceil_mode, std::optional<int64_t> divisor_override) {
  const PoolGeometry g = pool_geometry(op, kernel, stride, padding, {1, 1});
  const Pair out = pool_output(op, g, h, w, ceil_mode);
  FASTCNN_CHECK(divisor_override != 0, op, ": divisor must be not zero");
  return {g, out};
}

inline Pair adaptive_output(const char* op, const Ints& output_size) {
  const Pair out = pair(op, "output_size", output_size, -1);
  FASTCNN_CHECK(out.h >= 0 && out.w >= 0, op,
                ": elements of output_size must be greater than or equal to 0 but received {", out.h, ", ", out.w, "}");
  return out;
}

inline void check_adaptive_input(const char* op, const Tensor& x, Pair out) {
  dtype_of(op, x);
  check_4d(op, "input", x);
  FASTCNN_CHECK(x.size(2) > 0 && x.size(3) > 0, op,
                ": Expected input to have non-zero size for non-batch dimensions, but input has sizes ", str(x));
  check_numel(op, {std::max<int64_t>(x.size(0), 1), std::max<int64_t>(x.size(1), 1), out.h, out.w});
}

// A gradient of the output of an input of `size`: to be checked before windows are made for sizes that nothing has.
inline void check_avg_grad(const char* op, const Tensor& grad, const Ints& size, Pair out) {
  check_4d(op, "grad", grad);
  FASTCNN_CHECK(grad.size(0) == size[0] && grad.size(1) == size[1] && grad.size(2) == out.h && grad.size(3) == out.w,
                op, ": expected grad of size [", size[0], ", ", size[1], ", ", out.h, ", ", out.w, "], but got ",
                str(grad));
}

}  // namespace fastcnn
