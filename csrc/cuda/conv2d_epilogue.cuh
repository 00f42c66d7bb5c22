// What happens to a convolution's sum before it is stored.
#pragma once
#include "cuda/conv2d.cuh"
#include "cuda/device.cuh"

namespace fastcnn::cuda {

template <class T>
__device__ __forceinline__ Acc<T> bias_of(const Conv2d& p, int64_t channel) {
  if (!p.bias) return Acc<T>(0);
  return p.wide_bias ? load(static_cast<const Acc<T>*>(p.bias) + channel)
                     : to_acc(load(static_cast<const T*>(p.bias) + channel));
}

// NaN stays.
template <class A>
__device__ __forceinline__ A activated(A x, bool relu) {
  return relu && x < A(0) ? A(0) : x;
}

}  // namespace fastcnn::cuda
