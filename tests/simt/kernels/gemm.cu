#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

enum class Fault { kNone, kNoBarrier, kWaitCount, kSwappedRegisters };

// One stage of a block's operands. The padding makes ldmatrix's eight rows, and the lanes that read B's fragments,
// fall on different banks.
template <class T>
struct Stage {
  static constexpr int kDepth = 32 / sizeof(T);  // 16 of 16 bits, 8 of 32
  static constexpr int kChunk = 16 / sizeof(T);
  T a[32][kDepth + kChunk];
  T b[kDepth][32 + 8];
};

constexpr int kStages = 3;

// c[m][n] = sum over k of a[m][k] b[k][n]; k and n are multiples of 8. A block of 2x2 warps computes 32x32, each warp
// 16x16.
template <class T, Fault kFault>
__global__ void __launch_bounds__(128) gemm_kernel(const T* a, const T* b, float* c, int m, int n, int k) {
  using S = Stage<T>;
  FASTCNN_SHARED(S, stages);
  const int thread = threadIdx.x, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const int row = thread / kWarp / 2 * 16, column = thread / kWarp % 2 * 16;  // the warp's, within the block's tile
  const int m0 = blockIdx.y * 32, n0 = blockIdx.x * 32, steps = (k + S::kDepth - 1) / S::kDepth;

  const auto load_stage = [&](int step) {
    if (step < steps) {
      S& stage = stages[step % kStages];
      const int k0 = step * S::kDepth;
      if (thread < 64) {  // two chunks of 16 bytes to a row of A
        const int i = thread / 2, j = thread % 2 * S::kChunk;
        const bool valid = m0 + i < m && k0 + j < k;
        cp_async<16>(&stage.a[i][j], valid ? a + int64_t(m0 + i) * k + k0 + j : a, valid);
      } else {
        constexpr int kRow = 32 / S::kChunk;  // chunks to a row of B
        const int i = (thread - 64) / kRow, j = (thread - 64) % kRow * S::kChunk;
        const bool valid = k0 + i < k && n0 + j < n;
        cp_async<16>(&stage.b[i][j], valid ? b + int64_t(k0 + i) * n + n0 + j : b, valid);
      }
    }
    cp_async_commit();
  };

  float sum[2][4] = {};
  for (int step = 0; step < kStages - 1; ++step) load_stage(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2 + (kFault == Fault::kWaitCount)>();
    if constexpr (kFault != Fault::kNoBarrier) sync_block();
    load_stage(step + kStages - 1);  // into the stage that the step before has done with
    const S& stage = stages[step % kStages];
    uint32_t fragment_a[4], fragment_b[2][2];
    ldmatrix_x4(fragment_a, &stage.a[row + lane % 16][lane / 16 * S::kChunk]);
    if constexpr (kFault == Fault::kSwappedRegisters) {
      const uint32_t other = fragment_a[1];
      fragment_a[1] = fragment_a[2], fragment_a[2] = other;
    }
    if constexpr (sizeof(T) == 2) {
      uint32_t both[4];
      ldmatrix_x4_trans(both, &stage.b[lane % 16][column + lane / 16 * 8]);
      for (int i = 0; i < 4; ++i) fragment_b[i / 2][i % 2] = both[i];
      for (int i = 0; i < 2; ++i) mma_m16n8k16<T>(sum[i], fragment_a, fragment_b[i]);
    } else {  // 32-bit elements cannot be transposed by ldmatrix
      for (int i = 0; i < 4; ++i)
        fragment_b[i / 2][i % 2] = bit_cast<uint32_t>(load_shared(&stage.b[t + i % 2 * 4][column + i / 2 * 8 + g]));
      for (int i = 0; i < 2; ++i) mma_m16n8k8(sum[i], fragment_a, fragment_b[i]);
    }
  }
  cp_async_wait<0>();
  for (int i = 0; i < 8; ++i) {
    const int y = m0 + row + g + i / 2 % 2 * 8, x = n0 + column + i / 4 * 8 + t * 2 + i % 2;
    if (y < m && x < n) store(c + int64_t(y) * n + x, sum[i / 4][i % 4]);
  }
}

template <class T, Fault kFault = Fault::kNone>
const char* gemm(const T* a, const T* b, float* c, int m, int n, int k) {
  const Launch l{dim3((n + 31) / 32, (m + 31) / 32), dim3(128), sizeof(Stage<T>) * kStages, nullptr};
  return launch<gemm_kernel<T, kFault>>(l, a, b, c, m, n, k);
}

}  // namespace

extern "C" {
const char* gemm_f16(const half_t* a, const half_t* b, float* c, int m, int n, int k) { return gemm(a, b, c, m, n, k); }
const char* gemm_bf16(const bfloat16_t* a, const bfloat16_t* b, float* c, int m, int n, int k) {
  return gemm(a, b, c, m, n, k);
}
const char* gemm_tf32(const float* a, const float* b, float* c, int m, int n, int k) { return gemm(a, b, c, m, n, k); }
const char* gemm_without_barrier(const half_t* a, const half_t* b, float* c, int m, int n, int k) {
  return gemm<half_t, Fault::kNoBarrier>(a, b, c, m, n, k);
}
const char* gemm_wrong_wait_count(const half_t* a, const half_t* b, float* c, int m, int n, int k) {
  return gemm<half_t, Fault::kWaitCount>(a, b, c, m, n, k);
}
const char* gemm_swapped_registers(const half_t* a, const half_t* b, float* c, int m, int n, int k) {
  return gemm<half_t, Fault::kSwappedRegisters>(a, b, c, m, n, k);
}
}

}  // namespace fastcnn::cuda
