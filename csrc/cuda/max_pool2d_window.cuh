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

// sum[v] = the gradients, in raster order, of the windows that have their maximum at (h, w). at(oh, ow) is the offset
// of V channels in g and argmax.
template <class T, class Index, int V, class At>
__device__ inline void sum_of_windows(const MaxPool2dGeometry& p, int h, int w, const At& at, Acc<T> (&sum)[V]) {
  const T* g = static_cast<const T*>(p.x);
  const Index* argmax = static_cast<const Index*>(p.argmax);
  int top, bottom, left, right;
  covering(h, p.oh, (p.kh - 1) * p.dh + 1, p.by_sh, p.ph, top, bottom);
  covering(w, p.ow, (p.kw - 1) * p.dw + 1, p.by_sw, p.pw, left, right);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = 0;
  for (int oh = top; oh < bottom; ++oh) {
    const int down = h + p.ph - oh * p.sh;
    if (p.dh > 1 && down % p.dh) continue;
    for (int ow = left; ow < right; ++ow) {
      const int across = w + p.pw - ow * p.sw;
      if (p.dw > 1 && across % p.dw) continue;
      const int64_t o = at(oh, ow);
      const int mine = (p.dh > 1 ? down / p.dh : down) * p.kw + (p.dw > 1 ? across / p.dw : across);
      const Vec<Index, V> peak = load(reinterpret_cast<const Vec<Index, V>*>(argmax + o));
      const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(g + o));
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += int(peak.v[v]) == mine ? to_acc(in.v[v]) : Acc<T>(0);
    }
  }
}

}  // namespace fastcnn::cuda
