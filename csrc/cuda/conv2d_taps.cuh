// How the implicit matrix products walk through a convolution's sum: tap by tap, within each its channels, a step's
// worth at a time.
#pragma once
#include "cuda/conv2d.cuh"
#include "cuda/device.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {

// Which rows (or columns) that the taps at first, first + step, ... read lie outside of the input: bit i for tap i.
__device__ __forceinline__ uint32_t taps_outside(int first, int step, int taps, int size) {
  uint32_t mask = 0;
  for (int i = 0; i < taps; ++i)
    if (uint32_t(first + i * step) >= uint32_t(size)) mask |= 1u << i;
  return mask;
}

// Bits of a tap: its row's and its column's, and one that is always outside.
constexpr uint32_t kFirstRow = 1, kNowhere = 1u << kMostTaps, kFirstColumn = 1u << (kMostTaps + 1);

// A window: its first element, which may lie outside of x, and its rows and columns that do.
template <class T>
struct Window {
  const T* x;
  uint32_t outside;

  // Of output pixel (n, oh, ow), or of none.
  __device__ __forceinline__ Window(const Conv2d& c, bool exists, int n, int oh, int ow) {
    const int h = oh * c.g.sh - c.g.ph, w = ow * c.g.sw - c.g.pw;
    outside = exists ? kNowhere | taps_outside(h, c.g.dh, c.g.kh, int(c.xm.h)) |
                           taps_outside(w, c.g.dw, c.g.kw, int(c.xm.w)) * kFirstColumn
                     : ~0u;
    x = static_cast<const T*>(c.x) + n * c.xm.sn + h * c.xm.sh + w * c.xm.sw;
  }
  Window() = default;
  __device__ __forceinline__ bool holds(uint32_t tap) const { return (outside & tap) == 0; }
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

// A tap, and channels from `channel` on.
struct TapWalk {
  uint32_t row = kFirstRow, column = kFirstColumn;  // their bits
  int j = 0, channel = 0;

  // The tap's bits; or, of a channel that does not exist, one that no window holds.
  __device__ __forceinline__ uint32_t tap(bool exists) const { return exists ? row | column : kNowhere; }

  // To the next step; x and w: by how much that moves addresses.
  template <int kDepth>
  __device__ __forceinline__ void advance(const TapSteps& by, int channels, int kw, int64_t& x, int64_t& w) {
    channel += kDepth, x = by.x, w = by.w;
    if (channel < channels) return;
    channel = 0, x += by.x_column, w += by.w_tap, column *= 2;
    if (++j == kw) j = 0, column = kFirstColumn, row *= 2, x += by.x_row;
  }
};

}  // namespace fastcnn::cuda
