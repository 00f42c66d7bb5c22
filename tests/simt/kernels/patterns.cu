// Access patterns whose requests, sectors and wavefronts are known.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

// Each lane reads one T, `stride` of them after its neighbour's.
template <class T>
__global__ void global_stride_kernel(const T* x, T* y, int stride) {
  store(y + threadIdx.x, load(x + threadIdx.x * stride));
}

template <class T>
__global__ void shared_stride_kernel(T* y, int stride) {
  FASTCNN_SHARED(T, shared);
  store_shared(shared + threadIdx.x * stride, T{});
  store(y + threadIdx.x, load_shared(shared + threadIdx.x * stride));
}

// ldmatrix.x4 of rows `stride` 16-bit elements apart.
__global__ void ldmatrix_stride_kernel(uint32_t* y, int stride) {
  FASTCNN_SHARED(uint16_t, shared);
  uint32_t r[4];
  ldmatrix_x4(r, shared + threadIdx.x * stride);
  store(y + threadIdx.x, r[0]);
}

// Lanes below `active` read: the n-th pass is one request, whatever happens to the other lanes in between.
__global__ void masked_kernel(const float* x, float* y, int passes) {
  float sum = 0;
  for (int i = 0; i < passes; ++i) sum += load_if(int(threadIdx.x) >= i, x + i * 32 + threadIdx.x);
  store(y + threadIdx.x, sum);
}

template <class T>
const char* global_stride(const T* x, T* y, int stride) {
  return launch<global_stride_kernel<T>>({dim3(1), dim3(kWarp), 0, nullptr}, x, y, stride);
}
template <class T>
const char* shared_stride(T* y, int stride) {
  return launch<shared_stride_kernel<T>>({dim3(1), dim3(kWarp), sizeof(T) * kWarp * stride, nullptr}, y, stride);
}

}  // namespace

extern "C" {
const char* global_stride_2(const half_t* x, half_t* y, int stride) { return global_stride(x, y, stride); }
const char* global_stride_4(const float* x, float* y, int stride) { return global_stride(x, y, stride); }
const char* global_stride_16(const Vec<float, 4>* x, Vec<float, 4>* y, int stride) {
  return global_stride(x, y, stride);
}
const char* shared_stride_4(float* y, int stride) { return shared_stride(y, stride); }
const char* shared_stride_8(Vec<float, 2>* y, int stride) { return shared_stride(y, stride); }
const char* shared_stride_16(Vec<float, 4>* y, int stride) { return shared_stride(y, stride); }
const char* ldmatrix_stride(uint32_t* y, int stride) {
  return launch<ldmatrix_stride_kernel>({dim3(1), dim3(kWarp), size_t(kWarp * stride * 2), nullptr}, y, stride);
}
const char* masked(const float* x, float* y, int passes) {
  return launch<masked_kernel>({dim3(1), dim3(kWarp), 0, nullptr}, x, y, passes);
}
}

}  // namespace fastcnn::cuda
