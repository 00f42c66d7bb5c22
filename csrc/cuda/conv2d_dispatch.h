// Which kernel computes a convolution, and in which tiles: functions of sizes and types alone, so that a call's bits
// depend on nothing else.
#pragma once
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, grouped, ffma, mma };

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

// The same for the input gradient of a convolution: g has its strides and dilations, but swapped channels.
inline ConvKernel choose_adjoint_kernel(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last) {
  const bool strided = g.sh > 1 || g.sw > 1, dilated = g.dh > 1 || g.dw > 1;
  return strided && dilated ? ConvKernel::direct : choose_kernel(g, dtype, h, w, channels_last);
}

// NCHW tensors are copied for these.
inline bool reads_nhwc(ConvKernel kernel) { return kernel == ConvKernel::mma || kernel == ConvKernel::grouped; }

}  // namespace fastcnn::cuda
