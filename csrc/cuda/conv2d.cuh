// Convolutions on the GPU. Every entry returns null, or why a kernel could not start.
#pragma once
#include <cstdlib>

#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

// Positions, and the steps between them, are counted in 32 bits.
constexpr int64_t kMostIndex = (int64_t{1} << 31) - 1;

// Whether an axis of x has more of them, padding included.
inline bool too_long(const Map& x, const ConvGeometry& g) {
  const auto beyond = [](int64_t size, int64_t padding) { return size + 2 * std::abs(padding) > kMostIndex; };
  return beyond(x.h, g.ph) || beyond(x.w, g.pw);
}

// Whether `run` channels from a multiple of it on, in 16 bytes, can be one access at every pixel of m, which starts at
// p (or is not there).
inline bool in_runs(const void* p, const Map& m, int64_t run) {
  return !p || (m.sc == 1 && m.sn % run == 0 && m.sh % run == 0 && m.sw % run == 0 && aligned(p, 16));
}

// Element strides of a weight: output channel, channel of the sum, row, column, group.
struct WeightStrides {
  int64_t o, c, i, j, g;
};

// y[n,o,p,q] = act(b[o] + sum over c, i, j of w[o,c,i,j] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw] + r[n,o,p,q])
// adjoint: instead over the positions of x whose window i, j holds (p, q): the input gradient of such a convolution,
// whose own geometry the strides, paddings and dilations are.
struct Conv2d {
  const void* x;
  const void* w;
  const void* bias;      // or null
  const void* residual;  // as y; or null
  void* y;
  void* partial;   // of conv2d_mma: mma_partial_elements() of float
  int processors;  // of the device: conv2d_mma cuts its sums by that
  Dtype dtype;     // of all of them
  bool wide_bias;  // bias is of the accumulator type instead
  bool relu, adjoint;
  Map xm, rm, ym;
  WeightStrides ws;
  ConvGeometry g;  // channels per group of this x and y; without padding modes
  // Means and sums of squared deviations of y's channels, float [2][channels][slots], from a kernel with slots of so
  // many pixels (moment_pixels in conv2d_dispatch.h), neither residual nor relu; or null.
  void* moments;
  int64_t slots, slot_pixels;
};

// dw[o,c,i,j] = sum over n, p, q of grad[n,o,p,q] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw]
struct Conv2dWeightGrad {
  const void* x;
  const void* grad;
  void* partial;  // accumulator type, [splits][o][i][j][c]
  void* dw;       // contiguous
  Dtype dtype;
  Map xm, gm;
  ConvGeometry g;
  int64_t splits;  // ranges of pixels, each summed for itself
};

// Weights as kernels read them. channels_inner: [o][i][j][c], for 16-bit types, where those of a few input channels are
// filled up by zeros: a window's row to pairs, an output to steps of 32. Else [g][i][j][c][o], where the outputs of a
// group are filled up to a multiple of four, so that four are one copy of 16 bytes.
struct PackedLayout {
  int64_t elements, group_out;  // group_out: with the filling
  WeightStrides strides;
  bool channels_inner;
};

inline PackedLayout packed_layout(const ConvGeometry& g, Dtype dtype) {
  const int64_t taps = int64_t{g.kh} * g.kw;
  if (size_of(dtype) == 2) {
    const bool few = g.groups == 1 && g.group_in <= kFirstInputs;
    const int64_t row = few ? ceil_div(g.kw * g.group_in, 2) * 2 : g.kw * g.group_in;
    const int64_t o = few ? ceil_div(g.kh * row, 32) * 32 : g.kh * row;
    return {g.groups * g.group_out * o, g.group_out, {o, 1, row, g.group_in, g.group_out * o}, true};
  }
  const int64_t group_out = (g.group_out + 3) / 4 * 4, j = g.group_in * group_out;
  return {g.groups * taps * j, group_out, {1, group_out, g.kw * j, j, taps * j}, false};
}

