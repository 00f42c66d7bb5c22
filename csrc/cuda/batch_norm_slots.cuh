// How the first stage of a sum over a channel's pixels shares them out. NCHW: a warp a piece of a plane. NHWC: a block
// some pixels, its threads in rows of `columns`, a power of two, that read neighbouring channels.
#pragma once
#include "cuda/batch_norm_channels.cuh"
#include "cuda/reduce.cuh"

namespace fastcnn::cuda {
namespace {

// Vectors of a thread: 128 bytes, or, of single elements, as many requests as ptxas finds registers for.
template <int V>
constexpr int kSlotVectors = V == 1 ? 16 : 8;
constexpr int kWarpsOfBlock = kAffineThreads / kWarp;

struct SlotCut {
  ChannelSlots slots;
  int64_t c;
  int column_bits;                     // NHWC
  int turns;                           // of kSlotVectors vectors a thread
  int64_t units;                       // blocks of NHWC, warps of NCHW
  Divisor by_groups{};                 // NHWC: runs of channels that a block takes, of so many
  Divisor by_pieces{}, by_channels{};  // NCHW

  // As many turns, up to most_turns, as leave enough blocks: fewer and larger slots.
  SlotCut(const BatchNormReluArgs& p, bool nhwc, int vector, int64_t most_turns)
      : c(p.c), column_bits(log2_floor(2 * (p.c / vector) - 1, kWarpBits)), turns(1) {
    const int vectors = vector == 1 ? kSlotVectors<1> : kSlotVectors<2>;
    const int64_t groups = nhwc ? ceil_div(p.c / vector, int64_t{1} << column_bits) : p.c;
    const int64_t rows = nhwc ? 1 : p.n, row = p.pixels * (nhwc ? p.n : 1);
    const int64_t piece = nhwc ? (kAffineThreads >> column_bits) * vectors : kWarp * vectors * vector;
    const int64_t blocks = cut_channel(rows, row, piece).count * groups / (nhwc ? 1 : kWarpsOfBlock);
    while (turns * 2 <= most_turns && blocks / (turns * 2) >= kEnoughBlocks) turns *= 2;
    slots = cut_channel(rows, row, piece * turns);
    units = slots.count * groups;
    if (refused()) return;
    if (nhwc)
      by_groups = Divisor(groups);
    else
      by_pieces = Divisor(slots.per_row), by_channels = Divisor(p.c);
  }
  const char* refused() const { return units > kMostBlocks ? "the tensor is too large for one grid" : nullptr; }
};

// A thread's part of a slot.
template <class T, int V, bool kNhwc>
struct SlotShare {
  static constexpr int kVectors = kSlotVectors<V>, kChannels = kNhwc ? V : 1;
  int64_t channel, slot;  // the first of kChannels
  int64_t start, step;    // its first vector's elements, and from one to the next
  int pixels;             // of the slot
  int at, ahead;          // pixel of the first vector, and from one to the next
  int columns;
  bool exists, first;  // first: of those that share the channels

  __device__ __forceinline__ explicit SlotShare(const SlotCut& cut) {
    const ChannelSlots& s = cut.slots;
    uint32_t piece, c;
    if constexpr (kNhwc) {
      slot = piece = cut.by_groups.divide(blockIdx.x, c);
      columns = 1 << cut.column_bits;
      const int column = threadIdx.x & (columns - 1);
      at = int(threadIdx.x >> cut.column_bits), ahead = kAffineThreads >> cut.column_bits;
      channel = (int64_t(c) * columns + column) * V, exists = channel < cut.c, first = at == 0 && exists;
      start = (int64_t(piece) * s.piece + at) * cut.c + channel, step = ahead * cut.c;
    } else {
      const int64_t unit = int64_t(blockIdx.x) * kWarpsOfBlock + threadIdx.x / kWarp;
      exists = unit < cut.units;
      const uint32_t plane = cut.by_pieces.divide(exists ? uint32_t(unit) : 0, piece);
      slot = int64_t(cut.by_channels.divide(plane, c)) * s.per_row + piece;
      channel = c, columns = 1, at = int(threadIdx.x) % kWarp * V, ahead = kWarp * V, first = at == 0 && exists;
      start = int64_t(plane) * s.row + piece * s.piece + at, step = ahead;
    }
    const int64_t left = s.row - piece * s.piece;
    pixels = int(left < s.piece ? left : s.piece);
  }
  __device__ __forceinline__ bool holds(int u) const { return exists && at + u * ahead < pixels; }
  __device__ __forceinline__ Vec<T, V> vector(const void* tensor, int u) const {
    return load_if(holds(u), reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(tensor) + start + u * step));
  }

  // The sums over all threads that share the channels, in each of them.
  template <int N>
  __device__ __forceinline__ void total(Acc<T> (&value)[N]) const {
    if constexpr (kNhwc) {
      FASTCNN_SHARED(Acc<T>, memory);
      sum_rows(memory, ahead, columns, value);
      sync_block();
#pragma unroll
      for (int v = 0; v < N; ++v) value[v] = load_shared(memory + v * kAffineThreads + (threadIdx.x & (columns - 1)));
      sync_block();
    } else {
#pragma unroll
      for (int v = 0; v < N; ++v) value[v] = sum_lanes(value[v]);
    }
  }
};

// The launch of a kernel with N values for each channel.
template <class T, int N, bool kNhwc>
Launch slot_launch(const SlotCut& cut, void* stream) {
  const int64_t blocks = kNhwc ? cut.units : ceil_div(cut.units, kWarpsOfBlock);
  return {dim3(unsigned(blocks)), dim3(kAffineThreads), kNhwc ? kAffineThreads * N * sizeof(Acc<T>) : 0, stream};
}

// The second stage: a block a channel, in double.
constexpr int kStatisticsThreads = 256;
template <int N>
__device__ __forceinline__ void total_of_block(double* memory, double (&value)[N]) {
  sum_rows(memory, kStatisticsThreads, 1, value);
  sync_block();
#pragma unroll
  for (int v = 0; v < N; ++v) value[v] = load_shared(memory + v * kStatisticsThreads);
  sync_block();
}
inline Launch statistics_launch(int64_t channels, int values, void* stream) {
  return {dim3(unsigned(channels)), dim3(kStatisticsThreads), kStatisticsThreads * values * sizeof(double), stream};
}

}  // namespace
}  // namespace fastcnn::cuda
