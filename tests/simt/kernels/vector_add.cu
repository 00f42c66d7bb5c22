#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

// y = a + b, 16 bytes a thread, the last n % kLanes one by one.
template <class T>
__global__ void __launch_bounds__(128) vector_add_kernel(const T* a, const T* b, T* y, int n) {
  constexpr int kLanes = 16 / sizeof(T);
  using V = Vec<T, kLanes>;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * kLanes;
  if (i + kLanes <= n) {
    const V x = load(reinterpret_cast<const V*>(a + i)), z = load(reinterpret_cast<const V*>(b + i));
    V sum;
    for (int j = 0; j < kLanes; ++j) sum.v[j] = from_acc<T>(to_acc(x.v[j]) + to_acc(z.v[j]));
    store(reinterpret_cast<V*>(y + i), sum);
  } else {
    for (int j = i; j < n; ++j) store(y + j, from_acc<T>(to_acc(load(a + j)) + to_acc(load(b + j))));
  }
}

template <class T>
const char* vector_add(const T* a, const T* b, T* y, int n) {
  const unsigned blocks = (n * sizeof(T) + 128 * 16 - 1) / (128 * 16);
  return launch<vector_add_kernel<T>>({dim3(blocks), dim3(128), 0, nullptr}, a, b, y, n);
}

}  // namespace

extern "C" {
const char* vector_add_f16(const half_t* a, const half_t* b, half_t* y, int n) { return vector_add(a, b, y, n); }
const char* vector_add_bf16(const bfloat16_t* a, const bfloat16_t* b, bfloat16_t* y, int n) {
  return vector_add(a, b, y, n);
}
const char* vector_add_f32(const float* a, const float* b, float* y, int n) { return vector_add(a, b, y, n); }
const char* vector_add_f64(const double* a, const double* b, double* y, int n) { return vector_add(a, b, y, n); }
}

}  // namespace fastcnn::cuda
