// Window positions in memory (uint8 or int32) and in lanes (integers as wide as the values beside them).
#pragma once
#include "cpu/pool.h"

namespace fastcnn::FASTCNN_ISA {

template <class A>
struct LaneOf {
  using type = int32_t;
};
template <>
struct LaneOf<double> {
  using type = int64_t;
};
template <class A>
using Lane = typename LaneOf<A>::type;

template <class U, int lanes>
struct LanesOf {
  typedef U type __attribute__((vector_size(sizeof(U) * lanes)));
};
template <class To, class From>
inline auto convert(From v) {
  return __builtin_convertvector(v, typename LanesOf<To, sizeof(From) / sizeof(v[0])>::type);
}

// In memory's width and back. By factors of two: gcc 12 makes one instruction of each of these, but takes a vector
// apart lane by lane for larger factors.
template <class Index, class I>
inline auto narrow(I v) {
  if constexpr (sizeof(v[0]) == 2 * sizeof(Index) || sizeof(v[0]) == sizeof(Index))
    return convert<Index>(v);
  else if constexpr (sizeof(v[0]) == 8)
    return narrow<Index>(convert<int32_t>(v));
  else
    return narrow<Index>(convert<uint16_t>(v));
}
template <class Lane, class P>
inline auto widen(P v) {
  if constexpr (sizeof(Lane) == 2 * sizeof(v[0]) || sizeof(Lane) == sizeof(v[0]))
    return convert<Lane>(v);
  else if constexpr (sizeof(v[0]) == 1)
    return widen<Lane>(convert<uint16_t>(v));
  else
    return widen<Lane>(convert<int32_t>(v));
}

template <class A>
inline VI<A> load_lanes(const Lane<A>* p) {
  VI<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Index, class I>
inline void store_index(Index* p, I v, int n) {
  constexpr int lanes = sizeof(I) / sizeof(v[0]);
  const auto packed = narrow<Index>(v);
  if (n == lanes)
    __builtin_memcpy(p, &packed, sizeof packed);
  else
    for (int i = 0; i < n; ++i) p[i] = packed[i];
}

// Lanes from n on are -1, which is no position.
template <class A, class Index>
inline VI<A> load_index(const Index* p, int n) {
  constexpr int lanes = Vec<A>::lanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(Index) == 1 && sizeof(A) == 4)
    if (n == lanes)
      return (VI<A>)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  if constexpr (sizeof(Index) == 1 && sizeof(A) == 4)
    if (n == lanes) return (VI<A>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
  if (n == lanes) {
    typename LanesOf<Index, lanes>::type packed;
    __builtin_memcpy(&packed, p, sizeof packed);
    return (VI<A>)widen<Lane<A>>(packed);
  }
  VI<A> v = VI<A>{} - 1;
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

}  // namespace fastcnn::FASTCNN_ISA
