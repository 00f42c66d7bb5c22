// What the threads of a block copy of a convolution's operands for a step of its matrix product, by layout.
#pragma once
#include "cuda/conv2d_taps.cuh"
#include "cuda/divisor.h"
#include "cuda/mma_tile.cuh"

namespace fastcnn::cuda {

// A block computes kM pixels x kN channels.
template <class T_, int kM_, int kN_>
struct MmaShape : MmaTraits<kM_, kN_> {
  using T = T_;
  using MmaTraits<kM_, kN_>::kThreads;
  static constexpr int kM = kM_, kN = kN_;
  static constexpr int kRows = kThreads / 4;  // rows of four chunks that all threads copy at once
  struct Stage {
    T a[kM * kDepth<T>], b[kN * kDepth<T>];
  };
};

// Output pixels and channels of a block.
struct MmaPlace {
  int m0, n0, group;
};

struct MmaParams {
  Conv2d conv;
  int pixels, steps, sum, filled;  // sum: taps times channels; filled: outputs of a group in the packed weight
  int whole, chunk;                // tiles that a block computes alone; steps of each block of the others
  bool chunks;                     // y and residual take 16 bytes of channels at once
  int64_t x_row, x_column;         // from a tap to the one below and beside
  Divisor by_h, by_w, by_columns, by_rows, by_pieces, by_channels, by_channel_steps, by_kw;

  // A pixel of y to image, row and column.
  __device__ __forceinline__ int divide(int pixel, uint32_t& h, uint32_t& w) const {
    return int(by_h.divide(by_w.divide(pixel, w), h));
  }
  template <class T>
  __device__ __forceinline__ Window<T> window(int pixel) const {
    uint32_t oh, ow;
    const int n = divide(pixel < pixels ? pixel : 0, oh, ow);
    return Window<T>(conv, pixel < pixels, n, int(oh), int(ow));
  }
  // A tap's bits, and how far its elements lie behind the first one's.
  __device__ __forceinline__ uint32_t tap(uint32_t index, int64_t& x) const {
    uint32_t j;
    const uint32_t i = by_kw.divide(index, j);
    x = i * x_row + j * x_column;
    return kFirstRow << i | kFirstColumn << j;
  }
};

// x in NHWC: of several pixels the same chunk of a step. A step runs on from one tap to the next.
template <class S>
struct PixelCopies {
  using T = typename S::T;
  static constexpr int kCount = S::kM / S::kRows;
  Window<T> windows[kCount];
  int chunk, place;

  __device__ __forceinline__ PixelCopies(const MmaParams& p, const MmaPlace& at) {
    const int thread = threadIdx.x, row = thread / 4;
    chunk = thread % 4 * kChunk<T>, place = row * kDepth<T> + inner_chunk(row, thread % 4) * kChunk<T>;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      windows[u] = p.window<T>(at.m0 + row + u * S::kRows);
      windows[u].x += at.group * p.conv.g.group_in;
    }
  }
  // Also: where the step's rows of the weight start, and how many there are.
  __device__ __forceinline__ void start(T* a, const MmaParams& p, int step, int& first, int& rows) const {
    first = step * kDepth<T>, rows = p.sum - first;
    uint32_t channel;
    int64_t x;
    const uint32_t index = p.by_channels.divide(first + chunk, channel), bits = p.tap(index, x);
    const uint32_t tap = chunk < rows ? bits : kNowhere;
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      cp_async<16>(a + place + u * S::kRows * kDepth<T>, windows[u].x + x + channel, windows[u].holds(tap));
  }
  __device__ __forceinline__ static void load(LeftFragments<S::kWarpM>& to, const T* a, int first, int k, int lane) {
    load_left_inner<T, S::kWarpM>(to, a + first * kDepth<T>, k, lane);
  }
};

// x of 32 bits in NCHW: of one pixel several channels, one by one, as a tap shifts them by any number of elements. A
// step keeps to one tap.
template <class S>
struct PlaneCopies {
  using T = typename S::T;
  static constexpr int kNext = S::kThreads / S::kM, kCount = kDepth<T> / kNext;
  static constexpr int kPlaces = 4 / kNext;  // after which a row's chunks are swapped alike
  static_assert(S::kThreads % S::kM == 0 && 4 % kNext == 0);
  Window<T> window;
  int channel, places[kPlaces];

