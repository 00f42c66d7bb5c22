// Networks' first layers: convolutions of a few input channels. Which there are, what a block of their kernels
// computes, and the part of the image that it keeps in shared memory.
#pragma once
#include <algorithm>

#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

// The inputs of a window's row adjoin in NHWC, and in shared memory always: the sum runs over rows of windows, not over
// taps and channels, so that few channels cost nothing.
struct FirstTile {
  int rows, columns;  // of outputs
  int height, width;  // of the inputs that their windows cover
  int pitch, copy;    // elements from row to row; to a second copy one element on, or 0: there is none
  int warps;          // along the outputs
};

// Output channels of a block, a multiple of 32.
inline int first_channels(const ConvGeometry& g) {
  if (g.group_out <= 32) return 32;
  return ceil_div(g.group_out, 96) * 96 < ceil_div(g.group_out, 64) * 64 ? 96 : 64;
}

// Of a window's row, elements in pairs (16-bit types) or alone; what adds to a window's place from pixel to pixel.
inline int64_t first_row(const ConvGeometry& g) { return g.kw * g.group_in; }
inline int64_t first_step(const ConvGeometry& g) { return g.sw * g.group_in; }

inline int64_t first_halo_bytes(const FirstTile& t, Dtype dtype) {
  return (t.copy + int64_t{t.height} * t.pitch) * size_of(dtype);
}

// Shared memory beside the halo: stages of weights and, of 16-bit types, where the sum's pairs lie in it.
inline int64_t first_weight_bytes(const ConvGeometry& g, Dtype dtype) {
  const int channels = first_channels(g);
  if (dtype == Dtype::f32) return kFirstStages * kFirstDepth * channels * 4;
  const int64_t steps = ceil_div(g.kh * ceil_div(first_row(g), 2), kFirstPairs);
  return kFirstStages * kFirstPairs * channels * 4 + steps * kFirstPairs * 8;
}

inline FirstTile shape_first_tile(const ConvGeometry& g, Dtype dtype, int rows, int columns) {
  FirstTile t{rows, columns, int((rows - 1) * int64_t{g.sh} + g.kh), int((columns - 1) * int64_t{g.sw} + g.kw), 0,
              0,    0};
  const int64_t pixels = int64_t{rows} * columns;
  if (dtype == Dtype::f32) {
    t.pitch = int(ceil_div(t.width * g.group_in, 4) * 4), t.warps = int(ceil_div(pixels, kFirstPixels));
    return t;
  }
  ++t.width;  // a row's last pair may reach into the next pixel
  // Modulo all banks rows of pairs adjoin, and the copy for windows at odd places lies in the other half.
  const int64_t row = ceil_div(first_row(g), 2), words = ceil_div(t.width * g.group_in, 2);
  const int64_t pitch = words + ((row - words) % 32 + 32) % 32;
  t.pitch = int(pitch * 2), t.warps = std::max(kFirstWarps, int(ceil_div(pixels, kWarpPixels)));
  if (first_step(g) % 2) t.copy = int(ceil_div(pitch * t.height - 16, 32) * 32 + 16) * 2;
  return t;
}

// Tiles in which the fewest warps compute an image, as large as leaves each of an H100's 132 processors one. No rows:
// shared memory does not hold even the least.
inline FirstTile first_tile(const ConvGeometry& g, int64_t n, int64_t h, int64_t w, Dtype dtype) {
  const bool half = dtype != Dtype::f32;
  const int channels = first_channels(g), unit = half ? kFirstWarps * kWarpPixels : kFirstPixels, step = half ? 8 : 1;
  const int most = half ? (channels == 96 ? 192 : 256) : (channels == 32 ? 256 : 128);
  const int64_t room = kSharedBytes - first_weight_bytes(g, dtype);
  FirstTile found{};
  for (int pixels = most; pixels >= unit; pixels /= 2) {
    FirstTile best{};
    int64_t least = INT64_MAX, blocks = 0;
    for (int most_rows = 1; most_rows <= pixels / 8 && most_rows <= h; ++most_rows) {
      const int64_t across = ceil_div(w, pixels / most_rows / step * step), down = ceil_div(h, most_rows);
      const int64_t columns = ceil_div(ceil_div(w, across), step) * step, rows = ceil_div(h, down);
      const FirstTile t = shape_first_tile(g, dtype, int(rows), int(columns));
      const int64_t cost = across * down * t.warps;
      const bool better = cost < least || (cost == least && t.height * t.pitch < best.height * best.pitch);
      if (better && first_halo_bytes(t, dtype) <= room) best = t, least = cost, blocks = across * down;
    }
    if (best.rows) found = best;
    if (best.rows && n * blocks * ceil_div(g.group_out, channels) >= 132) break;
  }
  return found;
}

// The weight gradient's blocks go from tile to tile of 8x8 outputs, each of which they lay out as two matrices, at most
// 128 output channels and 192 weights wide.
constexpr int kFirstSide = 8;
inline int64_t first_weight_grad_bytes(const ConvGeometry& g, Dtype dtype) {
  return kFirstSide * kFirstSide * (128 + 192) * size_of(dtype) +
         first_halo_bytes(shape_first_tile(g, dtype, kFirstSide, kFirstSide), dtype);
}

// Of windows whose rows are runs of inputs: not dilated.
inline bool has_few_inputs(const ConvGeometry& g) {
  return g.groups == 1 && g.group_in >= 1 && g.group_in <= kFirstInputs && g.dh == 1 && g.dw == 1 &&
         std::max({g.kh, g.kw, g.sh, g.sw}) <= kMostTaps;
}

// A block computes 32 outputs at least, there or not: fewer than half of them are left to the direct kernel, but on
// tensor cores an eighth is quicker still.
inline bool is_first_layer(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w) {
  return dtype != Dtype::f64 && has_few_inputs(g) && g.group_out >= (dtype == Dtype::f32 ? 16 : 4) &&
         first_tile(g, 1, h, w, dtype).rows > 0;
}

}  // namespace fastcnn::cuda
