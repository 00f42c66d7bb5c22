#include "ops/batch_norm_relu.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// f(offset, channel, lanes) for the vectors of a unit; per-channel values of a vector: at(array, channel, lanes).
// channels_last: pixels of all channels, a vector holds neighbouring channels; else a plane of one channel.
template <class T, class F>
inline __attribute__((always_inline)) void each_vector_of(const BatchNormReluParams& p, int64_t unit, const F& f) {
  constexpr int L = kLanes<T>;
  if (p.channels_last) {
    const int64_t last = (unit + 1) * kPassPixels < p.pixels ? (unit + 1) * kPassPixels : p.pixels;
    for (int64_t i = unit * kPassPixels; i < last; ++i) {
      int64_t c = 0;
      for (; c + L <= p.channels; c += L) f(i * p.channels + c, c, L);
      if (c < p.channels) f(i * p.channels + c, c, int(p.channels - c));
    }
  } else {
    const int64_t c = unit % p.channels, at = unit * p.pixels;
    int64_t i = 0;
    for (; i + L <= p.pixels; i += L) f(at + i, c, L);
    if (i < p.pixels) f(at + i, c, int(p.pixels - i));
  }
}

template <class A>
inline V<A> of_channel(const BatchNormReluParams& p, const void* values, int64_t c, int lanes) {
  const A* at = static_cast<const A*>(values) + c;
  return p.channels_last ? load_part(at, lanes) : splat(*at);
}

// z * scale + shift, rounded once where the CPU can. Written out: left to the compiler, the forward pass may round the
// product and backward not, and then a gradient passes a ReLU that was closed.
template <class A>
inline V<A> normalized(V<A> z, V<A> scale, V<A> shift) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (V<A>)_mm512_fmadd_ps((__m512)z, (__m512)scale, (__m512)shift);
  else
    return (V<A>)_mm512_fmadd_pd((__m512d)z, (__m512d)scale, (__m512d)shift);
#elif defined(__FMA__)
  if constexpr (sizeof(A) == 4)
    return (V<A>)_mm256_fmadd_ps((__m256)z, (__m256)scale, (__m256)shift);
  else
    return (V<A>)_mm256_fmadd_pd((__m256d)z, (__m256d)scale, (__m256d)shift);
#else
  return z * scale + shift;
#endif
}

// The gradient behind the activation: zero where ReLU let nothing through.
template <class T>
inline V<Acc<T>> through(const BatchNormReluParams& p, int64_t at, int64_t c, int lanes, V<Acc<T>> z) {
  using A = Acc<T>;
  const V<A> g = load_part(static_cast<const T*>(p.grad) + at, lanes);
  if (!p.relu) return g;
  const V<A> y = p.y ? load_part(static_cast<const T*>(p.y) + at, lanes)
                     : normalized<A>(z, of_channel<A>(p, p.scale, c, lanes), of_channel<A>(p, p.shift, c, lanes));
  return y <= 0 ? V<A>{} : g;
}

template <class T>
void forward(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const T *z = static_cast<const T*>(p.z), *residual = static_cast<const T*>(p.residual);
  T* y = static_cast<T*>(p.out);
  for (int64_t unit = begin; unit < end; ++unit)
    each_vector_of<T>(p, unit, [&](int64_t at, int64_t c, int lanes) {
      V<A> u = normalized<A>(load_part(z + at, lanes), of_channel<A>(p, p.scale, c, lanes),
                             of_channel<A>(p, p.shift, c, lanes));
      if (residual) u += load_part(residual + at, lanes);
      if (p.relu) u = u < 0 ? V<A>{} : u;  // a NaN stays
      store_part(y + at, u, lanes);
    });
}

template <class T>
void sums(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const T* z = static_cast<const T*>(p.z);
  const auto add = [&](int64_t at, int64_t c, int lanes, V<A> mean, V<A>& s, V<A>& q) {
    const V<A> value = load_part(z + at, lanes), g = through<T>(p, at, c, lanes, value);
    s += g;
    q += g * (value - mean);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    if (!p.channels_last) {
      const int64_t c = unit % p.channels;
      const V<A> mean = of_channel<A>(p, p.mean, c, L);
      V<A> s{}, q{};
      int64_t i = 0;
      for (; i + L <= p.pixels; i += L) add(unit * p.pixels + i, c, L, mean, s, q);
      if (i < p.pixels) add(unit * p.pixels + i, c, int(p.pixels - i), mean, s, q);
      A* out = static_cast<A*>(p.sums) + unit * 2;
      out[0] = out[1] = 0;
      for (int k = 0; k < L; ++k) out[0] += s[k], out[1] += q[k];
      continue;
    }
    const int64_t first = unit * kNormPixels, last = first + kNormPixels < p.pixels ? first + kNormPixels : p.pixels;
    A* out = static_cast<A*>(p.sums) + unit * 2 * p.channels;
    // Four vectors of channels at a time: whole cache lines of every dtype, and their sums stay in registers.
    constexpr int kVectors = 4;
    for (int64_t c0 = 0; c0 < p.channels; c0 += kVectors * L) {
      const int64_t left = p.channels - c0;
      V<A> mean[kVectors], s[kVectors], q[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int lanes = left - v * L < L ? int(left - v * L) : L;
        mean[v] = lanes > 0 ? of_channel<A>(p, p.mean, c0 + v * L, lanes) : V<A>{};
        s[v] = q[v] = V<A>{};
      }
      for (int64_t i = first; i < last; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t c = c0 + v * L;
          if (left >= kVectors * L)
            add(i * p.channels + c, c, L, mean[v], s[v], q[v]);
          else if (c < p.channels)
            add(i * p.channels + c, c, p.channels - c < L ? int(p.channels - c) : L, mean[v], s[v], q[v]);
        }
      for (int v = 0; v < kVectors && v * L < left; ++v) {
        const int lanes = left - v * L < L ? int(left - v * L) : L;
        store_part(out + c0 + v * L, s[v], lanes);
        store_part(out + p.channels + c0 + v * L, q[v], lanes);
      }
    }
  }
}

template <class T>
void backward(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const T* z = static_cast<const T*>(p.z);
  for (int64_t unit = begin; unit < end; ++unit)
    each_vector_of<T>(p, unit, [&](int64_t at, int64_t c, int lanes) {
      const V<A> value = load_part(z + at, lanes), g = through<T>(p, at, c, lanes, value);
      store_part(static_cast<T*>(p.out) + at,
                 g * of_channel<A>(p, p.of_grad, c, lanes) + value * of_channel<A>(p, p.of_z, c, lanes) +
                     of_channel<A>(p, p.constant, c, lanes),
                 lanes);
      if (p.masked) store_part(static_cast<T*>(p.masked) + at, g, lanes);
    });
}

}  // namespace

void batch_norm_relu(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { forward<decltype(t)>(p, begin, end); });
}
void batch_norm_relu_sums(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { sums<decltype(t)>(p, begin, end); });
}
void batch_norm_relu_backward(const BatchNormReluParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { backward<decltype(t)>(p, begin, end); });
}

}  // namespace fastcnn::FASTCNN_ISA
