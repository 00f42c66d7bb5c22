// A warp's share of a matrix product on tensor cores, and where its operands lie in shared memory: rows of 16-byte
// chunks, whose places are swapped so that what the lanes of a warp read at once falls on different banks.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

template <class T>
constexpr int kChunk = 16 / sizeof(T);  // elements of 16 bytes
template <class T>
constexpr int kDepth = 64 / sizeof(T);  // of the sum's index, in a step: two instructions' worth

// Operands with the sum's index innermost: kDepth of it to a row of four chunks, two rows to a line of all banks. The
// eight rows that an ldmatrix reads lie on different banks.
__device__ __forceinline__ int inner_chunk(int row, int chunk) { return chunk ^ (row / 2 % 4); }

// Operands with the sum's index outermost: rows of a multiple of a line of all banks. 16 bits are read by ldmatrix,
// eight rows at once; 32 bits one by one, eight elements of each of four rows.
template <class T>
__device__ __forceinline__ int outer_chunk(int row, int chunk) {
  return chunk ^ (sizeof(T) == 2 ? row % 8 : row % 4 * 2);
}

// kM x kN sums of a warp. Element i of [m][n] lies in row 16m + lane/4 + 8(i/2), column 8n + 2(lane%4) + i%2.
template <int kM, int kN>
struct WarpSums {
  float v[kM / 16][kN / 8][4] = {};
};

// Registers of the left and of the right operand; of the right, two instructions' side by side, as ldmatrix gives them.
template <int kM>
using LeftFragments = uint32_t[kM / 16][4];
template <int kN>
using RightFragments = uint32_t[kN / 16][4];

__device__ __forceinline__ uint32_t tf32_bits(uint32_t x) { return bit_cast<uint32_t>(to_tf32(bit_cast<float>(x))); }
template <class T, int kCount>
__device__ __forceinline__ void round_to_tf32(uint32_t (&fragments)[kCount][4]) {
  if constexpr (sizeof(T) == 4)
#pragma unroll
    for (int m = 0; m < kCount; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) fragments[m][i] = tf32_bits(fragments[m][i]);
}

// Instruction k of a step, of rows from `a` or `b` on, a multiple of 8 of them.
template <class T, int kM>
__device__ __forceinline__ void load_left_inner(LeftFragments<kM>& to, const T* a, int k, int lane) {
  const int row = lane % 16;
  const T* from = a + row * kDepth<T> + inner_chunk(row, k * 2 + lane / 16) * kChunk<T>;
#pragma unroll
  for (int m = 0; m < kM / 16; ++m) ldmatrix_x4(to[m], from + m * 16 * kDepth<T>);
  round_to_tf32<T>(to);
}
template <class T, int kN>
__device__ __forceinline__ void load_right_inner(RightFragments<kN>& to, const T* b, int k, int lane) {
  const int row = lane / 16 * 8 + lane % 8;
  const T* from = b + row * kDepth<T> + inner_chunk(row, k * 2 + lane / 8 % 2) * kChunk<T>;
#pragma unroll
  for (int n = 0; n < kN / 16; ++n) ldmatrix_x4(to[n], from + n * 16 * kDepth<T>);
  round_to_tf32<T>(to);
}

// Of rows of kWidth elements, those from `column` on, a multiple of 16.
template <class T, int kM, int kWidth>
__device__ __forceinline__ void load_left_outer(LeftFragments<kM>& to, const T* a, int column, int k, int lane) {
#pragma unroll
  for (int m = 0; m < kM / 16; ++m)
    if constexpr (sizeof(T) == 2) {
      const int row = lane / 16 * 8 + lane % 8;
      ldmatrix_x4_trans(
          to[m], a + (k * 16 + row) * kWidth + outer_chunk<T>(row, column / 8 + m * 2 + lane / 8 % 2) * kChunk<T>);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane % 4 + i / 2 * 4, at = (column + m * 16 + i % 2 * 8) ^ (lane % 4 * 8);
        to[m][i] = bit_cast<uint32_t>(load_shared(a + (k * 8 + row) * kWidth + at + lane / 4));
      }
    }
  round_to_tf32<T>(to);
}
template <class T, int kN, int kWidth>
__device__ __forceinline__ void load_right_outer(RightFragments<kN>& to, const T* b, int column, int k, int lane) {
#pragma unroll
  for (int n = 0; n < kN / 16; ++n)
    if constexpr (sizeof(T) == 2) {
      const int row = lane % 16;
      ldmatrix_x4_trans(to[n],
                        b + (k * 16 + row) * kWidth + outer_chunk<T>(row, column / 8 + n * 2 + lane / 16) * kChunk<T>);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane % 4 + i % 2 * 4, at = (column + n * 16 + i / 2 * 8) ^ (lane % 4 * 8);
        to[n][i] = bit_cast<uint32_t>(load_shared(b + (k * 8 + row) * kWidth + at + lane / 4));
      }
    }
  round_to_tf32<T>(to);
}

template <class T, int kM, int kN>
__device__ __forceinline__ void multiply(WarpSums<kM, kN>& sums, const LeftFragments<kM>& a,
                                         const RightFragments<kN>& b) {
#pragma unroll
  for (int m = 0; m < kM / 16; ++m)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
      if constexpr (sizeof(T) == 2)
        mma_m16n8k16<T>(sums.v[m][n], a[m], pair);
      else
        mma_m16n8k8(sums.v[m][n], a[m], pair);
    }
}

}  // namespace fastcnn::cuda
