// The last step of every convolution kernel: bias, residual and ReLU on a tile of accumulators, then the store.
#pragma once
#include "cpu/conv2d_tile.h"
#include "cpu/vec.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {

// Whether the sums can go from registers straight to y.
template <class T>
inline bool whole_vectors(const Conv2dParams& p) {
  return sizeof(T) == sizeof(Acc<T>) && p.ym.sc == 1 && (!p.residual || p.rm.sc == 1);
}

// y from output channel oc of pixel (oh, ow) of image n on, where whole_vectors() holds.
template <class T>
inline Out<Acc<T>> out_of(const Conv2dParams& p, const Acc<T>* bias, int64_t n, int64_t oc, int64_t oh, int64_t ow) {
  using A = Acc<T>;
  const auto at = [&](auto* base, const Map& m) {
    return base ? base + n * m.sn + oc + oh * m.sh + ow * m.sw : nullptr;
  };
  return {at(static_cast<A*>(p.y), p.ym), p.ym.sw, bias, at(static_cast<const A*>(p.residual), p.rm), p.rm.sw, p.relu};
}

// One vector of channels of y, of which `lanes` exist, pixel after pixel; r: of the residual, or null. Not inlined:
// among its callers' many values the constants of a conversion would be made anew for each pixel.
template <class T>
[[gnu::noinline]] void finish_vector(const Acc<T>* tile, int64_t pitch, int pixels, int lanes, V<Acc<T>> bias,
                                     const T* r, int64_t r_step, bool relu, T* y, int64_t y_step) {
  using A = Acc<T>;
  for (int t = 0; t < pixels; ++t, tile += pitch, y += y_step) {
    V<A> v = load(tile) + bias;
    if (r) v += load_part(r + t * r_step, lanes);
    if (relu) v = v < 0 ? V<A>{} : v;  // not `v > 0 ? v : 0`: a NaN stays
    store_part(y, v, lanes);
  }
}

// tile[pixel][pitch], `width` of them output channels oc, oc+1, ... of image n; pixels (oh, ow), (oh, ow+1), ...
// bias: of channel oc, readable to the end of the last vector; or null.
template <class T>
inline void epilogue(const Conv2dParams& p, const Acc<T>* tile, int64_t pitch, int pixels, int64_t width,
                     const Acc<T>* bias, int64_t n, int64_t oc, int64_t oh, int64_t ow) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  T* y = static_cast<T*>(p.y) + n * p.ym.sn + oc * p.ym.sc + oh * p.ym.sh + ow * p.ym.sw;
  const T* r = p.residual ? static_cast<const T*>(p.residual) + n * p.rm.sn + oc * p.rm.sc + oh * p.rm.sh + ow * p.rm.sw
                          : nullptr;
  if (p.ym.sc == 1 && (!r || p.rm.sc == 1)) {
    for (int64_t c = 0; c < width; c += L)
      finish_vector(tile + c, pitch, pixels, width - c < L ? int(width - c) : L, bias ? load(bias + c) : V<A>{},
                    r ? r + c : r, p.rm.sw, p.relu, y + c, p.ym.sw);
    return;
  }
  for (int64_t c = 0; c < width; ++c)
    for (int t = 0; t < pixels; ++t) {
      A v = tile[t * pitch + c] + (bias ? bias[c] : A{});
      if (r) v += get(r[c * p.rm.sc + t * p.rm.sw]);
      if (p.relu && v < 0) v = 0;
      put(y + c * p.ym.sc + t * p.ym.sw, v);
    }
}

}  // namespace fastcnn::FASTCNN_ISA
