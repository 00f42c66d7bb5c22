// Implicit GEMM, channels last: a tile of MR neighbouring output pixels by NV vectors of output channels stays in
// registers while the sum runs over all taps and input channels.
#include "cpu/conv2d_epilogue.h"
#include "cpu/conv2d_moments.h"
#include "cpu/conv2d_stage.h"
#include "cpu/conv2d_tile.h"
#include "cpu/vec.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// 512 KiB of float32: half of a 1 MiB L2.
constexpr int64_t kWeightElements = 128 * 1024;

// The tap rows that meet x for output row oh: the others would only add zeros, from the padding or from between the
// rows of a gradient that a stride has spread.
void skip_zero_rows(const ConvGeometry& g, const Map& xm, int64_t oh, Runs& runs) {
  const int64_t top = oh * g.sh - g.ph;
  const auto meets = [&](int64_t i) { return stage_index(top + i * g.dh, g.zh, xm.h, g.padding) >= 0; };
  runs.first = 0;
  while (runs.first < g.kh && !meets(runs.first)) ++runs.first;
  runs.every = 1;
  while (runs.every < g.zh && runs.every * g.dh % g.zh) ++runs.every;
  runs.last = g.kh;
  while (runs.last > runs.first && !meets(runs.last - 1)) --runs.last;
}

struct Block {  // what one task computes
  int64_t n, group, oh0, oh1, ow0, ow1, panel0, panel1;
};

Block block_of(const Conv2dParams& p, const Conv2dPlan& plan, int64_t task) {
  Block b;
  b.panel0 = task % plan.panel_tasks * plan.panels_per_task;
  b.panel1 = b.panel0 + plan.panels_per_task < plan.panels ? b.panel0 + plan.panels_per_task : plan.panels;
  task /= plan.panel_tasks;
  b.ow0 = task % plan.strips * plan.cols;
  b.ow1 = b.ow0 + plan.cols < p.ym.w ? b.ow0 + plan.cols : p.ym.w;
  task /= plan.strips;
  b.oh0 = task % plan.bands * plan.rows;
  b.oh1 = b.oh0 + plan.rows < p.ym.h ? b.oh0 + plan.rows : p.ym.h;
  task /= plan.bands;
  b.group = task % p.g.groups;
  b.n = task / p.g.groups;
  return b;
}

// The inputs of a block: x[row][col][channel or pair] at `at`, one row of output pixels `row` elements apart.
template <class E>
struct Source {
  const E* at;
  int64_t row, col;
};

template <class T, class E>
void compute(const Conv2dParams& p, const Conv2dPlan& plan, const Block& b, const Source<E>& source) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const ConvGeometry& g = p.g;
  const int64_t channels = terms(g, p.algorithm), panel = g.kh * g.kw * channels * L;
  const E* packed = static_cast<const E*>(p.packed) + b.group * plan.panels * panel;
  const A* bias = p.bias ? static_cast<const A*>(p.bias) + b.group * plan.panels * L : nullptr;

  // Neighbouring taps of a row read neighbouring inputs: one run per row of taps, unless dilation or other groups'
  // channels lie between them.
  const bool contiguous = g.kw == 1 || (g.dw == 1 && source.col == channels);
  Runs runs{
      0, 1, g.kh, contiguous ? 1 : g.kw, g.dh * source.row, g.dw * source.col, contiguous ? g.kw * channels : channels};

  const int64_t cols = b.ow1 - b.ow0;
  const bool narrow = cols <= kNarrowMR && b.panel1 - b.panel0 > 2;
  const int most = narrow ? kNarrowMR : kMR, vectors = narrow ? kMaxNV : 2;
  // Of a row's tiles the first `longer` have a pixel more than the others.
  const int64_t tiles = (cols + most - 1) / most, least = cols / tiles, longer = cols % tiles;
  const bool follows = g.kh * g.kw == 1 && g.sw == 1 && source.col == channels;  // the next tile's inputs on this one's
  const bool straight = whole_vectors<T>(p);
  alignas(64) A tile[kMR * 2 * L > kNarrowMR * kMaxNV * L ? kMR * 2 * L : kNarrowMR * kMaxNV * L];
  // Tile i of row oh by panels [v0, v1).
  const auto multiply = [&](int64_t oh, int64_t i, int64_t v0, int64_t v1) {
    const int pixels = int(least + (i < longer));
    const int64_t w0 = i * least + (i < longer ? i : longer), ow = b.ow0 + w0, c0 = b.group * g.group_out;
    const E* x = source.at + (oh - b.oh0) * g.sh * source.row + w0 * g.sw * source.col;
    const Out<A> out = straight ? out_of<T>(p, bias, b.n, c0, oh, ow) : Out<A>{};
    for (; v0 < v1; v0 += vectors) {
      const int nv = v1 - v0 < vectors ? int(v1 - v0) : vectors;
      const int64_t c = v0 * L, left = g.group_out - c, width = left < nv * L ? left : nv * L;
      const auto accumulate =
          follows && v0 == b.panel0 ? accumulate_for<A, E, true>(pixels, nv) : accumulate_for<A, E>(pixels, nv);
      const bool direct = straight && width == nv * L;
      accumulate(x, g.sw * source.col, runs, packed + v0 * panel, panel,
                 direct ? out.from(c) : Out<A>{tile, nv * L, nullptr, nullptr, 0, false});
      if (!direct) epilogue<T>(p, tile, nv * L, pixels, width, bias ? bias + c : nullptr, b.n, c0 + c, oh, ow);
    }
  };
  // Weights that stay in L2 pass by each tile of inputs, which then comes from L1; else each panel of weights passes by
  // the whole block.
  const bool weights_stay = (b.panel1 - b.panel0) * panel <= kWeightElements;
  const int64_t at_once = weights_stay ? b.panel1 - b.panel0 : vectors;
  for (int64_t v0 = b.panel0; v0 < b.panel1; v0 += at_once)
    for (int64_t oh = b.oh0; oh < b.oh1; ++oh) {
      skip_zero_rows(g, p.xm, oh, runs);
      for (int64_t i = 0; i < tiles; ++i) multiply(oh, i, v0, b.panel1 - v0 < at_once ? b.panel1 : v0 + at_once);
    }
}

