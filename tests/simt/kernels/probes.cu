// One instruction each, its operands and results laid open.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

enum class Mma { kF16, kBf16, kTf32 };

// a[lane][4], b[lane][2], d[lane][4]: the registers of one warp.
template <Mma kMma>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  uint32_t fragment_a[4], fragment_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) fragment_a[i] = load(a + lane * 4 + i);
  for (int i = 0; i < 2; ++i) fragment_b[i] = load(b + lane * 2 + i);
  for (int i = 0; i < 4; ++i) sum[i] = load_coherent(d + lane * 4 + i);
  if constexpr (kMma == Mma::kF16) mma_m16n8k16<half_t>(sum, fragment_a, fragment_b);
  if constexpr (kMma == Mma::kBf16) mma_m16n8k16<bfloat16_t>(sum, fragment_a, fragment_b);
  if constexpr (kMma == Mma::kTf32) mma_m16n8k8(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) store(d + lane * 4 + i, sum[i]);
}

template <Mma kMma>
const char* mma(const uint32_t* a, const uint32_t* b, float* d) {
  return launch<mma_kernel<kMma>>({dim3(1), dim3(kWarp), 0, nullptr}, a, b, d);
}

struct Rows {
  alignas(16) uint16_t row[32][8];
};

template <int kMatrices>
__device__ void read_fragment(uint32_t (&r)[kMatrices], const void* row, bool transposed) {
  if constexpr (kMatrices == 1) transposed ? ldmatrix_x1_trans(r, row) : ldmatrix_x1(r, row);
  if constexpr (kMatrices == 2) transposed ? ldmatrix_x2_trans(r, row) : ldmatrix_x2(r, row);
  if constexpr (kMatrices == 4) transposed ? ldmatrix_x4_trans(r, row) : ldmatrix_x4(r, row);
}

// rows[32][8] to r[lane][kMatrices]; lane l gives the address of rows[l].
template <int kMatrices>
__global__ void ldmatrix_kernel(const uint16_t* rows, uint32_t* registers, int transposed) {
  FASTCNN_SHARED(Rows, shared);
  const int lane = threadIdx.x;
  cp_async<16>(shared->row[lane], rows + lane * 8);
  cp_async_commit();
  cp_async_wait<0>();
  sync_warp();
  uint32_t r[kMatrices];
  read_fragment(r, shared->row[lane], transposed != 0);
  for (int i = 0; i < kMatrices; ++i) store(registers + lane * kMatrices + i, r[i]);
}

template <int kMatrices>
const char* ldmatrix(const uint16_t* rows, uint32_t* registers, int transposed) {
  return launch<ldmatrix_kernel<kMatrices>>({dim3(1), dim3(kWarp), sizeof(Rows), nullptr}, rows, registers, transposed);
}

// y[4][lane]: from lane, from below, from above, from the lane whose index differs by the bits of `by`.
template <class T>
__global__ void shuffle_kernel(const T* x, T* y, int by) {
  const int lane = threadIdx.x;
  const T value = load(x + lane);
  store(y + lane, shuffle(value, by));
  store(y + 32 + lane, shuffle_up(value, by));
  store(y + 64 + lane, shuffle_down(value, by));
  store(y + 96 + lane, shuffle_xor(value, by));
}

template <int kBytes>
__global__ void copy_kernel(const uint8_t* x, uint8_t* y, int valid) {
  FASTCNN_SHARED(uint32_t, shared);
  cp_async<kBytes>(shared + threadIdx.x * (kBytes / 4), x + threadIdx.x * kBytes, valid);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < kBytes / 4; ++i) {
    const int word = threadIdx.x * (kBytes / 4) + i;
    store(reinterpret_cast<uint32_t*>(y) + word, load_shared(shared + word));
  }
}

template <class T>
__global__ void narrow_kernel(const float* x, T* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(y + i, from_float<T>(load(x + i)));
}
template <class T>
__global__ void widen_kernel(const T* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(y + i, to_float(load(x + i)));
}

// y[4][i]: to_tf32, rsqrt, exp2, log2.
__global__ void function_kernel(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float value = load(x + i);
  store(y + i, to_tf32(value));
  store(y + n + i, rsqrt(value));
  store(y + 2 * n + i, exp2(value));
  store(y + 3 * n + i, log2(value));
}

Launch one_each(int n) { return {dim3((n + 255) / 256), dim3(256), 0, nullptr}; }

}  // namespace

extern "C" {
const char* mma_f16(const uint32_t* a, const uint32_t* b, float* d) { return mma<Mma::kF16>(a, b, d); }
const char* mma_bf16(const uint32_t* a, const uint32_t* b, float* d) { return mma<Mma::kBf16>(a, b, d); }
const char* mma_tf32(const uint32_t* a, const uint32_t* b, float* d) { return mma<Mma::kTf32>(a, b, d); }
const char* ldmatrix_1(const uint16_t* rows, uint32_t* r, int transposed) { return ldmatrix<1>(rows, r, transposed); }
const char* ldmatrix_2(const uint16_t* rows, uint32_t* r, int transposed) { return ldmatrix<2>(rows, r, transposed); }
const char* ldmatrix_4(const uint16_t* rows, uint32_t* r, int transposed) { return ldmatrix<4>(rows, r, transposed); }
const char* shuffle_4(const float* x, float* y, int by) {
  return launch<shuffle_kernel<float>>({dim3(1), dim3(kWarp), 0, nullptr}, x, y, by);
}
const char* shuffle_8(const double* x, double* y, int by) {
  return launch<shuffle_kernel<double>>({dim3(1), dim3(kWarp), 0, nullptr}, x, y, by);
}
const char* copy_4(const uint8_t* x, uint8_t* y, int valid) {
  return launch<copy_kernel<4>>({dim3(1), dim3(kWarp), kWarp * 4, nullptr}, x, y, valid);
}
const char* copy_8(const uint8_t* x, uint8_t* y, int valid) {
  return launch<copy_kernel<8>>({dim3(1), dim3(kWarp), kWarp * 8, nullptr}, x, y, valid);
}
const char* copy_16(const uint8_t* x, uint8_t* y, int valid) {
  return launch<copy_kernel<16>>({dim3(1), dim3(kWarp), kWarp * 16, nullptr}, x, y, valid);
}
const char* narrow_f16(const float* x, half_t* y, int n) { return launch<narrow_kernel<half_t>>(one_each(n), x, y, n); }
const char* narrow_bf16(const float* x, bfloat16_t* y, int n) {
  return launch<narrow_kernel<bfloat16_t>>(one_each(n), x, y, n);
}
const char* widen_f16(const half_t* x, float* y, int n) { return launch<widen_kernel<half_t>>(one_each(n), x, y, n); }
const char* widen_bf16(const bfloat16_t* x, float* y, int n) {
  return launch<widen_kernel<bfloat16_t>>(one_each(n), x, y, n);
}
const char* functions(const float* x, float* y, int n) { return launch<function_kernel>(one_each(n), x, y, n); }
}

}  // namespace fastcnn::cuda
