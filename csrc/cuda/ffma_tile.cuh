// A block's matrix product in float32 by fused multiply-adds: both operands in shared memory with the sum's index
// outermost, eight by eight sums a thread.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

constexpr int kFfmaDepth = 8;

// Element i of a thread's eight rows (columns): two runs of four.
struct ThreadPlace {
  int m, n;
  __device__ __forceinline__ int row(int i) const { return m + i / 4 * 16 + i % 4; }
  __device__ __forceinline__ int column(int i) const { return n + i / 4 * 32 + i % 4; }
};

template <int kM, int kN>
struct FfmaTile {
  static constexpr int kDepth = kFfmaDepth, kThreads = kM / 8 * (kN / 8), kStages = 4;
  static constexpr int kBlocks = kThreads == 256 ? 2 : 384 / kThreads;  // of a processor: 128, else 168 registers
  // Four more floats a row: copies of 8 indices of the sum by 4 others, a warp's, fall on 32 banks.
  struct Stage {
    float a[kDepth][kM + 4], b[kDepth][kN + 4];
  };
  // A warp's 32 rows and 64 columns. Of its lanes, l and l^1 read the same columns, l and l^2 ... the same rows, two
  // at a time: the processor serves 16-byte reads that pair up so at twice the rate.
  __device__ static ThreadPlace place(int thread) {
    const int lane = thread % kWarp, warp = thread / kWarp;
    const int row = lane / 16 * 2 + lane % 2, column = lane / 2 % 8;
    return {warp / (kN / 64) * 32 + row * 4, warp % (kN / 64) * 64 + column * 4};
  }
};

// sum[i][k] += over `steps` stages, each filled by fetch(stage), of a's row(i) times b's column(k).
template <class S, class Fetch>
__device__ __forceinline__ void run_stages(typename S::Stage* stages, int steps, const Fetch& fetch, float (&sum)[8][8],
                                           const ThreadPlace& at) {
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) {
    if (s < steps) fetch(stages[s]);
    cp_async_commit();
  }
  static_assert((S::kStages & (S::kStages - 1)) == 0);  // so that a stage's number is its step's last bits
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<S::kStages - 2>();
    sync_block();
    if (step + S::kStages - 1 < steps) fetch(stages[(step + S::kStages - 1) % S::kStages]);  // which all have left
    cp_async_commit();
    const typename S::Stage& stage = stages[step % S::kStages];
#pragma unroll
    for (int d = 0; d < S::kDepth; ++d) {
      Vec<float, 4> a[2], b[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[half] = load_shared(reinterpret_cast<const Vec<float, 4>*>(&stage.a[d][at.row(half * 4)]));
        b[half] = load_shared(reinterpret_cast<const Vec<float, 4>*>(&stage.b[d][at.column(half * 4)]));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[i][k] = fmaf(a[i / 4].v[i % 4], b[k / 4].v[k % 4], sum[i][k]);
    }
  }
}

}  // namespace fastcnn::cuda
