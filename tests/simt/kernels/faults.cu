// Each kernel has the one fault that its name tells.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32)
    sync_block();
  else
    sync_block();
}

__global__ void early_exit_kernel() {
  if (threadIdx.x == 5) return;
  sync_block();
}

__global__ void lane_missing_kernel(float* y) {
  float value = float(threadIdx.x);
  if (threadIdx.x % 32 < 16) value = shuffle_xor(value, 1);
  store(y + threadIdx.x, value);
}

__global__ void divergent_warp_kernel(float* y) {
  float value = float(threadIdx.x);
  if (threadIdx.x % 2)
    value = shuffle_xor(value, 1);
  else
    value = shuffle_xor(value, 1);
  store(y + threadIdx.x, value);
}

__global__ void misaligned_copy_kernel(const float* x, float* y) {
  using Float4 = Vec<float, 4>;
  FASTCNN_SHARED(Float4, shared);
  cp_async<16>(shared + threadIdx.x, x + 4 * threadIdx.x + 1);
  cp_async_commit();
  cp_async_wait<0>();
  store(y + threadIdx.x, shared[threadIdx.x].v[0]);
}

__global__ void copy_past_end_kernel(const float* x, float* y) {
  using Float4 = Vec<float, 4>;
  FASTCNN_SHARED(Float4, shared);
  cp_async<16>(shared + threadIdx.x, x + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  store(y + threadIdx.x, shared[threadIdx.x].v[3]);
}

__global__ void misaligned_load_kernel(const float* x, float* y) {
  store(y + threadIdx.x, load(reinterpret_cast<const Vec<float, 4>*>(x + 1)).v[0]);
}

__global__ void read_between_blocks_kernel(float* y) {
  const float left = blockIdx.x > 0 ? load_coherent(y + blockIdx.x - 1) : 0.0f;
  store(y + blockIdx.x, left + 1);
}

__global__ void write_between_blocks_kernel(float* y) { store(y, float(blockIdx.x)); }

// Blocks fill neighbouring elements, as they may.
__global__ void no_race_between_blocks_kernel(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  store(y + i, load(x + i) + load(x));
}

__global__ void stale_load_kernel(float* y) {
  store(y + threadIdx.x, 1.0f);
  store(y + threadIdx.x, load(y + threadIdx.x) + 1);
}

__global__ void uninitialised_shared_kernel(float* y) {
  FASTCNN_SHARED(float, shared);
  if (threadIdx.x != 7) store_shared(shared + threadIdx.x, 1.0f);
  sync_block();
  store(y + threadIdx.x, load_shared(shared + threadIdx.x));
}

// Which no check of an access sees: plain C++.
__global__ void shared_overrun_kernel(float* y) {
  FASTCNN_SHARED(float, shared);
  shared[threadIdx.x + 1] = 1;
  sync_block();
  store(y + threadIdx.x, shared[threadIdx.x]);
}

__global__ void spin_kernel(const float* flag) { while (load_coherent(flag) == 0); }

__global__ void copy_in_flight_kernel(const float* x) {
  FASTCNN_SHARED(float, shared);
  cp_async<4>(shared + threadIdx.x, x + threadIdx.x);
  cp_async_commit();
}

// Lanes exchange through shared memory; a warp is not in lock-step.
template <bool kSync>
__global__ void neighbour_kernel(float* y) {
  FASTCNN_SHARED(float, shared);
  store_shared(shared + threadIdx.x, float(threadIdx.x));
  if constexpr (kSync) sync_warp();
  store(y + threadIdx.x, load_shared(shared + threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32));
}

struct Large {
  float v[1000];
};

__global__ void needs_more_shared_kernel(float* y) {
  FASTCNN_SHARED(Large, shared);
  store(y, shared->v[0]);
}

__global__ void nothing_kernel() {}

template <auto kKernel, class... Args>
const char* run(int blocks, int threads, size_t shared, Args... args) {
  return launch<kKernel>({dim3(blocks), dim3(threads), shared, nullptr}, args...);
}

}  // namespace

extern "C" {
const char* divergent_barrier() { return run<divergent_barrier_kernel>(1, 64, 0); }
const char* early_exit() { return run<early_exit_kernel>(1, 64, 0); }
const char* lane_missing(float* y) { return run<lane_missing_kernel>(1, 64, 0, y); }
const char* divergent_warp(float* y) { return run<divergent_warp_kernel>(1, 64, 0, y); }
const char* partial_warp(float* y) { return run<neighbour_kernel<true>>(1, 40, 40 * 4, y); }
const char* misaligned_copy(const float* x, float* y) { return run<misaligned_copy_kernel>(1, 32, 32 * 16, x, y); }
const char* copy_past_end(const float* x, float* y) { return run<copy_past_end_kernel>(1, 32, 32 * 16, x, y); }
const char* misaligned_load(const float* x, float* y) { return run<misaligned_load_kernel>(1, 32, 0, x, y); }
const char* read_between_blocks(float* y) { return run<read_between_blocks_kernel>(4, 1, 0, y); }
const char* write_between_blocks(float* y) { return run<write_between_blocks_kernel>(4, 1, 0, y); }
const char* no_race_between_blocks(const float* x, float* y) {
  return run<no_race_between_blocks_kernel>(4, 3, 0, x, y);
}
const char* stale_load(float* y) { return run<stale_load_kernel>(1, 32, 0, y); }
const char* uninitialised_shared(float* y) { return run<uninitialised_shared_kernel>(1, 32, 32 * 4, y); }
const char* shared_overrun(float* y) { return run<shared_overrun_kernel>(1, 33, 33 * 4, y); }
const char* spin(const float* flag) { return run<spin_kernel>(1, 32, 0, flag); }
const char* copy_in_flight(const float* x) { return run<copy_in_flight_kernel>(1, 32, 32 * 4, x); }
const char* neighbour(float* y) { return run<neighbour_kernel<true>>(1, 64, 64 * 4, y); }
const char* neighbour_without_sync(float* y) { return run<neighbour_kernel<false>>(1, 64, 64 * 4, y); }
const char* needs_more_shared(float* y) { return run<needs_more_shared_kernel>(1, 32, 3996, y); }
const char* nothing(int blocks, int threads, int shared) { return run<nothing_kernel>(blocks, threads, shared); }
}

}  // namespace fastcnn::cuda
