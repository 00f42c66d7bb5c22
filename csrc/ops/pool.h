// What the pooling ops share: which positions of the input each output position covers, along one axis.
#pragma once
#include "ops/scratch.h"
#include "ops/tensor.h"
#include "ops/window.h"

namespace fastcnn {

using Windows = std::vector<Window>;

// floor, or ceil, of (in + 2*p - d*(k-1) - 1) / s + 1; under ceil no window starts behind the input and its left
// padding.
inline int64_t pool_output_size(int64_t in, int64_t k, int64_t s, int64_t p, int64_t d, bool ceil_mode) {
  const int64_t last = in + 2 * p - d * (k - 1) - 1 + (ceil_mode ? s - 1 : 0);  // the last window's start, rounded down
  const int64_t out = last < 0 ? 0 : last / s + 1;
  return ceil_mode && (out - 1) * s >= in + p ? out - 1 : out;
}

// Window q holds k positions, d apart, from q*s-p on; those outside [0, in) are skipped.
inline Windows pool_windows(int64_t in, int64_t out, int64_t k, int64_t s, int64_t p, int64_t d) {
  Windows windows(out);
  for (int64_t q = 0; q < out; ++q) {
    const int64_t start = q * s - p, stop = start + (k - 1) * d + 1;
    windows[q] = {start < 0 ? 0 : start, stop < in ? stop : in, start < 0 ? start + (-start + d - 1) / d * d : start};
  }
  return windows;
}

// The other way round: for each input position the windows whose span holds it.
inline Windows transposed(const Windows& windows, int64_t in) {
  const int64_t out = windows.size();
  Windows covering(in);
  int64_t begin = 0, end = 0;
  for (int64_t i = 0; i < in; ++i) {
    while (begin < out && windows[begin].end <= i) ++begin;
    while (end < out && windows[end].begin <= i) ++end;
    covering[i] = {begin, end > begin ? end : begin, begin};
  }
  return covering;
}

// Checks in torch's order and words.
struct PoolGeometry {
  Pair k, s, p, d;
};
inline PoolGeometry pool_geometry(const char* op, const Ints& kernel, const Ints& stride, const Ints& padding,
                                  const Ints& dilation) {
  constexpr int64_t kNone = -(int64_t{1} << 31);
  const PoolGeometry g{pair(op, "kernel_size", kernel, 1), pair(op, "stride", stride, 1),
                       pair(op, "padding", padding, kNone), pair(op, "dilation", dilation, 1)};
  FASTCNN_CHECK(g.p.h >= 0 && g.p.w >= 0, op, ": pad must be non-negative, but got padding (", g.p.h, ", ", g.p.w, ")");
  FASTCNN_CHECK(g.p.h <= ((g.k.h - 1) * g.d.h + 1) / 2 && g.p.w <= ((g.k.w - 1) * g.d.w + 1) / 2, op,
                ": pad should be at most half of effective kernel size, but got padding (", g.p.h, ", ", g.p.w,
                "), kernel_size (", g.k.h, ", ", g.k.w, ") and dilation (", g.d.h, ", ", g.d.w, ")");
  FASTCNN_CHECK(g.p.h <= g.k.h / 2 && g.p.w <= g.k.w / 2, op,
                ": pad should be smaller than or equal to half of kernel size, but got padW = ", g.p.w,
                ", padH = ", g.p.h, ", kW = ", g.k.w, ", kH = ", g.k.h);
  return g;
}

inline void check_pool_input(const char* op, const Tensor& x) {
  check_4d(op, "input", x);
  FASTCNN_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op,
                ": Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got: ", str(x));
}

// The size of an input, as a backward op is told it.
inline void check_pool_size(const char* op, const Ints& size) {
  bool ok = size.size() == 4;
  for (const int64_t s : size) ok = ok && s >= 0 && s < int64_t{1} << 40;
  FASTCNN_CHECK(ok, op, ": expected size to be the 4 sizes (N, C, H, W) of the input");
}

inline Pair pool_output(const char* op, const PoolGeometry& g, int64_t h, int64_t w, bool ceil_mode) {
  const Pair out{pool_output_size(h, g.k.h, g.s.h, g.p.h, g.d.h, ceil_mode),
                 pool_output_size(w, g.k.w, g.s.w, g.p.w, g.d.w, ceil_mode)};
  FASTCNN_CHECK(out.h > 0 && out.w > 0, op, ": Given input size: (", h, "x", w, "). Calculated output size: (", out.h,
                "x", out.w, "). Output size is too small");
  return out;
}

// Channels that one task of an NHWC kernel handles: all of them where there are rows enough to share out among
// threads, else blocks. Depends on the shape only; a channel's value never depends on its block.
inline int64_t channel_block(int64_t rows, int64_t channels) {
  constexpr int64_t kTasks = 16, kAlign = 64;
  if (rows >= kTasks || rows == 0) return channels;
  const int64_t block = (channels * rows / kTasks + kAlign - 1) / kAlign * kAlign;
  return block < kAlign ? kAlign : block;
}

// The shortest task worth a thread: about 10 microseconds of work.
inline int64_t pool_grain(int64_t elements_read) { return 1 + 32768 / (elements_read + 1); }

}  // namespace fastcnn
