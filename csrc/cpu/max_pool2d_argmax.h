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

template <class Index, int lanes>
struct Packed {
  typedef Index type __attribute__((vector_size(sizeof(Index) * lanes)));
};

template <class A>
inline VI<A> load_lanes(const Lane<A>* p) {
  VI<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Index, class I>
inline void store_index(Index* p, I v, int n) {
  constexpr int lanes = sizeof(I) / sizeof(v[0]);
  const auto packed = __builtin_convertvector(v, typename Packed<Index, lanes>::type);
  if (n == lanes)
    __builtin_memcpy(p, &packed, sizeof packed);
  else
    for (int i = 0; i < n; ++i) p[i] = packed[i];
}

// Lanes from n on are -1, which is no position.
template <class A, class Index>
inline VI<A> load_index(const Index* p, int n) {
  constexpr int lanes = Vec<A>::lanes;
  if (n == lanes) {
    typename Packed<Index, lanes>::type packed;
    __builtin_memcpy(&packed, p, sizeof packed);
    return __builtin_convertvector(packed, VI<A>);
  }
  VI<A> v = VI<A>{} - 1;
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

}  // namespace fastcnn::FASTCNN_ISA
