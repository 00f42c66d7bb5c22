// The halo tile in planes of 8 channels: how it is filled, and where a tap finds its inputs.
#pragma once
#include "cuda/conv2d_halo.cuh"
#include "cuda/conv2d_plane_tile.h"

namespace fastcnn::cuda {

constexpr int kPlaneWarps = kPlaneThreads / kWarp;

// The thread's chunk of the tile whose first row and column of x are h0 and w0; zeros for what lies outside. to: its
// plane; x: its channels of the image.
template <class T>
__device__ __forceinline__ void copy_to_plane(Vec<T, 8>* to, const T* x, bool exists, const Map& m, const PlaneTile& t,
                                              TileWalk at, int h0, int w0, const Divisor& by_sw) {
  for (; at.row < t.height; at.advance(t.width)) {
    const int h = h0 + at.row, w = w0 + at.column;
    const bool valid = exists && uint32_t(h) < uint32_t(m.h) && uint32_t(w) < uint32_t(m.w);
    uint32_t phase;
    const int column = int(by_sw.divide(at.column, phase));
    cp_async<16>(to + at.row * t.row + int(phase) * t.phase + column, valid ? x + h * m.sh + w * m.sw : x, valid);
  }
}

// From where an output's window starts to what a unit multiplies: its tap's input in the plane of its channels. kOut:
// planes of a group.
template <int kOut>
__device__ __forceinline__ int unit_offset(const ConvGeometry& g, const PlaneTile& t, int unit, const Divisor& by_kw,
                                           const Divisor& by_sw) {
  uint32_t j, phase;
  const int i = int(by_kw.divide(unit / kOut, j)), column = int(by_sw.divide(int(j) * g.dw, phase));
  return unit % kOut * t.plane + i * g.dh * t.row + int(phase) * t.phase + column;
}

}  // namespace fastcnn::cuda
