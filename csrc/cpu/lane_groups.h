// Groups of CG neighbouring lanes of a vector.
#pragma once
#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {

template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = Lanes<I...>;
};

// Lane l takes the value of lane c of its group.
template <int CG, int C, class Vector, int... I>
inline Vector spread(Vector x, Lanes<I...>) {
  return __builtin_shufflevector(x, x, (I / CG * CG + C)...);
}

// out[c]: channel c of every group, in all lanes of the group.
template <int CG, int C = 0, class Vector>
inline void spread_all(Vector x, Vector* out) {
  if constexpr (CG == 1) {
    out[0] = x;
  } else if constexpr (C < CG) {
    out[C] = spread<CG, C>(x, typename LanesUpTo<sizeof(Vector) / sizeof(x[0])>::type{});
    spread_all<CG, C + 1>(x, out);
  }
}

template <int N>
struct GroupSize {
  static constexpr int value = N;
};

// f(GroupSize<n>{}) for the sizes that divide a vector of A; others never reach these kernels (ops/conv2d_plan.cpp).
template <class A, int N = 1, class F>
inline void switch_group_size(int64_t n, const F& f) {
  if (n == N) return f(GroupSize<N>{});
  if constexpr (N < 8 && N < Vec<A>::lanes) switch_group_size<A, 2 * N>(n, f);
}

}  // namespace fastcnn::FASTCNN_ISA
