// From warps' sums to y, eight rows of each warp at a time.
#pragma once
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/conv2d_mma_copies.cuh"

namespace fastcnn::cuda {

// Rows 8 part to 8 part + 7 of every warp's sums: of a lane two neighbouring columns of each instruction's eight.
template <class S>
struct MmaRows {
  using T = typename S::T;
  static constexpr int kWarpsN = S::kN / S::kWarpN, kRows = S::kM / S::kWarpM * 8, kParts = S::kWarpM / 8;
  static constexpr int kOutRow = S::kN + 8;  // 8 floats more keep the fragments' rows on different banks
  static constexpr int kVector = kChunk<T>, kChunks = S::kN / kVector, kRowsAtOnce = S::kThreads / kChunks;
  static constexpr size_t kBytes = kRows * kOutRow * sizeof(float);
  static_assert(kBytes <= sizeof(typename S::Stage) * S::kStages);
  using Sums = Vec<float, 2>[S::kWarpN / 8];

  __device__ __forceinline__ static int pixel_of(const MmaPlace& at, int row, int part) {
    return at.m0 + row / 8 * S::kWarpM + part * 8 + row % 8;
  }
  __device__ __forceinline__ static int row() { return int(threadIdx.x) / kWarp / kWarpsN * 8 + threadIdx.x % 32 / 4; }
  __device__ __forceinline__ static int column() {
    return int(threadIdx.x) / kWarp % kWarpsN * S::kWarpN + threadIdx.x % 4 * 2;
  }

  __device__ __forceinline__ static void store(const MmaParams& p, const MmaPlace& at, float* out, int part,
                                               const Sums& sums) {
    if (sizeof(T) == 2 || p.chunks)
      store_chunks(p, at, out, part, sums);
    else if constexpr (sizeof(T) == 4)
      store_elements(p, at, part, sums);
  }

  // To NHWC, through shared memory, so that each thread stores 16 bytes of a pixel's channels at once.
  __device__ __forceinline__ static void store_chunks(const MmaParams& p, const MmaPlace& at, float* out, int part,
                                                      const Sums& sums) {
    const Conv2d& c = p.conv;
    sync_block();
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n)
      store_shared(reinterpret_cast<Vec<float, 2>*>(out + row() * kOutRow + column() + n * 8), sums[n]);
    sync_block();
    const int thread = threadIdx.x, chunk = thread % kChunks * kVector, o = at.n0 + chunk;
    if (thread >= kRowsAtOnce * kChunks || o >= int(c.g.group_out)) return;
    const int64_t channel = at.group * c.g.group_out + o;
    float bias[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) bias[v] = bias_of<T>(c, channel + v);
    for (int r = thread / kChunks; r < kRows; r += kRowsAtOnce) {
      const int pixel = pixel_of(at, r, part);
      if (pixel >= p.pixels) continue;
      uint32_t oh, ow;
      const int n = p.divide(pixel, oh, ow);
      Vec<T, kVector> y, residual{};
      if (c.residual)
        residual = load(reinterpret_cast<const Vec<T, kVector>*>(static_cast<const T*>(c.residual) + n * c.rm.sn +
                                                                 oh * c.rm.sh + ow * c.rm.sw + channel));
#pragma unroll
      for (int v = 0; v < kVector; v += 4) {
        const auto sum = load_shared(reinterpret_cast<const Vec<float, 4>*>(out + r * kOutRow + chunk + v));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float value = sum.v[e] + bias[v + e];
          if (c.residual) value += to_float(residual.v[v + e]);
          y.v[v + e] = from_float<T>(activated(value, c.relu));
        }
      }
      cuda::store(reinterpret_cast<Vec<T, kVector>*>(static_cast<T*>(c.y) + n * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw +
                                                     channel),
                  y);
    }
  }

  // To any strides, element by element: eight neighbouring pixels of four channels at once are whole sectors of NCHW.
  __device__ __forceinline__ static void store_elements(const MmaParams& p, const MmaPlace& at, int part,
                                                        const Sums& sums) {
    const Conv2d& c = p.conv;
    const int pixel = pixel_of(at, row(), part);
    if (pixel >= p.pixels) return;
    uint32_t oh, ow;
    const int image = p.divide(pixel, oh, ow);
    const int64_t from = image * c.rm.sn + oh * c.rm.sh + ow * c.rm.sw;
    const int64_t to = image * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw;
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int o = at.n0 + column() + n * 8 + i;
        if (o >= int(c.g.group_out)) continue;
        const int64_t channel = at.group * c.g.group_out + o;
        float value = sums[n].v[i] + bias_of<T>(c, channel);
        if (c.residual) value += to_float(load(static_cast<const T*>(c.residual) + from + channel * c.rm.sc));
        cuda::store(static_cast<T*>(c.y) + to + channel * c.ym.sc, from_float<T>(activated(value, c.relu)));
      }
  }
};

}  // namespace fastcnn::cuda
