// Pooling windows along one axis, as the kernels see them, and the scratch rows of the NCHW kernels.
#pragma once
#include <cstdint>

namespace fastcnn {

// Positions first, first + dilation, ... below end. begin is where the window starts, cut to the input: with dilation,
// first may lie behind it, and only begin and end grow from window to window.
struct Window {
  int64_t begin, end, first;
};

constexpr int64_t kMostLanes = 16;  // of any ISA and accumulator

// A padded NCHW row of s*ld elements, split into s phases of ld: phase f holds row[t*s+f] at t. Then outputs q, q+1,
// ... read tap j at consecutive addresses: row[q*s + j*d] is phase (j*d)%s at q + (j*d)/s.
struct PhasedRow {
  int64_t s, d, ld;

  // in, out: widths of the input and the output row; p: the padding in front of the input row
  PhasedRow(int64_t in, int64_t out, int64_t k, int64_t stride, int64_t p, int64_t dilation)
      : s(out == 1 ? 1 : stride), d(dilation) {
    const int64_t taps = out + (k - 1) * d / s, input = (in + p + s - 1) / s;
    ld = ((taps > input ? taps : input) / kMostLanes + 2) * kMostLanes;  // whole vectors may reach behind the end
  }
  int64_t size() const { return s * ld; }
  int64_t tap(int64_t j) const { return j * d % s * ld + j * d / s; }
};

}  // namespace fastcnn
