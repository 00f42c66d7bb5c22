// Max pooling's windows on the device: what its own kernels share with those that fuse it.
#pragma once
#include "cuda/device.cuh"
#include "cuda/divisor.h"
#include "cuda/tiles.h"
#include "cuda/windows.cuh"
#include "ops/max_pool2d.h"

namespace fastcnn::cuda {

// MaxPool2dParams as the kernels use them: offsets need 64 bits, positions of one axis do not.
struct MaxPool2dGeometry {
  const void* x;
  void* y;
  void* argmax;
  int h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;
  Divisor by_sh, by_sw;
};

// Null, or why the kernels cannot do it.
inline const char* to_device(const MaxPool2dParams& p, MaxPool2dGeometry& g) {
  if (p.h + p.ph + p.kh * p.dh > kMostBlocks || p.w + p.pw + p.kw * p.dw > kMostBlocks)
    return "an axis exceeds 2^31 positions";
  g = {p.x,       p.y,       p.argmax,  int(p.h),  int(p.w),  int(p.oh), int(p.ow),     int(p.kh),    int(p.kw),
       int(p.sh), int(p.sw), int(p.ph), int(p.pw), int(p.dh), int(p.dw), Divisor(p.sh), Divisor(p.sw)};
  return nullptr;
}

// f with the element type and the argmax's.
template <class F>
const char* with_types(const MaxPool2dParams& p, const F& f) {
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) { error = p.wide_argmax ? f(element, int32_t{}) : f(element, uint8_t{}); });
  return error;
}

// The largest value so far, and at which of the window's positions: the first of equal ones, the last NaN.
template <class A>
struct Maximum {
  A best = -A(INFINITY);
  int where = -1;

  __device__ void take(A a, int position) {
    if (where < 0 || a > best || a != a) best = a, where = position;
  }
  // A window without a position names its start, which is outside, too.
  __device__ int argmax() const { return where < 0 ? 0 : where; }
};

// f(h, w, position) for the window's positions that x has, in raster order. K: the window's height and width where the
// compiler should know them, so that all its loads are under way at once; else 0. kInside: x has all of them.
template <int K, bool kInside = false, class F>
__device__ __forceinline__ void for_each_position(const MaxPool2dGeometry& p, int oh, int ow, const F& f) {
  const int kh = K ? K : p.kh, kw = K ? K : p.kw, h0 = oh * p.sh - p.ph, w0 = ow * p.sw - p.pw;
#pragma unroll(K ? K : 1)
  for (int i = 0; i < kh; ++i) {
    const int h = h0 + i * p.dh;
    if (!kInside && (h < 0 || h >= p.h)) continue;
#pragma unroll(K ? K : 1)
    for (int j = 0; j < kw; ++j) {
      const int w = w0 + j * p.dw;
      if (kInside || (w >= 0 && w < p.w)) f(h, w, i * kw + j);
    }
  }
}

// V channels of a window's argmax, and of its gradient.
template <class T, class Index, int V>
struct Peak {
  Vec<Index, V> argmax;
  Vec<T, V> g;
};

// That at an offset in p.argmax and p.x.
template <class T, class Index, int V>
__device__ inline Peak<T, Index, V> load_peak(const MaxPool2dGeometry& p, int64_t offset) {
  return {load(reinterpret_cast<const Vec<Index, V>*>(static_cast<const Index*>(p.argmax) + offset)),
          load(reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(p.x) + offset))};
}

// sum[v] = the gradients, in raster order, of the windows that have their maximum at (h, w). peak(oh, ow) reads one.
// kDilated: false where the compiler should know that positions of a window are neighbours.
template <class T, class Index, bool kDilated = true, int V, class Read>
__device__ inline void sum_of_windows(const MaxPool2dGeometry& p, int h, int w, const Read& peak, Acc<T> (&sum)[V]) {
  int top, bottom, left, right;
  covering(h, p.oh, (p.kh - 1) * p.dh + 1, p.by_sh, p.ph, top, bottom);
  covering(w, p.ow, (p.kw - 1) * p.dw + 1, p.by_sw, p.pw, left, right);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = 0;
  for (int oh = top; oh < bottom; ++oh) {
    const int down = h + p.ph - oh * p.sh;
    if (kDilated && p.dh > 1 && down % p.dh) continue;
    for (int ow = left; ow < right; ++ow) {
      const int across = w + p.pw - ow * p.sw;
      if (kDilated && p.dw > 1 && across % p.dw) continue;
      const int mine =
          (kDilated && p.dh > 1 ? down / p.dh : down) * p.kw + (kDilated && p.dw > 1 ? across / p.dw : across);
      const Peak<T, Index, V> of = peak(oh, ow);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += int(of.argmax.v[v]) == mine ? to_acc(of.g.v[v]) : Acc<T>(0);
    }
  }
}

}  // namespace fastcnn::cuda
