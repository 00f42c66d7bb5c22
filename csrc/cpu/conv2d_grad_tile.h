// The product at the heart of the weight gradients: a tile of MR weights by NV vectors of output channels stays in
// registers while the sum runs over pixels, or over tiles of them.
#pragma once
#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {

#if defined(__AVX512F__)
constexpr int kGradMR = 14;
#else
constexpr int kGradMR = 6;
#endif
constexpr int kGradNV = 2;

// dw[m][..] (+)= sum over k < count of x[k][m] * grad[k][..], m < MR; rows lie their `step` apart.
template <class A, int MR, int NV>
void accumulate_grad(const A* x, int64_t x_step, const A* grad, int64_t grad_step, int64_t count, bool first, A* dw,
                     int64_t step) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = first ? V<A>{} : load(dw + m * step + v * L);
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; ++k, x += x_step, grad += grad_step) {
    V<A> u[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) u[v] = load(grad + v * L);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] += x[m] * u[v];
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(dw + m * step + v * L, acc[m][v]);
}

template <class A>
using AccumulateGrad = void (*)(const A*, int64_t, const A*, int64_t, int64_t, bool, A*, int64_t);

template <class A, int NV, int MR = kGradMR>
AccumulateGrad<A> accumulate_grad_of(int weights) {
  if constexpr (MR == 0)
    return nullptr;
  else
    return weights == MR ? &accumulate_grad<A, MR, NV> : accumulate_grad_of<A, NV, MR - 1>(weights);
}

// For 1 <= weights <= kGradMR and 1 <= vectors <= kGradNV.
template <class A>
AccumulateGrad<A> accumulate_grad_for(int weights, int vectors) {
  return vectors == 1 ? accumulate_grad_of<A, 1>(weights) : accumulate_grad_of<A, 2>(weights);
}

}  // namespace fastcnn::FASTCNN_ISA
