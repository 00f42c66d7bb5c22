#include "ops/local_response_norm.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

enum class Power { three_quarters, half, one, any };

// In double also for floats: beta, rounded to float, would be multiplied by log(s). The root differs from pow at
// -infinity, where torch's pow takes the root too.
double power(double s, double beta) { return beta == 0.5 ? __builtin_sqrt(s) : __builtin_pow(s, beta); }

#if defined(__AVX512F__)
// The unmasked form passes through GCC 12 an uninitialized vector, with a warning.
VF rsqrt_seed(VF s) { return (VF)_mm512_maskz_rsqrt14_ps(__mmask16(-1), (__m512)s); }
bool all_normal(VF s) { return !_mm512_fpclass_ps_mask((__m512)s, 0xff); }  // every class but "positive normal"
#else
#if defined(__AVX2__)
VF rsqrt_seed(VF s) { return (VF)_mm256_rsqrt_ps((__m256)s); }
#elif defined(__SSE__)
VF rsqrt_seed(VF s) { return (VF)_mm_rsqrt_ps((__m128)s); }
#else
VF rsqrt_seed(VF s) {
  for (int i = 0; i < kLanes<float>; ++i) s[i] = 1 / __builtin_sqrtf(s[i]);
  return s;
}
#endif
bool all_normal(VF s) {
  const auto special = (s >= 1.17549435e-38f && s <= 3.40282347e38f) == 0;
  int any = 0;
  for (int i = 0; i < kLanes<float>; ++i) any |= special[i];
  return !any;
}
#endif

// s^-3/4 or s^-1/2 of positive normal s within 2.5 units of 2^-24: a seed of at least 11 bits (its relative error d
// makes e about 4d < 2^-8), then one step of third order, (1-e)^-1/4 = 1 + e/4 + 5/32 e^2 + O(e^3). The products are
// taken in an order in which none leaves the range of normal numbers for any s.
template <Power P>
VF inverse_power(VF s) {
  const VF r = rsqrt_seed(s);
  if constexpr (P == Power::half) {
    const VF e = 1 - (r * s) * r;
    return r + r * e * (0.5f + 0.375f * e);
  }
  const VF w = r * r * rsqrt_seed(r);
  const VF root = w * s * w;  // s^-1/2
  const VF e = 1 - (root * s) * root;
  return w + w * e * (0.25f + 0.15625f * e);
}

// v / s^beta.
template <Power P, class A>
V<A> over(V<A> v, V<A> s, double beta) {
  if constexpr (P == Power::one) return v / s;
  if constexpr (P == Power::any || sizeof(A) == 8) {
    for (int i = 0; i < Vec<A>::lanes; ++i) s[i] = A(power(s[i], beta));
    return v / s;
  } else {
    V<A> y = v * inverse_power<P>(s);
    if (__builtin_expect(!all_normal(s), 0))  // zero, subnormal, negative, infinite, NaN: as pow has them
      for (int i = 0; i < Vec<A>::lanes; ++i)
        if (!(s[i] >= 1.17549435e-38f && s[i] <= 3.40282347e38f)) y[i] = v[i] / A(power(s[i], beta));
    return y;
  }
}

// Sum of count vectors, `step` elements apart; always in this order.
template <class A>
V<A> sum(const A* q, int64_t count, int64_t step) {
  if (count == 5) return ((load(q) + load(q + step)) + (load(q + 2 * step) + load(q + 3 * step))) + load(q + 4 * step);
  V<A> s = load(q);
  for (int64_t j = 1; j < count; ++j) s += load(q + j * step);
  return s;
}

// f(i, lanes) for vectors that cover [0, n): the last one overlaps its neighbour, and is partial only where n is less
// than a vector. Every element is a function of the inputs alone, so that writing one twice writes the same value.
template <class A, class F>
void cover(int64_t n, const F& f) {
  constexpr int lanes = Vec<A>::lanes;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, lanes);
  if (i == n) return;
  n >= lanes ? f(n - lanes, lanes) : f(0, int(n));
}

