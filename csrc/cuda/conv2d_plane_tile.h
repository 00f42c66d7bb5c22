// The halo tile of convolutions with 8 or 16 channels per group on tensor cores: in planes of 8 channels.
#pragma once
#include "cuda/tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::cuda {

// x lies as [chunk][row][column % sw][column / sw] of 16 bytes each: the inputs that a tap reads for eight neighbouring
// outputs adjoin whatever the tap, stride and dilation, and an ldmatrix meets no bank twice.
struct PlaneTile {
  int rows, columns, chunks;  // of outputs, in twos and eights, and of 8 of their channels
  int height, width;          // of the inputs that their windows cover
  int phase, row, plane;      // elements of 16 bytes from one column % sw, one row, one chunk to the next
};

// A unit: a tap and 8 of its group's channels. A step of the tensor cores takes two.
inline int64_t plane_units(const ConvGeometry& g) { return int64_t{g.kh} * g.kw * (g.group_in / 8); }
inline int64_t plane_steps(const ConvGeometry& g) { return (plane_units(g) + 1) / 2; }

inline PlaneTile plane_tile_of(const ConvGeometry& g, int rows, int columns, int chunks) {
  const int64_t height = (rows - 1) * int64_t{g.sh} + (g.kh - 1) * int64_t{g.dh} + 1;
  const int64_t width = (columns - 1) * int64_t{g.sw} + (g.kw - 1) * int64_t{g.dw} + 1;
  if (height > 1024 || width > 1024) return {};
  const int phase = int(ceil_div(width, g.sw)), row = phase * g.sw, plane = int(height) * row;
  // Copies of one pixel's chunks, which a quarter of a warp stores together, fall on different banks.
  const int apart = 8 / chunks % 8, filled = plane + (apart - plane % 8 + 8) % 8;
  return {rows, columns, chunks, int(height), int(width), phase, row, filled};
}

// As many chunks as a line of all banks has, fewer where shared memory does not hold the tile; of the tiles of up to
// 128 outputs those that copy the fewest bytes to cover the map. No rows: not even the least fits. copied, held: bytes
// that a tile copies to shared memory, and needs there.
template <class Copied, class Held>
PlaneTile plane_tile(const ConvGeometry& g, int64_t h, int64_t w, const Copied& copied, const Held& held) {
  constexpr int kShapes[][2] = {{8, 16}, {16, 8}, {8, 8}, {4, 16}, {4, 8}, {2, 8}};
  const int64_t all = g.groups * g.group_in / 8, group = g.group_in / 8;
  for (int chunks = 8; chunks >= group; chunks /= 2) {
    if (chunks / 2 >= all && chunks > group) continue;
    PlaneTile best{};
    int64_t least = 0;
    for (const auto& [rows, columns] : kShapes) {
      const PlaneTile t = plane_tile_of(g, rows, columns, chunks);
      if (!t.rows || held(t) > kSharedBytes) continue;
      const int64_t bytes = ceil_div(h, rows) * ceil_div(w, columns) * copied(t);
      if (!best.rows || bytes < least) best = t, least = bytes;
    }
    if (best.rows) return best;
  }
  return {};
}

// The convolution's: x, the weights, and a table of what to add to an output's place for each unit.
inline int64_t plane_operand_bytes(const ConvGeometry& g, const PlaneTile& t) {
  const int64_t steps = plane_steps(g), weights = steps * t.chunks * 32 * 8;
  return int64_t{t.plane} * t.chunks * 16 + weights + 2 * steps * 4;
}

// Of y in float32, which takes their place in the end: 8 floats more a pixel keep rows on different banks.
inline int64_t plane_bytes(const ConvGeometry& g, const PlaneTile& t) {
  const int64_t operands = plane_operand_bytes(g, t), sums = int64_t{t.rows} * t.columns * (t.chunks * 8 + 8) * 4;
  return operands > sums ? operands : sums;
}

inline PlaneTile plane_tile(const ConvGeometry& g, int64_t h, int64_t w) {
  return plane_tile(
      g, h, w, [&](const PlaneTile& t) { return plane_operand_bytes(g, t); },
      [&](const PlaneTile& t) { return plane_bytes(g, t); });
}

// The weight gradient's: x and, in planes without phases, the gradient.
inline int plane_of_grad(const PlaneTile& t) { return t.rows * t.columns + 8 / t.chunks % 8; }
inline int64_t plane_grad_bytes(const PlaneTile& t) { return (int64_t{t.plane} + plane_of_grad(t)) * t.chunks * 16; }
inline PlaneTile plane_grad_tile(const ConvGeometry& g, int64_t h, int64_t w) {
  return plane_tile(g, h, w, plane_grad_bytes, plane_grad_bytes);
}

}  // namespace fastcnn::cuda
