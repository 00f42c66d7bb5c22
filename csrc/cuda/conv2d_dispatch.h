// Which kernel computes a convolution, and in which tiles: functions of sizes and types alone, so that a call's bits
// depend on nothing else.
#pragma once
#include "cuda/conv2d_first_tile.h"
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, grouped, ffma, mma, first_ffma, first_mma };

// Among the matrix products and the kernel that takes everything.
inline ConvKernel choose_gemm(const ConvGeometry& g, Dtype dtype) {
  if (dtype == Dtype::f64 || g.kh > kMostTaps || g.kw > kMostTaps) return ConvKernel::direct;
  // Copies of 16 bytes; 16-bit tensors in NCHW are copied to NHWC first.
  const bool chunks = g.group_in > 0 && g.group_in % 8 == 0 && g.group_out % 8 == 0;
  if (size_of(dtype) == 2) return chunks ? ConvKernel::mma : ConvKernel::direct;
  // A step takes 8 channels and a block 64 outputs, there or not; the direct kernel does with a quarter of the rate.
  return g.group_in >= 3 && g.group_out >= 16 ? ConvKernel::ffma : ConvKernel::direct;
}

// g: channels per group of the sum's input and output, its taps. h, w: of the output. channels_last: x and y both are.
inline ConvKernel choose_kernel(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last) {
  const bool few = g.group_in == g.group_out && (g.group_in == 1 || g.group_in == 2 || g.group_in == 4);
  const bool chunks = g.groups * g.group_in * size_of(dtype) % 16 == 0;
  if (few && chunks && channels_last && dtype != Dtype::f64 && grouped_tile(g, h, w, dtype).rows > 0)
    return ConvKernel::grouped;
  return choose_gemm(g, dtype);
}

// Of a convolution as it is called; the sums of an input gradient take choose_kernel's.
inline ConvKernel choose_forward(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last) {
  if (is_first_layer(g, dtype, h, w)) return dtype == Dtype::f32 ? ConvKernel::first_ffma : ConvKernel::first_mma;
  return choose_kernel(g, dtype, h, w, channels_last);
}

// Products over pixels have weights, taps and channels alike, for columns.
inline ConvKernel choose_weight_grad(const ConvGeometry& g, Dtype dtype) {
  const bool few = has_few_inputs(g) && g.group_out >= 16;
  if (few && size_of(dtype) == 2 && g.group_out % 8 == 0 && first_weight_grad_bytes(g, dtype) <= kMostSharedBytes)
    return ConvKernel::first_mma;
  if (few && dtype == Dtype::f32 && g.kh * g.kw * g.group_in >= 16) return ConvKernel::ffma;
  return choose_gemm(g, dtype);
}

}  // namespace fastcnn::cuda
