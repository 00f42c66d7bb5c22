// Sums whose order is fixed, so that their bits are the same in every run.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

// The sum over each group of `lanes` (a power of two) neighbouring lanes, in all of them. Whole warps call it.
template <class A>
__device__ __forceinline__ A sum_lanes(A value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += shuffle_xor(value, offset);
  return value;
}

// Of a block of `rows` times `columns` threads, both powers of two, thread i holding row i / columns: the sums over
// each column, in row 0. memory: an A for each thread and each of the V values, which are stored apart so that a warp's
// accesses meet every bank once.
template <int V, class A>
__device__ __forceinline__ void sum_rows(A* memory, int rows, int columns, A (&value)[V]) {
  const int i = threadIdx.x, size = rows * columns;
#pragma unroll
  for (int v = 0; v < V; ++v) store_shared(memory + v * size + i, value[v]);
  for (int half = size / 2; half >= columns; half /= 2) {
    sync_block();
    if (i < half)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        value[v] += load_shared(memory + v * size + half + i);
        store_shared(memory + v * size + i, value[v]);
      }
  }
}

}  // namespace fastcnn::cuda
