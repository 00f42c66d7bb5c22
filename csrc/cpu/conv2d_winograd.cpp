// 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3): a block of 6x6 input tiles is transformed, each of the 36
// points is a matrix product over the input channels, and the sums are transformed back, all within L2.
#include "cpu/conv2d_epilogue.h"
#include "cpu/conv2d_moments.h"
#include "cpu/conv2d_stage.h"
#include "cpu/conv2d_tile.h"
#include "cpu/winograd_tiles.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

using namespace winograd;

constexpr int kVectors = 2;  // panels that are multiplied at once

// sums[point][tile][v*L..] = sum over c of inputs[point][tile][c] * w[v][point][c][..]
template <class A>
void multiply(const A* inputs, int64_t step, int64_t tiles, int64_t channels, const A* w, int nv, A* sums) {
  constexpr int L = Vec<A>::lanes;
  const Runs runs{0, 1, 1, 1, 0, 0, channels};
  const int64_t chunks = (tiles + kMR - 1) / kMR, panel = kPoints * channels * L;
  for (int point = 0; point < kPoints; ++point)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t t = i * tiles / chunks, count = (i + 1) * tiles / chunks - t, at = point * tiles + t;
      const Out<A> out{sums + at * nv * L, nv * L, nullptr, nullptr, 0, false};
      accumulate_for<A, A>(int(count), nv)(inputs + at * step, step, runs, w + point * channels * L, panel, out);
    }
}

// The sums of one tile and `width` output channels from oc on, transformed back, with bias, residual and ReLU.
template <class T>
void finish(const Conv2dParams& p, const Acc<T>* sums, int64_t point_step, int64_t width, const Acc<T>* bias,
            int64_t oc, const TileBlock::Tile& tile) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  alignas(64) A out[kOut][kOut][kVectors * L];
  for (int64_t c = 0; c < width; c += L)
    square<kIn, kOut, A>([&](int i, int j) { return load(sums + (i * kIn + j) * point_step + c); },
                         [](const auto& m, auto& o) { output<A>(m, o); },
                         [&](int i, int j, V<A> v) { store(&out[i][j][c], v); });
  const int64_t rows = p.ym.h - tile.h < kOut ? p.ym.h - tile.h : kOut;
  const int64_t cols = p.ym.w - tile.w < kOut ? p.ym.w - tile.w : kOut;
  for (int64_t i = 0; i < rows; ++i)
    epilogue<T>(p, out[i][0], kVectors * L, int(cols), width, bias, tile.n, oc, tile.h + i, tile.w);
}

template <class T>
void tasks(const Conv2dParams& p, const Conv2dPlan& plan, Acc<T>* scratch, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const ConvGeometry& g = p.g;
  const int64_t channels = g.group_in, step = winograd_step(channels, L), panel = kPoints * channels * L;
  const TileGrid grid{p.ym.h, p.ym.w, plan.rows, plan.cols};
  A* const staged = scratch;
  A* const inputs = staged + plan.scratch_stage;
  int64_t transformed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % plan.panel_tasks, group = task / plan.panel_tasks % g.groups;
    const TileBlock block = grid.block(task / plan.panel_tasks / g.groups, p.ym.n);
    const int64_t tiles = block.tiles(), panel0 = part * plan.panels_per_task;
    const int64_t panel1 = panel0 + plan.panels_per_task < plan.panels ? panel0 + plan.panels_per_task : plan.panels;
    if (task / plan.panel_tasks != transformed) {  // tasks that differ in their panels share the inputs
      transformed = task / plan.panel_tasks;
      transform_inputs<T>({p.x, p.xm, group * channels, channels, g.ph, g.pw, plan.staged}, block, staged, inputs, step,
                          tiles * step);
    }
    A* const sums = inputs + kPoints * tiles * step;
    for (int64_t v0 = panel0; v0 < panel1; v0 += kVectors) {
      const int nv = panel1 - v0 < kVectors ? int(panel1 - v0) : kVectors;
      const int64_t oc = v0 * L, left = g.group_out - oc, width = left < nv * L ? left : nv * L;
      multiply(inputs, step, tiles, channels, static_cast<const A*>(p.packed) + (group * plan.panels + v0) * panel, nv,
               sums);
      const A* bias = p.bias ? static_cast<const A*>(p.bias) + group * plan.panels * L + oc : nullptr;
      for (int64_t t = 0; t < tiles; ++t)
        finish<T>(p, sums + t * nv * L, tiles * nv * L, width, bias, group * g.group_out + oc, block.tile(t));
    }
    if (p.moments) {
      const int64_t c0 = group * g.group_out, last = panel1 * L;
      for (int64_t t = 0; t < tiles; t += block.cols) {
        const TileBlock::Tile at = block.tile(t);
        const int64_t h1 = at.h + kOut < p.ym.h ? at.h + kOut : p.ym.h;
        const int64_t w1 = at.w + block.cols * kOut < p.ym.w ? at.w + block.cols * kOut : p.ym.w;
        moments<T>(p, at.n, at.h, h1, at.w, w1, c0 + panel0 * L, c0 + (last < g.group_out ? last : g.group_out));
      }
    }
  }
}

}  // namespace

void conv2d_winograd(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    tasks<T>(p, plan, static_cast<Acc<T>*>(scratch), begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
