// One channel's arithmetic, shared by local response normalization and its fusion with max pooling.
#pragma once
#include "cuda/device.cuh"
#include "ops/local_response_norm.h"

namespace fastcnn::cuda {

// v / s^beta.
struct AnyPower {
  double beta;

  // Through double: a float's beta would be multiplied by log(s).
  template <class A>
  __device__ A over(A v, A s) const {
    if (beta == 1) return v / s;
    // The root differs from pow at -infinity, where torch's pow takes the root, too.
    return v / A(beta == 0.5 ? sqrt(double(s)) : pow(double(s), beta));
  }
};

// 3/4, of every published network, takes two of the special function unit's operations where s is a positive normal
// number; and no call, which would cost the kernel registers around it.
struct ThreeQuarters {
  __device__ float over(float v, float s) const {
    if (s >= 1.17549435e-38f && s <= 3.40282347e38f) {
      const float r = rsqrt(s);
      return v * (r * sqrtf(r));
    }
    const float root = sqrtf(s);
    return v / (s == -INFINITY ? INFINITY : root * sqrtf(root));  // pow(-infinity, 3/4) is infinity
  }
};

// Calls f with the power for an element type.
template <class T, class F>
const char* with_power(double beta, const F& f) {
  if constexpr (sizeof(T) < 8)
    if (beta == 0.75) return f(ThreeQuarters{});
  return f(AnyPower{beta});
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
template <class A, class Power>
__device__ inline Terms<A> terms(A g, A x, A s, const Power& power) {
  const A own = power.over(g, s);
  return {own, own * x / s};
}

}  // namespace fastcnn::cuda
