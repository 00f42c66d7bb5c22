#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Partials {
  T of_warp[kThreads / kWarp];
};

template <class T>
__device__ T warp_sum(T x) {
  for (int delta = kWarp / 2; delta > 0; delta /= 2) x += shuffle_down(x, delta);
  return x;  // in lane 0
}

// y[block] = the sum of the block's share of x.
template <class T, bool kNoBarrier = false>
__global__ void __launch_bounds__(kThreads) block_sum_kernel(const T* x, T* y, int n) {
  FASTCNN_SHARED(Partials<T>, shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T sum = 0;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads) sum += load(x + i);
  sum = warp_sum(sum);
  if (lane == 0) store_shared(&shared->of_warp[warp], sum);
  if constexpr (!kNoBarrier) sync_block();
  if (warp != 0) return;
  sum = warp_sum(lane < kThreads / kWarp ? load_shared(&shared->of_warp[lane]) : T(0));
  if (lane == 0) store(y + blockIdx.x, sum);
}

template <class T, bool kNoBarrier = false>
const char* block_sum(const T* x, T* y, int n, int blocks) {
  const Launch l{dim3(blocks), dim3(kThreads), sizeof(Partials<T>), nullptr};
  return launch<block_sum_kernel<T, kNoBarrier>>(l, x, y, n);
}

}  // namespace

extern "C" {
const char* block_sum_f32(const float* x, float* y, int n, int blocks) { return block_sum(x, y, n, blocks); }
const char* block_sum_f64(const double* x, double* y, int n, int blocks) { return block_sum(x, y, n, blocks); }
const char* block_sum_without_barrier(const float* x, float* y, int n, int blocks) {
  return block_sum<float, true>(x, y, n, blocks);
}
}

}  // namespace fastcnn::cuda
