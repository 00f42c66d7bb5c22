// The names that CUDA gives every kernel: qualifiers, indices, min and max.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// The running thread's; whoever resumes a thread sets them.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;
