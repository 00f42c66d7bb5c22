// How the lanes of a warp meet all banks of shared memory while each works through V neighbouring elements of its own.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

// v[i] becomes v[(i + by) % V], 0 <= by < V. By selects: registers have no addresses.
template <int V, class A>
__device__ __forceinline__ void rotate(A (&v)[V], int by) {
#pragma unroll
  for (int bit = 1; bit < V; bit *= 2) {
    A moved[V];
#pragma unroll
    for (int i = 0; i < V; ++i) moved[i] = by & bit ? v[(i + bit) % V] : v[i];
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = moved[i];
  }
}

// Lane l of a warp has the V elements of type A from l * V on. In their order, lanes would meet every V-th bank alone;
// therefore each group of lanes whose elements fill the banks once starts one element behind the group before. The
// same holds where all lanes look at the same distance from their elements.
template <class A, int V>
class LaneOrder {
  static constexpr int kGroup = 128 / sizeof(A) / V;
  int first_;

 public:
  __device__ LaneOrder() : first_(threadIdx.x % kWarp / kGroup % V) {}
  __device__ int at(int step) const { return (first_ + step) % V; }  // the element of a step
  __device__ void to_steps(A (&v)[V]) const { rotate(v, first_); }
  __device__ void to_elements(A (&v)[V]) const { rotate(v, (V - first_) % V); }
};

}  // namespace fastcnn::cuda
