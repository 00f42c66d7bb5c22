// The moments of a block that a convolution has just stored and that is still in L2, for the batch normalization after
// it.
#pragma once
#include "cpu/vec.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {

// Of up to kMomentPixels pixels y[i*step], a vector of channels each: their mean, and the squares' sum around it. Two
// passes: the difference of two sums of squares would lose the digits of a variance that is small beside the mean.
template <class T, class Load>
inline void moments_of(int64_t count, const Load& at, V<Acc<T>>& mean, V<Acc<T>>& squares) {
  using A = Acc<T>;
  V<A> sum{};
  for (int64_t i = 0; i < count; ++i) sum += at(i);
  mean = sum * splat(A(1) / A(count));
  squares = V<A>{};
  for (int64_t i = 0; i < count; ++i) {
    const V<A> d = at(i) - mean;
    squares += d * d;
  }
}

// Rows [oh0, oh1), columns [ow0, ow1) and channels [c0, c1) of image n; ow0 begins a slot, and ow1 ends one or the row.
template <class T>
void moments(const Conv2dParams& p, int64_t n, int64_t oh0, int64_t oh1, int64_t ow0, int64_t ow1, int64_t c0,
             int64_t c1) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const Map& m = p.ym;
  const int64_t slots = (m.w + kMomentPixels - 1) / kMomentPixels;
  for (int64_t oh = oh0; oh < oh1; ++oh)
    for (int64_t ow = ow0; ow < ow1; ow += kMomentPixels) {
      const int64_t count = ow1 - ow < kMomentPixels ? ow1 - ow : kMomentPixels;
      A* mean = static_cast<A*>(p.moments) + ((n * m.h + oh) * slots + ow / kMomentPixels) * 2 * m.c;
      A* squares = mean + m.c;
      const T* y = static_cast<const T*>(p.y) + n * m.sn + oh * m.sh + ow * m.sw;
      for (int64_t c = c0; c < c1; c += L) {
        const int lanes = c1 - c < L ? int(c1 - c) : L;
        V<A> u, v;
        const T* at = y + c * m.sc;
        if (m.sc == 1 && lanes == L)
          moments_of<T>(count, [&](int64_t i) { return load(at + i * m.sw); }, u, v);
        else
          moments_of<T>(
              count,
              [&](int64_t i) {
                V<A> value{};
                for (int k = 0; k < lanes; ++k) value[k] = get(at[k * m.sc + i * m.sw]);
                return value;
              },
              u, v);
        store(mean + c, u, lanes);
        store(squares + c, v, lanes);
      }
    }
}

}  // namespace fastcnn::FASTCNN_ISA
