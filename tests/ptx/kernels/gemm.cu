// C[m][n] = sum over k of A[m][k] * B[k][n], by cp.async in two stages, ldmatrix and mma.sync.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

enum Fault { kNone, kNoWait, kWaitOneLess, kNoBarrier, kNoBarrierBeforeRefill, kWaitAfterBarrier };

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, of which the first `bytes` are copied and the others zero
__device__ void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}

__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ void load_a(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ void load_b_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

#define MMA(shape, type)                                                              \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) { MMA("m16n8k16", "f16"); }
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  MMA("m16n8k16", "bf16");
}
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) { MMA("m16n8k8", "tf32"); }

// B's fragment of k x 8 elements. 16-bit ones come through ldmatrix.trans; 32-bit ones would come out in halves.
template <typename T, int kStride>
__device__ void load_b(uint32_t (&b)[2], const T (*rows)[kStride], int column, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_b_transposed(b, &rows[lane & 15][column]);
  } else {
    b[0] = __float_as_uint(rows[lane & 3][column + lane / 4]);
    b[1] = __float_as_uint(rows[(lane & 3) + 4][column + lane / 4]);
  }
}

// A block of four warps makes 32 x 16 outputs, a warp 16 x 8. n is a multiple of 8, k of 16 bytes.
template <typename T, Fault kFault>
__global__ void gemm(const T* a_global, const T* b_global, float* c_global, int m, int n, int k) {
  constexpr int kStep = 32 / sizeof(T), kChunk = 16 / sizeof(T), kBlockM = 32, kBlockN = 16;
  constexpr int kStrideA = kStep + kChunk, kStrideB = kBlockN + kChunk;
  __shared__ __align__(16) T a_shared[2][kBlockM][kStrideA];
  __shared__ __align__(16) T b_shared[2][kStep][kStrideB];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first_m = blockIdx.y * kBlockM, first_n = blockIdx.x * kBlockN, warp_m = warp / 2 * 16,
            warp_n = warp % 2 * 8;
  auto load = [&](int stage, int start) {
    constexpr int kRowA = kStep / kChunk, kRowB = kBlockN / kChunk;
    for (int i = thread; i < kBlockM * kRowA; i += 128) {
      int row = i / kRowA, column = i % kRowA * kChunk;
      bool inside = first_m + row < m && start + column < k;
      copy_async(&a_shared[stage][row][column], inside ? a_global + (first_m + row) * k + start + column : a_global,
                 inside ? 16 : 0);
    }
    for (int i = thread; i < kStep * kRowB; i += 128) {
      int row = i / kRowB, column = i % kRowB * kChunk;
      bool inside = start + row < k && first_n + column < n;
      copy_async(&b_shared[stage][row][column], inside ? b_global + (start + row) * n + first_n + column : b_global,
                 inside ? 16 : 0);
    }
    commit();
  };
  float c[4] = {};
  const int steps = (k + kStep - 1) / kStep;
  load(0, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % 2;
    if (step + 1 < steps)
      load(1 - stage, (step + 1) * kStep);
    else
      commit();
    if (kFault == kWaitAfterBarrier) __syncthreads();
    if (kFault == kWaitOneLess)
      wait<2>();
    else if (kFault != kNoWait)
      wait<1>();
    if (kFault != kNoBarrier && kFault != kWaitAfterBarrier) __syncthreads();
    uint32_t a[4], b[2];
    load_a(a, &a_shared[stage][warp_m + lane % 16][lane / 16 * kChunk]);
    load_b(b, b_shared[stage], warp_n, lane);
    mma(c, a, b, T());
    if (kFault != kNoBarrierBeforeRefill) __syncthreads();
  }
  const int column = first_n + warp_n + lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    int row = first_m + warp_m + lane / 4 + i / 2 * 8;
    if (row < m && column + i % 2 < n) c_global[row * n + column + i % 2] = c[i];
  }
}

template __global__ void gemm<__half, kNone>(const __half*, const __half*, float*, int, int, int);
template __global__ void gemm<float, kNone>(const float*, const float*, float*, int, int, int);
#define GEMM_BF16(fault) \
  template __global__ void gemm<__nv_bfloat16, fault>(const __nv_bfloat16*, const __nv_bfloat16*, float*, int, int, int)
GEMM_BF16(kNone);
GEMM_BF16(kNoWait);
GEMM_BF16(kWaitOneLess);
GEMM_BF16(kNoBarrier);
GEMM_BF16(kNoBarrierBeforeRefill);
GEMM_BF16(kWaitAfterBarrier);
