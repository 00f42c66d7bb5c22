// How many multiply-adds mma.sync does: chains of products in registers, nothing else.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

// Independent sums of a warp: with 8 warps a block and two blocks a processor, enough to hide the latency of each.
constexpr int kSums = 8, kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads, 2) mma_rate_kernel(float* y, int turns) {
  float sum[kSums][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x + i;  // subnormals: the rate does not depend on values
  for (int i = 0; i < 2; ++i) b[i] = threadIdx.x + i;
  for (int turn = 0; turn < turns; ++turn)
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      if constexpr (sizeof(T) == 2)
        mma_m16n8k16<T>(sum[s], a, b);
      else
        mma_m16n8k8(sum[s], a, b);
    }
  float all = 0;
#pragma unroll
  for (int s = 0; s < kSums; ++s)
    for (int i = 0; i < 4; ++i) all += sum[s][i];
  store(y + blockIdx.x * kThreads + threadIdx.x, all);
}

template <class T>
const char* run(float* y, int blocks, int turns, void* stream) {
  return launch<mma_rate_kernel<T>>({dim3(unsigned(blocks)), dim3(kThreads), 0, stream}, y, turns);
}

}  // namespace

extern "C" {
// y: 256 floats a block.
const char* mma_rate_f16(float* y, int blocks, int turns, void* stream) {
  return run<half_t>(y, blocks, turns, stream);
}
const char* mma_rate_tf32(float* y, int blocks, int turns, void* stream) {
  return run<float>(y, blocks, turns, stream);
}
}

}  // namespace fastcnn::cuda
