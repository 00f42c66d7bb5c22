// Vectors at the instruction set that this file is compiled for. Kernels compute in Acc<T>: float for
// float, Half and BFloat16 elements (converted as they are loaded and stored), double for double.
//
// Everything lives in the ISA's namespace and no std template appears: the linker merges equal inline functions
// of all objects, and might keep the AVX-512 copy for a CPU that lacks it.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ops/dtype.h"

namespace fastcnn::FASTCNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
struct Vec {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(A)), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};
template <class A>
using V = typename Vec<A>::type;  // A is float or double
using VF = V<float>;

// A vector's lanes hold as many elements of T as of its accumulator.
template <class T>
constexpr int kLanes = Vec<Acc<T>>::lanes;

template <class A>
inline V<A> splat(A a) {
  return V<A>{} + a;
}

// Scalars.
inline float get(float x) { return x; }
inline double get(double x) { return x; }
inline float get(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
inline float get(Half x) {
  _Float16 h;
  __builtin_memcpy(&h, &x.bits, 2);
  return float(h);
}
inline void put(float* p, float x) { *p = x; }
inline void put(double* p, double x) { *p = x; }
inline void put(Half* p, float x) {
  const _Float16 h = _Float16(x);
  __builtin_memcpy(&p->bits, &h, 2);
}
inline void put(BFloat16* p, float x) {  // round to nearest even; a NaN stays a (quiet) NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  p->bits = uint16_t(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Whole vectors.
inline V<float> load(const float* p) { return *reinterpret_cast<const Vec<float>::unaligned*>(p); }
inline V<double> load(const double* p) { return *reinterpret_cast<const Vec<double>::unaligned*>(p); }
inline void store(float* p, V<float> v) { *reinterpret_cast<Vec<float>::unaligned*>(p) = v; }
inline void store(double* p, V<double> v) { *reinterpret_cast<Vec<double>::unaligned*>(p) = v; }

typedef uint32_t VU __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VH __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

inline V<float> load(const BFloat16* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // gcc makes five instructions of the conversion
  return (V<float>)((VU)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  return (V<float>)(__builtin_convertvector(*reinterpret_cast<const VH*>(p), VU) << 16);
#endif
}
inline void store(BFloat16* p, V<float> v) {
  const VU bits = (VU)v;
  const VU rounded = v != v ? VU{} + 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i halves = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);  // of each 128 bits
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08)));
#else
  *reinterpret_cast<VH*>(p) = __builtin_convertvector(rounded, VH);
#endif
}
inline V<float> load(const Half* p) {
#if defined(__AVX512F__)
  // The maskz form, here and below: gcc warns of the undefined vector that the plain one passes through.
  return (V<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (V<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  V<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = get(p[i]);
  return v;
#endif
}
inline void store(Half* p, V<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) put(p + i, v[i]);
#endif
}

// Two neighbouring channels of a pixel, or of a weight. Kernels over float terms and over pairs are one template: a
// vector of weights, and what it adds to the sums.
struct Bf16Pair {
  uint32_t bits;
};
inline V<float> multiply_add(float b, V<float> u, V<float> sum) { return sum + b * u; }
inline V<double> multiply_add(double b, V<double> u, V<double> sum) { return sum + b * u; }
inline V<float> load_term(const float* p) { return load(p); }
inline V<double> load_term(const double* p) { return load(p); }
inline VU load_term(const Bf16Pair* p) {
  VU v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline V<float> multiply_add(Bf16Pair b, VU u, V<float> sum) {
#if defined(__AVX512F__) && !defined(FASTCNN_NO_ASSEMBLY)
  // Assembly, not the intrinsic: that one would have every caller compiled for CPUs that have it.
  asm("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(u), "v"(VU{} + b.bits));
  return sum;
#else
  const auto low = [](auto v) { return v << 16; };
  const auto high = [](auto v) { return v & 0xffff0000u; };
  return sum + (V<float>)low(u) * (V<float>)low(VU{} + b.bits) + (V<float>)high(u) * (V<float>)high(VU{} + b.bits);
#endif
}

// The first n lanes only: memory behind them is neither read nor written, and lanes from n on load as zero.
template <class T>
inline V<Acc<T>> load(const T* p, int n) {
  V<Acc<T>> v{};
  for (int i = 0; i < n; ++i) v[i] = get(p[i]);
  return v;
}
template <class T>
inline void store(T* p, V<Acc<T>> v, int n) {
  for (int i = 0; i < n; ++i) put(p + i, v[i]);
}
#if defined(__AVX512F__)
inline V<float> load(const float* p, int n) { return (V<float>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline void store(float* p, V<float> v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v); }
#endif

// b where b is the larger, or a: a, too, where they are equal or b is NaN. The compiler makes a comparison and a blend
// of the ternary, at four times the price.
inline V<float> larger(V<float> a, V<float> b) {
#if defined(__AVX512F__)
  return (V<float>)_mm512_maskz_max_ps(0xffff, (__m512)b, (__m512)a);
#elif defined(__AVX2__)
  return (V<float>)_mm256_max_ps((__m256)b, (__m256)a);
#else
  return b > a ? b : a;
#endif
}
inline V<double> larger(V<double> a, V<double> b) { return b > a ? b : a; }

template <class A>
inline bool any_nan(V<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
#endif
  const auto nan = v != v;
  bool any = false;
  for (int i = 0; i < Vec<A>::lanes; ++i) any |= nan[i] != 0;
  return any;
}

// n lanes at p, of which a whole vector is the fast case.
template <class T>
inline V<Acc<T>> load_part(const T* p, int n) {
  return n == kLanes<T> ? load(p) : load(p, n);
}
template <class T>
inline void store_part(T* p, V<Acc<T>> v, int n) {
  n == kLanes<T> ? store(p, v) : store(p, v, n);
}

}  // namespace fastcnn::FASTCNN_ISA
