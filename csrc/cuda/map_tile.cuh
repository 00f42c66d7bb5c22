// How the pooling kernels share out a map (n, c, h, w) of either layout: a block takes `rows` by `columns` pixels of
// one image and `lanes` groups of V channels (NHWC), or pixels of one plane (NCHW, one lane of one channel), of several
// where they are small. Windows of neighbouring pixels overlap, and what they share then comes from the first-level
// cache of the block's processor.
#pragma once
#include "cuda/divisor.h"
#include "cuda/tiles.h"

namespace fastcnn::cuda {

struct MapTile {
  int64_t h, w;  // of the map
  int64_t channels;
  int64_t planes;  // n * c of NCHW, n of NHWC
  bool channels_last;
  int rows, columns, lanes;
  int stack;  // planes of a block
  Divisor by_lanes, by_columns, by_rows, column_tiles, row_tiles, lane_tiles;
  int64_t blocks;

  MapTile() = default;
  MapTile(bool nhwc, int64_t n, int64_t c, int64_t height, int64_t width, int vector)
      : h(height), w(width), channels(nhwc ? c : 1), planes(nhwc ? n : n * c), channels_last(nhwc) {
    const int64_t groups = channels / vector;
    lanes = int(groups < kPoolLanes ? groups : kPoolLanes);
    const int64_t pixels = kPoolElements / lanes;
    columns = int(w < pixels ? w : pixels);
    const int64_t fit = pixels / columns;
    rows = int(h < fit ? h : fit);
    const int64_t small = nhwc || rows < h || columns < w ? 1 : kPoolStacked / (rows * columns);
    stack = int(small < 1 ? 1 : small < planes ? small : planes);
    by_lanes = Divisor(lanes), by_columns = Divisor(columns), by_rows = Divisor(rows);
    const int64_t down = (h + rows - 1) / rows, across = (w + columns - 1) / columns;
    const int64_t deep = (groups + lanes - 1) / lanes;
    column_tiles = Divisor(across), row_tiles = Divisor(down), lane_tiles = Divisor(deep);
    blocks = ceil_div(planes, stack) * down * across * deep;
  }
  __host__ __device__ int size() const { return rows * columns * lanes * stack; }
};

template <int V>
struct MapBlock {
  const MapTile& t;
  mutable int64_t plane;  // that of the element that at() was last asked for
  int64_t plane0, c0;
  int row0, column0;

  __device__ explicit MapBlock(const MapTile& tile) : t(tile) {
    // lanes fastest, so that the blocks which run at the same time share a pixel's cache lines
    uint32_t lane, column, row;
    const uint32_t image =
        t.row_tiles.divide(t.column_tiles.divide(t.lane_tiles.divide(blockIdx.x, lane), column), row);
    plane = plane0 = int64_t(image) * t.stack, c0 = int64_t(lane) * t.lanes * V, row0 = int(row) * t.rows,
    column0 = int(column) * t.columns;
  }
  // Whether element e lies in the map, and where.
  __device__ bool at(int e, int64_t& c, int& row, int& column) const {
    uint32_t lane, i, r = t.by_columns.divide(t.by_lanes.divide(e, lane), i);
    if (t.stack > 1) plane = plane0 + t.by_rows.divide(r, r);
    row = row0 + int(r), column = column0 + int(i), c = c0 + int64_t(lane) * V;
    return row < t.h && column < t.w && c < t.channels && plane < t.planes;
  }
  // The element's offset in a map of this layout with `height` rows and `width` columns.
  __device__ int64_t offset(int64_t height, int64_t width, int row, int column, int64_t c) const {
    return ((plane * height + row) * width + column) * t.channels + c;
  }
};

}  // namespace fastcnn::cuda
