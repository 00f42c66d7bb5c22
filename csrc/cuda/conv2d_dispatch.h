// Which kernel computes a convolution, and in which tiles: functions of sizes and types alone, so that a call's bits
// depend on nothing else.
#pragma once
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, mma };

// g: channels per group of the sum's input and output, its taps.
inline ConvKernel choose_kernel(const ConvGeometry& g, Dtype dtype) {
  // Copies of 16 bytes and one bit a tap; 16-bit tensors in NCHW are copied to NHWC first.
  const bool chunks = g.group_in > 0 && g.group_in % 8 == 0 && g.group_out % 8 == 0;
  return size_of(dtype) == 2 && chunks && g.kh <= 32 && g.kw <= 32 ? ConvKernel::mma : ConvKernel::direct;
}

}  // namespace fastcnn::cuda
