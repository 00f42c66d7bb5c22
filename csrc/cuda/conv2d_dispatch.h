// Which kernel computes a convolution, and in which tiles: functions of sizes and types alone, so that a call's bits
// depend on nothing else.
#pragma once
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, ffma, mma };

// g: channels per group of the sum's input and output, its taps.
inline ConvKernel choose_kernel(const ConvGeometry& g, Dtype dtype) {
  if (g.kh > kMostTaps || g.kw > kMostTaps) return ConvKernel::direct;
  // Copies of 16 bytes; 16-bit tensors in NCHW are copied to NHWC first.
  const bool chunks = g.group_in > 0 && g.group_in % 8 == 0 && g.group_out % 8 == 0;
  if (size_of(dtype) == 2) return chunks ? ConvKernel::mma : ConvKernel::direct;
  // A step takes 8 channels and a block 64 outputs, there or not; the direct kernel does with a quarter of the rate.
  const bool full = g.group_in >= 3 && g.group_out >= 16;
  return dtype == Dtype::f32 && full ? ConvKernel::ffma : ConvKernel::direct;
}

}  // namespace fastcnn::cuda
