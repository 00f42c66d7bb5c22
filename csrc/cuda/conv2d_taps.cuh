// How the implicit matrix products walk through a convolution's sum: tap by tap, within each its channels, a step's
// worth at a time.
#pragma once
#include "cuda/conv2d.cuh"
#include "cuda/device.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {

// Which rows (or columns) of the input the taps at first, first + step, ... find: bit i for tap i.
__device__ __forceinline__ uint32_t taps_inside(int first, int step, int taps, int size) {
  uint32_t mask = 0;
  for (int i = 0; i < taps; ++i)
    if (uint32_t(first + i * step) < uint32_t(size)) mask |= 1u << i;
  return mask;
}

// A window: its first element, which may lie outside of x, and the taps that do not.
template <class T>
struct Window {
  const T* x;
  uint32_t inside;  // bit i: row i of taps, bit kMostTaps + j: column j

  // Of output pixel (n, oh, ow), or of none.
  __device__ __forceinline__ Window(const Conv2d& c, bool exists, int n, int oh, int ow) {
    const int h = oh * c.g.sh - c.g.ph, w = ow * c.g.sw - c.g.pw;
    inside = exists ? taps_inside(h, c.g.dh, c.g.kh, int(c.xm.h)) | taps_inside(w, c.g.dw, c.g.kw, int(c.xm.w))
                                                                        << kMostTaps
                    : 0;
    x = static_cast<const T*>(c.x) + n * c.xm.sn + h * c.xm.sh + w * c.xm.sw;
  }
  Window() = default;
  __device__ __forceinline__ bool holds(int i, int j) const { return inside >> i & inside >> (kMostTaps + j) & 1; }
};

// What addresses in x and in the packed weight grow by: from one step of channels to the next; then, beyond the last,
// to the next tap of a row and to the first of the next row.
struct TapSteps {
  int64_t x, x_column, x_row, w, w_tap;

  TapSteps() = default;
  TapSteps(const Conv2d& c, int64_t depth) {
    const int64_t end = (c.g.group_in + depth - 1) / depth * depth, column = c.g.dw * c.xm.sw;
    x = depth * c.xm.sc, x_column = column - end * c.xm.sc, x_row = c.g.dh * c.xm.sh - c.g.kw * column;
    w = depth * c.ws.c, w_tap = (c.g.group_in - end) * c.ws.c;  // taps adjoin
  }
};

// Tap (i, j), channels from `channel` on.
struct TapWalk {
  int i = 0, j = 0, channel = 0;

  // To the next step; x and w: by how much that moves addresses.
  template <int kDepth>
  __device__ __forceinline__ void advance(const TapSteps& by, int channels, int kw, int64_t& x, int64_t& w) {
    channel += kDepth, x = by.x, w = by.w;
    if (channel < channels) return;
    channel = 0, x += by.x_column, w += by.w_tap;
    if (++j == kw) j = 0, ++i, x += by.x_row;
  }
};

}  // namespace fastcnn::cuda
