// Batch normalization, residual and ReLU, and their gradients; the formulas stand in ops/batch_norm_relu.h. Every entry
// returns null, or why a kernel could not start.
#pragma once
#include <cstdint>

#include "cuda/tiles.h"
#include "ops/dtype.h"

namespace fastcnn::cuda {

// One value a channel, of any floating dtype; without data, `missing`.
struct ChannelValues {
  const void* data;
  int64_t stride;
  Dtype dtype;
  double missing;
};

// y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); x, residual and y dense NHWC or NCHW.
struct BatchNormReluArgs {
  const void *x, *residual;  // residual: or null
  void* y;
  Dtype dtype;
  bool channels_last, relu;
  int64_t n, c, pixels;  // pixels: of an image
  double eps;
  ChannelValues mean, var, weight, bias;
  void* affine;  // memory of [2][c] of the accumulator type: u = x * affine[0] + affine[1]
};
const char* batch_norm_relu(const BatchNormReluArgs& p, void* stream);
const char* batch_norm_relu_by_affine(const BatchNormReluArgs& p, void* stream);  // affine is there already

// The cut of a channel's pixels into slots, whose sums are formed apart: each row of `row` pixels (an NCHW plane, or
// all pixels of NHWC as one) into pieces of `piece`, the last of which may be smaller.
struct ChannelSlots {
  int64_t row, piece, per_row, count;
};
inline ChannelSlots cut_channel(int64_t rows, int64_t row, int64_t piece) {
  return {row, piece, ceil_div(row, piece), rows * ceil_div(row, piece)};
}

// x's own mean and variance. moments: each slot's mean and sum of squared deviations from it, [2][c][slots] of the
// accumulator type, as a convolution's epilogue can take them, too.
ChannelSlots moment_slots(const BatchNormReluArgs& p);
const char* batch_norm_moments(const BatchNormReluArgs& p, void* moments, void* stream);
// From them mean and var, [c] of the accumulator type, and p.affine.
const char* batch_norm_statistics(const BatchNormReluArgs& p, const ChannelSlots& slots, const void* moments,
                                  void* mean, void* var, void* stream);

// The gradients of such a y, of which mean and var are x's own.
struct BatchNormReluGrad {
  BatchNormReluArgs norm;  // affine: memory of [4][c]; no residual, no y
  const void* grad;
  const void* out;        // y, where its sign says what ReLU let through; null: recomputed from x
  void *dx, *masked;      // masked: the residual's gradient, or null
  void *dweight, *dbias;  // [c] of the accumulator type
  void* sums;             // likewise, [2][c][slots]
};
ChannelSlots gradient_slots(const BatchNormReluGrad& p);
const char* batch_norm_relu_backward(const BatchNormReluGrad& p, void* stream);

}  // namespace fastcnn::cuda
