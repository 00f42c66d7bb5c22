// Mean and variance of a convolution's outputs, taken while a block holds a tile of them: of each channel the mean over
// the tile's pixels and the sum of squared deviations from it. A slot of BatchNormReluArgs' moments is a row of tiles.
#pragma once
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/mma_tile.cuh"

namespace fastcnn::cuda {

// A block's tile, and what it is of: pixels and channels from the first on that exist.
struct MomentTile {
  int slot, pixels, outputs;
  int64_t channel;  // the first, of y

  __device__ __forceinline__ MomentTile(const Conv2d& c, int all_pixels, int m0, int n0, int group, int rows)
      : slot(m0 / rows),
        pixels(all_pixels - m0),
        outputs(int(c.g.group_out) - n0),
        channel(int64_t(group) * c.g.group_out + n0) {
    if (pixels > rows) pixels = rows;
  }
};

// A thread holds value(i, k) of row(i) and column(k). Lanes that differ in the bits kRowLanes alone hold other rows of
// the same columns, and so do kWarps warps, this being number `warp`. memory: 2 * kWarps rows of kN floats, which the
// block's threads may still be reading.
template <int kN, int kWarps, int kRowLanes, int kRows, int kColumns, class Row, class Column, class Value>
__device__ __forceinline__ void tile_moments(const Conv2d& c, const MomentTile& tile, float* memory, int warp,
                                             const Row& row, const Column& column, const Value& value) {
  float* squares = memory + kWarps * kN;
  const int lane = threadIdx.x % kWarp;
  // Over the warp's rows of column k; the first of its lanes puts it down.
  const auto put = [&](float* to, int k, float sum) {
#pragma unroll
    for (int bit = 1; bit < kWarp; bit *= 2)
      if (kRowLanes & bit) sum += shuffle_xor(sum, bit);
    if ((lane & kRowLanes) == 0) store_shared(to + warp * kN + column(k), sum);
  };
  const auto total = [&](const float* from, int at) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += load_shared(from + w * kN + at);
    return sum;
  };
  const float count = float(tile.pixels);
  sync_block();
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (row(i) < tile.pixels) sum += value(i, k);
    put(memory, k, sum);
  }
  sync_block();
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    const float mean = total(memory, column(k)) / count;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float off = value(i, k) - mean;
      if (row(i) < tile.pixels) sum += off * off;
    }
    put(squares, k, sum);
  }
  sync_block();
  float* moments = static_cast<float*>(c.moments);
  for (int at = threadIdx.x; at < kN && at < tile.outputs; at += blockDim.x) {
    store(moments + (tile.channel + at) * c.slots + tile.slot, total(memory, at) / count);
    store(moments + (c.g.groups * c.g.group_out + tile.channel + at) * c.slots + tile.slot, total(squares, at));
  }
}

// Of the tensor cores' sums, as they will be stored.
template <class T, int kM, int kN, int kWarpM, int kWarpN>
__device__ __forceinline__ void mma_moments(const Conv2d& c, const MomentTile& tile, void* memory,
                                            const WarpSums<kWarpM, kWarpN>& sums, int warp_m, int warp_n) {
  constexpr int kRows = kWarpM / 8, kColumns = kWarpN / 4, kRowLanes = kWarp - 4;
  const int lane = threadIdx.x % kWarp;
  const auto row = [&](int i) { return warp_m * kWarpM + i * 8 + lane / 4; };
  const auto column = [&](int k) { return warp_n * kWarpN + k / 2 * 8 + lane % 4 * 2 + k % 2; };
  // In shared memory, from which both passes read it: else nvcc keeps all values beside the sums, which spills.
  float* bias = static_cast<float*>(memory) + 2 * (kM / kWarpM) * kN;
  sync_block();
  for (int at = threadIdx.x; at < kN; at += blockDim.x)
    store_shared(bias + at, at < tile.outputs ? float(bias_of<T>(c, tile.channel + at)) : 0.f);
  const auto value = [&](int i, int k) {
    return to_float(from_float<T>(sums.v[i / 2][k / 2][i % 2 * 2 + k % 2] + load_shared(bias + column(k))));
  };
  tile_moments<kN, kM / kWarpM, kRowLanes, kRows, kColumns>(c, tile, static_cast<float*>(memory), warp_m, row, column,
                                                            value);
}

}  // namespace fastcnn::cuda
