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

// out[point*point_step + c] of one 6x6 tile of x, whole vectors of channels, zeros behind the last.
template <class A>
inline void transform_input(const A* x, int64_t row, int64_t col, int64_t channels, A* out, int64_t point_step) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t c = 0; c < channels; c += L) {
    const int n = channels - c < L ? int(channels - c) : L;
    square<kIn, kIn, A>([&](int i, int j) { return load_part(x + i * row + j * col + c, n); },
                        [](const auto& d, auto& o) { input<A>(d, o); },
                        [&](int i, int j, V<A> v) { store(out + (i * kIn + j) * point_step + c, v); });
  }
}

// out[point][tile][step] of channels [c0, c0+channels) for all tiles of the block. Tiles over the border, and all of
// them where `staged` is set, are transformed from a padded copy in the accumulator type.
template <class T>
void transform_inputs(const void* data, const Map& m, const ConvGeometry& g, int64_t c0, int64_t channels, bool staged,
                      const TileBlock& block, Acc<T>* copy, Acc<T>* out, int64_t step) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(data);
  const int64_t point_step = block.tiles() * step;
  for (int64_t t = 0; t < block.tiles();) {
    const TileBlock::Tile tile = block.tile(t);
    const int64_t h = tile.h - g.ph, w = tile.w - g.pw;
    const bool inside = h >= 0 && w >= 0 && h + kIn <= m.h && w + kIn <= m.w;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (!staged && inside) {
        transform_input(x + tile.n * m.sn + h * m.sh + w * m.sw + c0, m.sh, m.sw, channels, out + t++ * step,
                        point_step);
        continue;
      }
    }
    const int64_t count = staged ? block.cols - t % block.cols : 1, cols = (count - 1) * kOut + kIn;
    stage(x, m, tile.n, {h, w, kIn, cols, 1, 1, c0, channels, g.padding, channels}, copy);
    for (int64_t i = 0; i < count; ++i)
      transform_input(copy + i * kOut * channels, cols * channels, channels, channels, out + t++ * step, point_step);
  }
}

}  // namespace fastcnn::FASTCNN_ISA::winograd