  __device__ __forceinline__ PlaneCopies(const MmaParams& p, const MmaPlace& at) {
    const int pixel = threadIdx.x % S::kM;
    channel = threadIdx.x / S::kM;
    window = p.window<T>(at.m0 + pixel);
    window.x += (at.group * p.conv.g.group_in + channel) * p.conv.xm.sc;
    keep(window.x), keep(channel);
#pragma unroll
    for (int u = 0; u < kPlaces; ++u) {
      const int row = channel + u * kNext;
      places[u] = row * S::kM + outer_chunk<T>(row, pixel / 4) * 4 + pixel % 4;
      keep(places[u]);
    }
  }
  __device__ __forceinline__ void start(T* a, const MmaParams& p, int step, int& first, int& rows) const {
    const int channels = int(p.conv.g.group_in);
    const int64_t plane = p.conv.xm.sc, next = kNext * plane;
    uint32_t channel_step;
    int64_t x;
    const uint32_t index = p.by_channel_steps.divide(step, channel_step), tap = p.tap(index, x);
    const int from = int(channel_step) * kDepth<T>;
    first = int(index) * channels + from, rows = channels - from;
    const int valid = window.holds(tap) ? rows - channel : 0;
    const T* source = window.x + x + from * plane;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      cp_async<4>(a + places[u % kPlaces] + u / kPlaces * 4 * S::kM, source, u * kNext < valid);
      source += next;
    }
  }
  __device__ __forceinline__ static void load(LeftFragments<S::kWarpM>& to, const T* a, int first, int k, int lane) {
    load_left_outer<T, S::kWarpM, S::kM>(to, a, first, k, lane);
  }
};

// A packed weight of 16 bits, the sum's index innermost: of several outputs the same chunk.
template <class S, int kBytes = sizeof(typename S::T)>
struct WeightCopies {
  using T = typename S::T;
  static constexpr int kCount = S::kN / S::kRows;
  const T* w[kCount];
  bool exists[kCount];
  int chunk, place;

  __device__ __forceinline__ WeightCopies(const MmaParams& p, const MmaPlace& at) {
    const Conv2d& c = p.conv;
    const int thread = threadIdx.x, row = thread / 4, outputs = int(c.g.group_out);
    chunk = thread % 4 * kChunk<T>, place = row * kDepth<T> + inner_chunk(row, thread % 4) * kChunk<T>;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int o = at.n0 + row + u * S::kRows;
      exists[u] = o < outputs;
      w[u] = static_cast<const T*>(c.w) + at.group * c.ws.g + (exists[u] ? o : 0) * c.ws.o + chunk;
    }
  }
  __device__ __forceinline__ void start(T* b, const MmaParams&, int first, int rows) const {
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      cp_async<16>(b + place + u * S::kRows * kDepth<T>, w[u] + first, chunk < rows && exists[u]);
  }
  __device__ __forceinline__ static void load(RightFragments<S::kWarpN>& to, const T* b, int first, int k, int lane) {
    load_right_inner<T, S::kWarpN>(to, b + first * kDepth<T>, k, lane);
  }
};

// Of 32 bits, rounded to TF32 as it was packed, its outputs innermost and filled up to whole chunks.
template <class S>
struct WeightCopies<S, 4> {
  using T = typename S::T;
  static constexpr int kChunks = S::kN / kChunk<T>, kCount = kDepth<T> * kChunks / S::kThreads;
  static_assert(kDepth<T> * kChunks % S::kThreads == 0);
  const T* w[kCount];
  int places[kCount];
  bool exists[kCount];

  __device__ __forceinline__ static int row(int u) { return (threadIdx.x + u * S::kThreads) / kChunks; }
  __device__ __forceinline__ static int chunk(int u) { return (threadIdx.x + u * S::kThreads) % kChunks; }
  __device__ __forceinline__ WeightCopies(const MmaParams& p, const MmaPlace& at) {
    const Conv2d& c = p.conv;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int o = at.n0 + chunk(u) * kChunk<T>;
      exists[u] = o < p.filled;
      w[u] = static_cast<const T*>(c.w) + at.group * c.ws.g + row(u) * c.ws.c + (exists[u] ? o : 0);
      places[u] = row(u) * S::kN + outer_chunk<T>(row(u), chunk(u)) * kChunk<T>;
      keep(w[u]), keep(places[u]);
    }
  }
  __device__ __forceinline__ void start(T* b, const MmaParams& p, int first, int rows) const {
    const int64_t from = first * p.conv.ws.c;
#pragma unroll
    for (int u = 0; u < kCount; ++u) cp_async<16>(b + places[u], w[u] + from, row(u) < rows && exists[u]);
  }
  __device__ __forceinline__ static void load(RightFragments<S::kWarpN>& to, const T* b, int first, int k, int lane) {
    load_right_outer<T, S::kWarpN, S::kN, true>(to, b, first, k, lane);
  }
};

}  // namespace fastcnn::cuda
