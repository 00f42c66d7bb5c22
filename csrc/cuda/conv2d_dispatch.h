// Which kernel computes a convolution, and in which tiles: functions of sizes and types alone, so that a call's bits
// depend on nothing else.
#pragma once
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/conv2d_plane_tile.h"
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, grouped, grouped_mma, ffma, mma };

// Among the matrix products and the kernel that takes everything.
inline ConvKernel choose_gemm(const ConvGeometry& g, Dtype dtype) {
  if (dtype == Dtype::f64 || g.kh > kMostTaps || g.kw > kMostTaps) return ConvKernel::direct;
  // Copies of 16 bytes; 16-bit tensors in NCHW are copied to NHWC first.
  const bool chunks = g.group_in > 0 && g.group_in % 8 == 0 && g.group_out % 8 == 0;
  if (size_of(dtype) == 2) return chunks ? ConvKernel::mma : ConvKernel::direct;
  // A step takes 8 channels and a block 64 outputs, there or not; the direct kernel does with a quarter of the rate.
  return g.group_in >= 3 && g.group_out >= 16 ? ConvKernel::ffma : ConvKernel::direct;
}

// What halo tiles take. Of 8 or 16 channels per group in either layout, since copies to NHWC cost less than what other
// kernels waste on such groups; so do weight gradients.
inline bool in_planes(const ConvGeometry& g, Dtype dtype) {
  return size_of(dtype) == 2 && g.groups > 1 && g.group_in == g.group_out && (g.group_in == 8 || g.group_in == 16);
}
inline bool in_chunks(const ConvGeometry& g, Dtype dtype) {
  return few_channels(g, dtype) && g.groups * g.group_in * size_of(dtype) % 16 == 0;
}

// g: channels per group of the sum's input and output, its taps. h, w: of the output. channels_last: x and y both are.
inline ConvKernel choose_kernel(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last) {
  if (in_planes(g, dtype) && plane_tile(g, h, w).rows > 0) return ConvKernel::grouped_mma;
  if (in_chunks(g, dtype) && (channels_last || g.group_in > 4) && grouped_tile(g, h, w, dtype).rows > 0)
    return ConvKernel::grouped;
  return choose_gemm(g, dtype);
}

// Of the weight gradient, in either layout; h, w: of grad.
inline ConvKernel choose_weight_grad(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w) {
  if (in_planes(g, dtype) && plane_grad_tile(g, h, w).rows > 0) return ConvKernel::grouped_mma;
  if (in_chunks(g, dtype) && grouped_grad_tile(g, h, w, dtype).rows > 0) return ConvKernel::grouped;
  return choose_gemm(g, dtype);
}

}  // namespace fastcnn::cuda
