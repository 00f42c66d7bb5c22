// A warp's share of a matrix product on tensor cores, and where its operands lie in shared memory: rows of 16-byte
// chunks, whose places are swapped so that the eight rows an ldmatrix reads fall on different banks.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

constexpr int kChunk = 8;  // 16-bit elements of 16 bytes

// Operands with the sum's index innermost: 32 of it to a row of four chunks, two rows to a line of all banks.
constexpr int kDepth = 32;
__device__ __forceinline__ int inner_chunk(int row, int chunk) { return chunk ^ (row / 2 % 4); }

// Operands with the sum's index outermost: rows of kWidth elements, each a multiple of a line of all banks.
__device__ __forceinline__ int outer_chunk(int row, int chunk) { return chunk ^ (row % 8); }

// kM x kN sums of a warp. Element i of [m][n] lies in row 16m + lane/4 + 8(i/2), column 8n + 2(lane%4) + i%2.
template <int kM, int kN>
struct WarpSums {
  float v[kM / 16][kN / 8][4] = {};
};

template <class T, int kM, int kN>
__device__ __forceinline__ void multiply(WarpSums<kM, kN>& sums, const uint32_t (&a)[kM / 16][4],
                                         const uint32_t (&b)[kN / 16][4]) {
#pragma unroll
  for (int m = 0; m < kM / 16; ++m)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
      mma_m16n8k16<T>(sums.v[m][n], a[m], pair);
    }
}

// sums += a b^T over kDepth, a [kM][kDepth] and b [kN][kDepth] from the warp's first row on, a multiple of 8.
template <class T, int kM, int kN>
__device__ __forceinline__ void multiply_inner(WarpSums<kM, kN>& sums, const T* a, const T* b, int lane) {
  const int row_a = lane % 16, row_b = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    uint32_t fragment_a[kM / 16][4], fragment_b[kN / 16][4];
    const T* from_a = a + row_a * kDepth + inner_chunk(row_a, k * 2 + lane / 16) * kChunk;
    const T* from_b = b + row_b * kDepth + inner_chunk(row_b, k * 2 + lane / 8 % 2) * kChunk;
#pragma unroll
    for (int m = 0; m < kM / 16; ++m) ldmatrix_x4(fragment_a[m], from_a + m * 16 * kDepth);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) ldmatrix_x4(fragment_b[n], from_b + n * 16 * kDepth);
    multiply<T>(sums, fragment_a, fragment_b);
  }
}

// sums += a^T b over kDepth, a [kDepth][kWidthA] from the warp's column on and b likewise. Columns are multiples of 16.
template <class T, int kM, int kN, int kWidthA, int kWidthB>
__device__ __forceinline__ void multiply_outer(WarpSums<kM, kN>& sums, const T* a, int column_a, const T* b,
                                               int column_b, int lane) {
  const int row_a = lane / 16 * 8 + lane % 8, row_b = lane % 16;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t fragment_a[kM / 16][4], fragment_b[kN / 16][4];
#pragma unroll
    for (int m = 0; m < kM / 16; ++m)
      ldmatrix_x4_trans(fragment_a[m],
                        a + (k + row_a) * kWidthA + outer_chunk(row_a, column_a / 8 + m * 2 + lane / 8 % 2) * kChunk);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n)
      ldmatrix_x4_trans(fragment_b[n],
                        b + (k + row_b) * kWidthB + outer_chunk(row_b, column_b / 8 + n * 2 + lane / 16) * kChunk);
    multiply<T>(sums, fragment_a, fragment_b);
  }
}

}  // namespace fastcnn::cuda