// A weight to that layout; rotated: its taps in reverse order.
struct Conv2dPack {
  const void* w;
  void* packed;
  Dtype from, to;
  WeightStrides ws;
  bool rotated;
  ConvGeometry g;
  bool tf32 = false;  // float32 rounded to it
};
const char* pack_conv2d_weight(const Conv2dPack& p, void* stream);

// y: x with `p.h` rows and `p.w` columns more on each side, both dense in one layout.
struct Pad2d {
  const void* x;
  void* y;
  int64_t element_bytes;
  Padding mode;
  Map xm, ym;
  int64_t ph, pw;
};
const char* pad2d(const Pad2d& p, void* stream);

// Any type, layout and geometry.
const char* conv2d_direct(const Conv2d& p, void* stream);
const char* conv2d_weight_grad_direct(const Conv2dWeightGrad& p, void* stream);
int64_t direct_weight_grad_splits(const Conv2dWeightGrad& p);

// float16 and bfloat16, x, residual and y NHWC, channels per group in multiples of 8, all pointers to multiples of 16
// bytes. float32, rounded to TF32 (8 bits of exponent, 10 of mantissa) before it is multiplied, in any layout; of NHWC
// x, channels per group in multiples of 4 and a pointer to a multiple of 16 bytes. Kernels of at most kMostTaps a side,
// not adjoint; w in its packed layout, float32 rounded to TF32.
const char* conv2d_mma(const Conv2d& p, void* stream);
int64_t mma_partial_elements(const Conv2d& p);
int processors_of(int device);
// x and grad NHWC, channels per group in multiples of 16 bytes, pointers to multiples of 16 bytes.
const char* conv2d_weight_grad_mma(const Conv2dWeightGrad& p, void* stream);
int64_t mma_weight_grad_splits(const Conv2dWeightGrad& p);

// float32 in any layout, kernels of at most kMostTaps a side, not adjoint; w in its packed layout.
const char* conv2d_ffma(const Conv2d& p, void* stream);
// float32 in any layout, of sizes that 32 bits count (fits_ffma_weight_grad in conv2d_dispatch.h).
const char* conv2d_weight_grad_ffma(const Conv2dWeightGrad& p, void* stream);
int64_t ffma_weight_grad_splits(const Conv2dWeightGrad& p);

// First layers (conv2d_first_tile.h) in any layout, of float32 and of float16 and bfloat16; w in its packed layout.
const char* conv2d_first_ffma(const Conv2d& p, void* stream);
const char* conv2d_first_mma(const Conv2d& p, void* stream);

// First layers of float16 and bfloat16, x in any layout, grad NHWC from a multiple of 16 bytes on, outputs in multiples
// of 8.
const char* conv2d_first_weight_grad(const Conv2dWeightGrad& p, void* stream);
int64_t first_weight_grad_splits(const Conv2dWeightGrad& p);

// float32, float16 and bfloat16, x, residual and y NHWC and aligned to 16 bytes; as many channels of y as of x, 1, 2 or
// 4 a group, or float32 and 8 or 16; a tile for it exists (conv2d_grouped_tile.h); not adjoint.
const char* conv2d_grouped(const Conv2d& p, void* stream);
const char* conv2d_weight_grad_grouped(const Conv2dWeightGrad& p, void* stream);
int64_t grouped_weight_grad_splits(const Conv2dWeightGrad& p);

// float16 and bfloat16, the same with 8 or 16 channels a group (conv2d_plane_tile.h); w in its packed layout.
const char* conv2d_grouped_mma(const Conv2d& p, void* stream);
const char* conv2d_weight_grad_grouped_mma(const Conv2dWeightGrad& p, void* stream);
int64_t grouped_mma_weight_grad_splits(const Conv2dWeightGrad& p);

// dw as the sum of its partial ones, in their order.
const char* conv2d_weight_grad_finish(const Conv2dWeightGrad& p, void* stream);

}  // namespace fastcnn::cuda
