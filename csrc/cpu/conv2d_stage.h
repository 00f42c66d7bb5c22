// Copies the part of a tensor that a block of output pixels reads: padded, channels last, in the accumulator's type or,
// for kernels that multiply them as they are, in the tensor's. One copy serves all taps and output channels, so the
// kernels behind it know no borders, layouts or dtypes.
#pragma once
#include "cpu/vec.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {

struct StageWindow {
  int64_t h0, w0;      // first row and column, possibly outside the tensor
  int64_t rows, cols;  // of the copy
  int64_t zh, zw;      // the tensor stands on every zh-th row and zw-th column
  int64_t c0, c;       // channels
  Padding padding;     // what stands outside the tensor
  int64_t step;        // from pixel to pixel of the copy; zeros behind the channels
};

// The tensor's index of a position, or -1: a zero outside, or between two elements. Other paddings reach less than the
// tensor's size beyond it, and nothing is spread there.
inline int64_t stage_index(int64_t at, int64_t z, int64_t size, Padding padding) {
  switch (padding) {
    case Padding::zeros:
      break;
    case Padding::reflect:
      return at < 0 ? -at : at < size ? at : 2 * (size - 1) - at;
    case Padding::replicate:
      return at < 0 ? 0 : at < size ? at : size - 1;
    case Padding::circular:
      return at < 0 ? at + size : at < size ? at : at - size;
  }
  if (at < 0 || at % z) return -1;
  at /= z;
  return at < size ? at : -1;
}

template <class T>
inline void stage_pixel(const T* x, Acc<T>* out, int64_t c) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= c; i += L) store(out + i, load(x + i));
  for (; i < c; ++i) out[i] = get(x[i]);
}
inline void stage_pixel(const BFloat16* x, BFloat16* out, int64_t c) {
  __builtin_memcpy(out, x, size_t(c) * sizeof(BFloat16));
}

// Eight channels by one vector of columns at a time: out[w][c] = x[c][w].
template <class T, class O>
inline void stage_planes(const T* x, int64_t sc, int64_t n, O* out, int64_t c, int64_t step) {
  int64_t c0 = 0;
  for (; c0 + 8 <= c; c0 += 8)
    for (int64_t w = 0; w < n; ++w)
      for (int k = 0; k < 8; ++k) put(out + w * step + c0 + k, get(x[(c0 + k) * sc + w]));
  for (; c0 < c; ++c0)
    for (int64_t w = 0; w < n; ++w) put(out + w * step + c0, get(x[c0 * sc + w]));
}

// One pixel of a row; at: its index there, or -1.
template <class T, class O>
inline void stage_one(const T* row, const Map& m, int64_t at, int64_t c, O* out) {
  if (at < 0)
    __builtin_memset(out, 0, size_t(c) * sizeof(O));
  else if (m.sc == 1)
    stage_pixel(row + at * m.sw, out, c);
  else
    for (int64_t i = 0; i < c; ++i) put(out + i, get(row[at * m.sw + i * m.sc]));
}

// out[row][col][c] of the window, image n of the tensor.
template <class T, class O>
inline void stage(const T* x, const Map& m, int64_t n, const StageWindow& v, O* out) {
  x += n * m.sn + v.c0 * m.sc;
  for (int64_t r = 0; r < v.rows; ++r, out += v.cols * v.step) {
    const int64_t h = stage_index(v.h0 + r, v.zh, m.h, v.padding);
    if (h < 0 || v.step > v.c) __builtin_memset(out, 0, size_t(v.cols * v.step) * sizeof(O));
    if (h < 0) continue;
    const T* xr = x + h * m.sh;
    if (v.zw == 1) {  // columns [lo, hi) of the copy lie inside the tensor
      const int64_t lo = v.w0 < 0 ? (-v.w0 < v.cols ? -v.w0 : v.cols) : 0;
      const int64_t end = m.w - v.w0;
      const int64_t hi = end < lo ? lo : end < v.cols ? end : v.cols;
      const auto outside = [&](int64_t w) {
        stage_one(xr, m, stage_index(v.w0 + w, 1, m.w, v.padding), v.c, out + w * v.step);
      };
      for (int64_t w = 0; w < lo; ++w) outside(w);
      for (int64_t w = hi; w < v.cols; ++w) outside(w);
      const T* from = xr + (v.w0 + lo) * m.sw;
      if (hi == lo) {
      } else if (m.sc == 1 && m.sw == v.c && v.step == v.c) {
        stage_pixel(from, out + lo * v.c, (hi - lo) * v.c);
      } else if (m.sc == 1) {
        for (int64_t w = lo; w < hi; ++w, from += m.sw) stage_pixel(from, out + w * v.step, v.c);
      } else {
        stage_planes(from, m.sc, hi - lo, out + lo * v.step, v.c, v.step);
      }
    } else {
      for (int64_t w = 0; w < v.cols; ++w)
        stage_one(xr, m, stage_index(v.w0 + w, v.zw, m.w, v.padding), v.c, out + w * v.step);
    }
  }
}

}  // namespace fastcnn::FASTCNN_ISA
