// How Winograd's kernels walk over a map of 4x4 output tiles, and the transformed inputs of a block of them.
#pragma once
#include "cpu/conv2d_stage.h"
#include "cpu/winograd.h"

namespace fastcnn::FASTCNN_ISA::winograd {

// Rows [row0, row0+rows) of tiles, counted through all images, and columns [col0, col0+cols).
struct TileBlock {
  struct Tile {
    int64_t n, h, w;  // image, first output row and column
  };

  int64_t row0, rows, col0, cols, down;  // down: rows of tiles of an image

  int64_t tiles() const { return rows * cols; }
  Tile tile(int64_t t) const {
    const int64_t row = row0 + t / cols;
    return {row / down, row % down * kOut, (col0 + t % cols) * kOut};
  }
};

// A map of h x w outputs, cut into blocks of `rows` x `cols` tiles.
struct TileGrid {
  int64_t h, w, rows, cols;

  TileBlock block(int64_t i, int64_t images) const {
    const int64_t down = (h + kOut - 1) / kOut, across = (w + kOut - 1) / kOut, strips = (across + cols - 1) / cols;
    const int64_t row0 = i / strips * rows, col0 = i % strips * cols;
    const auto part = [](int64_t left, int64_t most) { return left < most ? left : most; };
    return {row0, part(images * down - row0, rows), col0, part(across - col0, cols), down};
  }
};

// out[point*point_step + c] of one tile of x, Size x Size pixels; whole vectors of channels, zeros behind the last.
template <int Size, class A, class Transform>
inline void transform_tile(const A* x, int64_t row, int64_t col, int64_t channels, const Transform& transform, A* out,
                           int64_t point_step) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t c = 0; c < channels; c += L) {
    const int n = channels - c < L ? int(channels - c) : L;
    square<Size, kIn, A>([&](int i, int j) { return load_part(x + i * row + j * col + c, n); }, transform,
                         [&](int i, int j, V<A> v) { store(out + (i * kIn + j) * point_step + c, v); });
  }
}

// A tensor whose tiles are transformed: channels [c0, c0+channels); output pixel (0, 0) has its tile ph rows above and
// pw columns left of pixel (0, 0). staged: no vector of channels can be loaded from it.
struct TileSource {
  const void* data;
  Map map;
  int64_t c0, channels, ph, pw;
  bool staged;
};

// out[point][tile][step] for all tiles of the block, points point_step apart. Tiles over the border, and all of them
// where the source is staged, are transformed from a padded copy in the accumulator type.
template <class T, int Size, class Transform>
void transform_tiles(const TileSource& from, const TileBlock& block, const Transform& transform, Acc<T>* copy,
                     Acc<T>* out, int64_t step, int64_t point_step) {
  using A = Acc<T>;
  const Map& m = from.map;
  const T* x = static_cast<const T*>(from.data);
  for (int64_t t = 0; t < block.tiles();) {
    const TileBlock::Tile tile = block.tile(t);
    const int64_t h = tile.h - from.ph, w = tile.w - from.pw;
    const bool inside = h >= 0 && w >= 0 && h + Size <= m.h && w + Size <= m.w;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (!from.staged && inside) {
        const A* at = x + tile.n * m.sn + h * m.sh + w * m.sw + from.c0;
        transform_tile<Size>(at, m.sh, m.sw, from.channels, transform, out + t++ * step, point_step);
        continue;
      }
    }
    const int64_t count = from.staged ? block.cols - t % block.cols : 1, cols = (count - 1) * kOut + Size;
    stage(x, m, tile.n, {h, w, Size, cols, 1, 1, from.c0, from.channels, Padding::zeros, from.channels}, copy);
    for (int64_t i = 0; i < count; ++i)
      transform_tile<Size>(copy + i * kOut * from.channels, cols * from.channels, from.channels, from.channels,
                           transform, out + t++ * step, point_step);
  }
}

template <class T>
void transform_inputs(const TileSource& from, const TileBlock& block, Acc<T>* copy, Acc<T>* out, int64_t step,
                      int64_t point_step) {
  transform_tiles<T, kIn>(
      from, block, [](const auto& d, auto& o) { input<Acc<T>>(d, o); }, copy, out, step, point_step);
}

template <class T>
void transform_gradients(const TileSource& from, const TileBlock& block, Acc<T>* copy, Acc<T>* out, int64_t step,
                         int64_t point_step) {
  transform_tiles<T, kOut>(
      from, block, [](const auto& g, auto& o) { output_gradient<Acc<T>>(g, o); }, copy, out, step, point_step);
}

}  // namespace fastcnn::FASTCNN_ISA::winograd
