// Batch normalization, residual and ReLU in one pass over a convolution's output, and their gradients in two.
//   y = act(u + r), u[n,c,h,w] = weight[c] * (z[n,c,h,w] - mean[c]) / sqrt(var[c] + eps) + bias[c]
// With S = sum of g and Q = sum of g * (z - mean) over a channel's N values, g the gradient behind act:
//   dbias = S, dweight = Q * invstd, dz = weight * invstd * (g - S/N - (z - mean) * invstd^2 * Q/N)
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

// Pixels of a channels_last tensor whose sums are taken together; a fixed cut, whatever the number of threads.
constexpr int64_t kNormPixels = 256;
// Pixels that a pass without sums takes at the least; a deep layer's maps have few, and many channels.
constexpr int64_t kPassPixels = 16;

struct BatchNormReluParams {
  const void *z, *residual;  // residual: as z, or null
  const void* grad;          // backward only
  const void* y;             // backward: the output, where its sign says what ReLU let through; null: recomputed from z
  void *out, *masked;        // out: y, or dz; masked: the residual's gradient, or null
  const void *scale, *shift;                     // accumulator type, per channel: u = z * scale + shift
  const void *mean, *of_grad, *of_z, *constant;  // dz = g * of_grad + z * of_z + constant
  void* sums;                                    // [unit][2][channels] (channels_last), else [plane][2]: S and Q
  int64_t channels, pixels;                      // pixels: of all images (channels_last), else of a plane
  Dtype dtype;
  bool channels_last, relu;
};

FASTCNN_DECLARE_KERNEL(
    // Units [begin, end): blocks of kPassPixels pixels, of kNormPixels for the sums (channels_last), else planes.
    void batch_norm_relu(const BatchNormReluParams& p, int64_t begin, int64_t end);
    void batch_norm_relu_sums(const BatchNormReluParams& p, int64_t begin, int64_t end);
    void batch_norm_relu_backward(const BatchNormReluParams& p, int64_t begin, int64_t end))

}  // namespace fastcnn
