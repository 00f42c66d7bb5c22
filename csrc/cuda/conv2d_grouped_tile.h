// The halo tile of convolutions with few channels per group: which there are, and how large a block's is.
#pragma once
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

struct GroupedTile {
  int rows, columns, chunks;  // of outputs, and of 16 bytes of their channels
  int height, width;          // of the inputs that their windows cover
};

inline int64_t grouped_chunks(const ConvGeometry& g, Dtype dtype) {
  return g.groups * g.group_in * size_of(dtype) / 16;
}

// Depthwise convolutions and those of few channels per group: which the halo tile without tensor cores takes.
inline bool few_channels(const ConvGeometry& g, Dtype dtype) {
  if (g.group_in != g.group_out || dtype == Dtype::f64) return false;
  const bool some = g.groups > 1 && dtype == Dtype::f32 && (g.group_in == 8 || g.group_in == 16);
  return some || g.group_in == 1 || g.group_in == 2 || g.group_in == 4;
}

// Of the tile and its weights.
inline int64_t grouped_bytes(const ConvGeometry& g, Dtype dtype, const GroupedTile& t) {
  const int64_t weights = int64_t{g.kh} * g.kw * t.chunks * (16 / size_of(dtype)) * g.group_in;
  return int64_t{t.height} * t.width * t.chunks * 16 + weights * int64_t(sizeof(float));
}

// As many chunks as a line of all banks has, and as many rows as the threads that are left compute; fewer where shared
// memory does not hold what they read. No rows: it does not hold even the least tile.
inline GroupedTile grouped_tile(const ConvGeometry& g, int64_t h, int64_t w, Dtype dtype) {
  const int64_t all = grouped_chunks(g, dtype), group = ceil_div(g.group_in * size_of(dtype), 16);
  for (int chunks = 8; chunks >= group; chunks /= 2)
    for (int columns = 8; columns > 0; columns /= 2) {
      if ((chunks / 2 >= all && chunks > group) || (columns / 2 >= w && columns > 1)) continue;
      const int most = kGroupedThreads / (chunks * columns);
      for (int strips = most < 8 ? most : 8; strips > 0; strips /= 2) {
        const int rows = strips * kGroupedRows;
        if (rows / 2 >= h && strips > 1) continue;
        const int64_t height = (rows - 1) * int64_t{g.sh} + (g.kh - 1) * int64_t{g.dh} + 1;
        const int64_t width = (columns - 1) * int64_t{g.sw} + (g.kw - 1) * int64_t{g.dw} + 1;
        if (height > 1024 || width > 1024) continue;
        const GroupedTile t{rows, columns, chunks, int(height), int(width)};
        if (grouped_bytes(g, dtype, t) <= kSharedBytes) return t;
      }
    }
  return {};
}

// The weight gradient's.
struct GroupedGradTile {
  int rows, columns, chunks;  // of gradients, and of 16 bytes of their channels
  int height, width;          // of the inputs that their windows cover, in whole runs of taps
  int strips, inputs;         // of kGradPixels in a row; parts of four channels (or fewer) that a group has in x
  int units, lanes, threads;  // units: sums that a tile is read for; lanes: threads that share one, strip by strip
};

// Of the tile, whose place the threads' sums take in the end.
inline int64_t grouped_grad_bytes(const ConvGeometry& g, Dtype dtype, const GroupedGradTile& t) {
  const int64_t tile = (int64_t{t.height} * t.width + int64_t{t.rows} * t.columns) * t.chunks * 16;
  const int64_t of_unit = kGradTaps * kGradPart * (g.group_in < kGradPart ? g.group_in : kGradPart);
  const int64_t sums = int64_t{t.lanes} * t.units * of_unit * accumulator_size(dtype);
  return tile > sums ? tile : sums;
}

// As many chunks as a line of all banks has; fewer where the threads do not suffice for the taps, or shared memory for
// the windows. No rows: there is none.
inline GroupedGradTile grouped_grad_tile(const ConvGeometry& g, int64_t h, int64_t w, Dtype dtype) {
  const int64_t all = grouped_chunks(g, dtype), group = ceil_div(g.group_in * size_of(dtype), 16);
  const int64_t runs = g.kh * ceil_div(g.kw, kGradTaps), inputs = ceil_div(g.group_in, kGradPart);
  for (int chunks = 8; chunks >= group; chunks /= 2)
    for (int columns = 16; columns >= kGradPixels; columns /= 2)
      for (int rows = 8; rows > 0; rows /= 2) {
        if ((chunks / 2 >= all && chunks > group) || (columns / 2 >= w && columns > kGradPixels)) continue;
        if (rows / 2 >= h && rows > 1) continue;
        const int64_t units = runs * inputs * chunks * (16 / size_of(dtype)) / kGradPart;
        const int64_t height = (rows - 1) * int64_t{g.sh} + (g.kh - 1) * int64_t{g.dh} + 1;
        const int64_t width =
            (columns - 1) * int64_t{g.sw} + (ceil_div(g.kw, kGradTaps) * kGradTaps - 1) * int64_t{g.dw} + 1;
        if (units > kGroupedThreads || height > 1024 || width > 1024) continue;
        const int strips = columns / kGradPixels;
        const int most = kGroupedThreads / int(units), lanes = most < rows * strips ? most : rows * strips;
        const int threads = (lanes * int(units) + 31) / 32 * 32;
        const GroupedGradTile t{rows,   columns,     chunks,     int(height), int(width),
                                strips, int(inputs), int(units), lanes,       threads};
        if (grouped_grad_bytes(g, dtype, t) <= kSharedBytes) return t;
      }
  return {};
}

}  // namespace fastcnn::cuda
