// One channel's arithmetic, shared by local response normalization and its fusion with max pooling.
#pragma once
#include "cuda/device.cuh"
#include "ops/local_response_norm.h"

namespace fastcnn::cuda {

// v / s^beta. 3/4, of every published network, takes two of the special function unit's operations where s is a
// positive normal number. Else s^beta goes through double: a float's beta would be multiplied by log(s).
template <class A>
__device__ inline A over(A v, A s, double beta) {
  if constexpr (sizeof(A) == 4) {
    if (beta == 0.75 && s >= 1.17549435e-38f && s <= 3.40282347e38f) {
      const A r = rsqrt(s);
      return v * (r * sqrtf(r));
    }
  }
  if (beta == 1) return v / s;
  // The root differs from pow at -infinity, where torch's pow takes the root, too.
  return v / A(beta == 0.5 ? sqrt(double(s)) : pow(double(s), beta));
}

template <class A>
__device__ inline A rectified(A x, bool relu) {
  return relu && x < 0 ? A(0) : x;  // NaN stays
}

// g/s^beta, and the term that x's neighbours see of it, g*x/s^(beta+1).
template <class A>
struct Terms {
  A own, shared;
};
template <class A>
__device__ inline Terms<A> terms(A g, A x, A s, double beta) {
  const A own = over(g, s, beta);
  return {own, own * x / s};
}

}  // namespace fastcnn::cuda