// S: the elements of the copy of x.
template <class T, class E, class S>
void tasks(const Conv2dParams& p, const Conv2dPlan& plan, S* scratch, int64_t begin, int64_t end) {
  const ConvGeometry& g = p.g;
  int64_t staged = -1;
  for (int64_t task = begin; task < end; ++task) {
    const Block b = block_of(p, plan, task);
    const int64_t h0 = b.oh0 * g.sh - g.ph, w0 = b.ow0 * g.sw - g.pw;
    if (plan.staged) {
      const StageWindow window{h0,
                               w0,
                               (b.oh1 - b.oh0 - 1) * g.sh + (g.kh - 1) * g.dh + 1,
                               (b.ow1 - b.ow0 - 1) * g.sw + (g.kw - 1) * g.dw + 1,
                               g.zh,
                               g.zw,
                               b.group * g.group_in,
                               g.group_in,
                               g.padding,
                               terms(g, p.algorithm) * int64_t(sizeof(E) / sizeof(S))};
      if (task / plan.panel_tasks != staged) {  // tasks that differ in their panels share the copy
        staged = task / plan.panel_tasks;
        stage(static_cast<const T*>(p.x), p.xm, b.n, window, scratch);
      }
      const int64_t channels = terms(g, p.algorithm);
      compute<T, E>(p, plan, b, {reinterpret_cast<const E*>(scratch), window.cols * channels, channels});
    } else if constexpr (sizeof(T) == sizeof(Acc<T>)) {
      const T* x = static_cast<const T*>(p.x) + b.n * p.xm.sn + b.group * g.group_in + h0 * p.xm.sh + w0 * p.xm.sw;
      compute<T, E>(p, plan, b, {x, p.xm.sh, p.xm.sw});
    }
    if (p.moments) {
      const int64_t c0 = b.group * g.group_out, last = b.panel1 * kLanes<T>;
      moments<T>(p, b.n, b.oh0, b.oh1, b.ow0, b.ow1, c0 + b.panel0 * kLanes<T>,
                 c0 + (last < g.group_out ? last : g.group_out));
    }
  }
}

}  // namespace

void conv2d_direct(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end) {
  if (p.algorithm == ConvAlgorithm::direct_bf16)
    return tasks<BFloat16, Bf16Pair>(p, plan, static_cast<BFloat16*>(scratch), begin, end);
  switch_dtype(p.dtype, [&](auto t) {
    using A = Acc<decltype(t)>;
    tasks<decltype(t), A>(p, plan, static_cast<A*>(scratch), begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