template <class T, Power P>
struct Kernel {
  using A = Acc<T>;
  static constexpr int lanes = kLanes<T>;
  const LocalResponseNormParams& p;
  const T* x = static_cast<const T*>(p.x);
  const T* g = static_cast<const T*>(p.g);
  T* out = static_cast<T*>(p.out);
  const A alpha = A(p.alpha), k = A(p.k), minus_2ab = A(-2 * p.alpha * p.beta);
  // ReLU without a branch, a NaN stays: x below `floor` is raised to it, dx is 0 where x <= `gate`.
  const A floor = p.relu ? A(0) : -A(__builtin_inf()), gate = p.relu ? A(0) : A(__builtin_nan(""));
  const int64_t count = p.before + p.after + 1;

  static V<A> get(const T* q, int n) { return n == lanes ? load(q) : load(q, n); }
  static void set(T* q, V<A> v, int n) { n == lanes ? store(q, v) : store(q, v, n); }
  V<A> input(int64_t at, int n) const {
    const V<A> v = get(x + at, n);
    return v < floor ? splat(floor) : v;
  }
  void put_gradient(int64_t at, V<A> dx, int n) const { set(out + at, get(x + at, n) <= gate ? V<A>{} : dx, n); }

  // inner == 1. Squares of `length` rows go to zero-padded rows [before | channels | after] first: a window is then
  // `count` shifted loads, long enough after the stores to find them in the cache (a load that spans two stores in
  // flight would wait).
  void rows(int64_t begin, int64_t end, A* scratch) const {
    const int64_t c = p.channels, pitch = c + count - 1;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t first = u * p.length, n = p.outer - first < p.length ? p.outer - first : p.length;
      square_rows(first, n, scratch, pitch);
      for (int64_t r = 0; r < n; ++r)
        cover<A>(c, [&](int64_t i, int m) {
          __builtin_prefetch(out + (first + p.length + r) * c + i, 1);
          __builtin_prefetch(x + (first + p.length + r) * c + i);  // the next unit's, and where its output goes
          const V<A> s = k + alpha * sum(scratch + r * pitch + i, count, 1);
          set(out + (first + r) * c + i, over<P, A>(input((first + r) * c + i, m), s, p.beta), m);
        });
    }
  }

  void square_rows(int64_t first, int64_t n, A* squares, int64_t pitch) const {
    for (int64_t r = 0; r < n; ++r)
      cover<A>(p.channels, [&](int64_t i, int m) {
        const V<A> v = input((first + r) * p.channels + i, m);
        A* q = squares + r * pitch + p.before + i;
        m == lanes ? store(q, v * v) : store(q, v * v, m);
      });
  }

  // Scratch: squares as above, g/s^beta, and g*x/s^(beta+1) in rows [after | channels | before].
  void rows_backward(int64_t begin, int64_t end, A* squares) const {
    const int64_t c = p.channels, pitch = c + count - 1;
    A* scaled = squares + p.length * pitch + lanes;
    A* terms = scaled + p.length * pitch + lanes;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t first = u * p.length, n = p.outer - first < p.length ? p.outer - first : p.length;
      square_rows(first, n, squares, pitch);
      for (int64_t r = 0; r < n; ++r)
        cover<A>(c, [&](int64_t i, int m) {
          const int64_t at = (first + r) * c + i;
          const V<A> s = k + alpha * sum(squares + r * pitch + i, count, 1);
          const V<A> v = over<P, A>(get(g + at, m), s, p.beta), t = v * input(at, m) / s;
          A *a = scaled + r * pitch + i, *b = terms + r * pitch + p.after + i;
          m == lanes ? (store(a, v), store(b, t)) : (store(a, v, m), store(b, t, m));
        });
      for (int64_t r = 0; r < n; ++r)
        cover<A>(c, [&](int64_t i, int m) {
          const int64_t at = (first + r) * c + i;
          __builtin_prefetch(x + at + p.length * c), __builtin_prefetch(g + at + p.length * c);
          __builtin_prefetch(out + at + p.length * c, 1);
          const V<A> sums = sum(terms + r * pitch + i, count, 1);
          put_gradient(at, load(scaled + r * pitch + i) + minus_2ab * input(at, m) * sums, m);
        });
    }
  }

  // inner > 1. A strip of pixels goes through all channels; the window's rows of x stay in the first-level cache.
  struct Strip {
    int64_t at, pixels;  // offset in x of the first pixel of channel 0
  };
  Strip strip(int64_t unit) const {
    const int64_t per_plane = p.inner / p.length > 0 ? p.inner / p.length : 1;  // the last strip takes the remainder
    const int64_t o = unit / per_plane, i = unit % per_plane;
    return {o * p.channels * p.inner + i * p.length, i + 1 < per_plane ? p.length : p.inner - i * p.length};
  }

  V<A> base(int64_t at, int64_t c, int n) const {  // s of channel c, at the offset `at` of channel 0
    const int64_t lo = c > p.before ? c - p.before : 0, hi = c + p.after < p.channels ? c + p.after : p.channels - 1;
    V<A> s{};
    const auto add = [&](int64_t j) {
      const V<A> v = input(at + j * p.inner, n);
      s += v * v;
    };
    if (hi - lo == 4) {
      for (int j = 0; j < 5; ++j) add(lo + j);
    } else {
      for (int64_t j = lo; j <= hi; ++j) add(j);
    }
    return k + alpha * s;
  }

  void planes(int64_t begin, int64_t end) const {
    for (int64_t u = begin; u < end; ++u) {
      const Strip s = strip(u);
      for (int64_t c = p.first; c < p.last; ++c)
        cover<A>(s.pixels, [&](int64_t i, int n) {
          const int64_t at = s.at + i + c * p.inner;
          __builtin_prefetch(x + at + (p.after + 2) * p.inner);  // the hardware's prefetcher stops at the strip's end
          set(out + (at - p.out_shift), over<P, A>(input(at, n), base(s.at + i, c, n), p.beta), n);
        });
    }
  }

  // Scratch: the last `count` channels' g/s^beta and g*x/s^(beta+1), as rings; channels outside the tensor are zeros.
  void planes_backward(int64_t begin, int64_t end, A* scaled) const {
    const int64_t pitch = 2 * p.length + lanes;
    A* terms = scaled + count * pitch;
    for (int64_t u = begin; u < end; ++u) {
      const Strip s = strip(u);
      for (int64_t i = 0; i < count * pitch; ++i) terms[i] = 0;
      for (int64_t ahead = p.first > p.after ? p.first - p.after : 0; ahead < p.last + p.before; ++ahead) {
        const int64_t c = ahead - p.before;  // its terms are complete once those of `ahead` are there
        A *a = scaled + ahead % count * pitch, *t = terms + ahead % count * pitch;
        cover<A>(s.pixels, [&](int64_t i, int n) {
          if (ahead >= p.channels) return store(t + i, V<A>{});
          const V<A> b = base(s.at + i, ahead, n);
          const int64_t at = s.at + i + ahead * p.inner;
          const T* own_g = g + (at - p.g_shift);
          __builtin_prefetch(x + at + (p.after + 2) * p.inner), __builtin_prefetch(own_g + p.inner);
          const V<A> v = over<P, A>(get(own_g, n), b, p.beta);
          store(a + i, v), store(t + i, v * input(at, n) / b);
        });
        if (c < p.first) continue;
        const A* own = scaled + c % count * pitch;
        cover<A>(s.pixels, [&](int64_t i, int n) {
          const int64_t at = s.at + i + c * p.inner;
          __builtin_prefetch(out + at + p.inner, 1);
          put_gradient(at, load(own + i) + minus_2ab * input(at, n) * sum(terms + i, count, pitch), n);
        });
      }
    }
  }
};

template <class F>
void switch_power(const LocalResponseNormParams& p, const F& f) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.beta == 0.75) return f(Kernel<T, Power::three_quarters>{p});
    if (p.beta == 0.5) return f(Kernel<T, Power::half>{p});
    if (p.beta == 1) return f(Kernel<T, Power::one>{p});
    f(Kernel<T, Power::any>{p});
  });
}

}  // namespace

void local_response_norm(const LocalResponseNormParams& p, int64_t begin, int64_t end, void* scratch) {
  switch_power(p, [&](const auto& kernel) {
    p.inner == 1 ? kernel.rows(begin, end, static_cast<decltype(kernel.k + 0)*>(scratch)) : kernel.planes(begin, end);
  });
}

void local_response_norm_backward(const LocalResponseNormParams& p, int64_t begin, int64_t end, void* scratch) {
  switch_power(p, [&](const auto& kernel) {
    auto* s = static_cast<decltype(kernel.k + 0)*>(scratch);
    p.inner == 1 ? kernel.rows_backward(begin, end, s) : kernel.planes_backward(begin, end, s);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
