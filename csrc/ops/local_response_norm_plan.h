// Local response normalization's arguments, checked, as the kernels' plain struct, and its work cut into units.
#pragma once
#include <algorithm>

#include "ops/local_response_norm.h"
#include "ops/tensor.h"

namespace fastcnn {

inline LocalResponseNormParams norm_geometry(const char* op, const Tensor& x, int64_t size, double alpha, double beta,
                                             double k, int64_t groups, bool relu) {
  check_4d(op, "input", x);
  FASTCNN_CHECK(size > 0, op, ": expected size of at least 1, but got ", size);
  FASTCNN_CHECK(groups > 0 && x.size(1) % groups == 0, op, ": expected groups to divide the channels of input (",
                x.size(1), "), but got groups ", groups);
  LocalResponseNormParams p{};
  p.dtype = dtype_of(op, x);
  p.relu = relu, p.alpha = alpha, p.beta = beta, p.k = k;
  p.channels = p.last = x.size(1) / groups;
  const bool rows = format_of(x) == MemoryFormat::ChannelsLast;
  const int64_t pixels = x.size(2) * x.size(3);
  p.inner = rows ? 1 : pixels;
  p.outer = x.size(0) * groups * (rows ? pixels : 1);
  p.before = std::min(size / 2, std::max<int64_t>(p.channels - 1, 0));
  p.after = std::min((size - 1) / 2, std::max<int64_t>(p.channels - 1, 0));
  return p;
}

inline void check_norm_grad(const char* op, const Tensor& grad, const Tensor& input) {
  check_same_dtype(op, "grad", input, grad);
  FASTCNN_CHECK(grad.dim() == 4 && std::equal(grad.sizes().begin(), grad.sizes().end(), input.sizes().begin()), op,
                ": expected grad of size ", str(input), ", but got grad of size ", str(grad));
}

inline void set_units(LocalResponseNormParams& p, bool backward) {
  constexpr int64_t kSlack = 16;  // lanes of the widest vector: reads of scratch are whole vectors
  const int64_t count = p.before + p.after + 1, pitch = p.channels + count - 1;
  if (p.inner == 1) {
    p.length = std::clamp<int64_t>(2048 / pitch, 1, 64);  // a buffer of 8 KiB: several fit the first-level cache
    p.units = (p.outer + p.length - 1) / p.length;
    p.scratch = (backward ? 3 : 1) * (p.length * pitch + kSlack);
  } else {
    p.length = std::clamp<int64_t>(2560 / count, 64, 512);
    p.units = p.outer * std::max<int64_t>(p.inner / p.length, 1);
    p.scratch = backward ? 2 * count * (2 * p.length + kSlack) : 0;
  }
}

inline int64_t scratch_bytes(const LocalResponseNormParams& p) { return p.scratch * accumulator_size(p.dtype); }

}  // namespace fastcnn
