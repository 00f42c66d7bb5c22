// Convolution with 1 (depthwise), 2, 4 or 8 channels per group, as many in as out: a vector of neighbouring channels
// holds whole groups, so input channel c of every group is one permutation of the input vector within its lanes.
#include "cpu/conv2d_epilogue.h"
#include "cpu/conv2d_moments.h"
#include "cpu/conv2d_stage.h"
#include "cpu/lane_groups.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// The input as the kernel sees it and the taps that fall inside it.
template <class A>
struct Window {
  const A* x;              // input of the first pixel's tap (0, 0)
  int64_t row, col;        // steps to the next tap below and beside
  int64_t i0, i1, j0, j1;  // taps
  const A* w;              // [kh][kw][c][lane]
  int64_t kw;
  int lanes;  // channels that exist
};

// Sums of MR neighbouring pixels. KW taps of a row at once share the permuted inputs: S is then the
// stride; else, with KW = 1, pixels lie `step` apart, whatever stride or dilation made it.
template <class A, int CG, int KW, int S, int MR, bool kFull>
inline void accumulate(const Window<A>& v, int64_t step, const Out<A>& out, int64_t c) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[MR];
#pragma GCC unroll 8
  for (int t = 0; t < MR; ++t) acc[t] = V<A>{};
  // The rows that the next row of outputs is the first to read: single lines a pixel apart, which no hardware sees
  // coming; each asked for by the first of its vectors.
  if (KW == 3 && reinterpret_cast<uintptr_t>(v.x) % 64 < sizeof(V<A>))
#pragma GCC unroll 2
    for (int i = 0; i < S; ++i)
#pragma GCC unroll 16
      for (int in = 0; in < MR * S; ++in) __builtin_prefetch(v.x + (v.i1 + i) * v.row + in * step, 0, 2);
  for (int64_t i = v.i0; i < v.i1; ++i)
    for (int64_t j = v.j0; j < v.j1; j += KW) {
      const A* x = v.x + i * v.row + j * v.col;
      const A* w = v.w + (i * v.kw + j) * CG * L;
      V<A> u[KW][CG];
#pragma GCC unroll 3
      for (int k = 0; k < KW; ++k)
#pragma GCC unroll 8
        for (int c = 0; c < CG; ++c) u[k][c] = load(w + (k * CG + c) * L);
#pragma GCC unroll 20
      for (int in = 0; in < (MR - 1) * S + KW; ++in) {
        const V<A> value = kFull ? load(x + in * step) : load(x + in * step, v.lanes);
        V<A> channel[CG];
        spread_all<CG>(value, channel);
#pragma GCC unroll 3
        for (int k = 0; k < KW; ++k)
          if (in >= k && (in - k) % S == 0 && (in - k) / S < MR)
#pragma GCC unroll 8
            for (int c = 0; c < CG; ++c) acc[(in - k) / S] += channel[c] * u[k][c];
      }
    }
  const Out<A> to = out.from(c);
  const V<A> bias = to.bias_of(0);
#pragma GCC unroll 8
  for (int t = 0; t < MR; ++t) to.put(t, 0, acc[t] + bias);
}

template <class A, int CG, int KW, int S, bool kFull>
inline void accumulate_pixels(int pixels, const Window<A>& v, int64_t step, const Out<A>& out, int64_t c) {
  switch (pixels) {
    case 8:
      return accumulate<A, CG, KW, S, 8, kFull>(v, step, out, c);
    case 4:
      return accumulate<A, CG, KW, S, 4, kFull>(v, step, out, c);
    case 2:
      return accumulate<A, CG, KW, S, 2, kFull>(v, step, out, c);
    default:
      return accumulate<A, CG, KW, S, 1, kFull>(v, step, out, c);
  }
}

// Taps [first, last) of k at distance d that fall into [0, size) from position `at` on.
struct Taps {
  int64_t first, last;
};
inline Taps taps_inside(int64_t at, int64_t k, int64_t d, int64_t size) {
  const int64_t first = at < 0 ? (-at + d - 1) / d : 0;
  const int64_t last = at >= size ? 0 : (size - at + d - 1) / d;
  return {first, last < k ? last : k};
}

template <class T, int CG>
void rows(const Conv2dParams& p, const Conv2dPlan& plan, Acc<T>* scratch, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const ConvGeometry& g = p.g;
  const int64_t channels = g.groups * CG;
  const bool straight = whole_vectors<T>(p);
  alignas(64) A tile[8 * L];
  const Out<A> local{tile, L, nullptr, nullptr, 0, false};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t ow0 = task % plan.strips * plan.cols, ow1 = ow0 + plan.cols < p.ym.w ? ow0 + plan.cols : p.ym.w;
    const int64_t oh0 = task / plan.strips % plan.bands * plan.rows,
                  oh1 = oh0 + plan.rows < p.ym.h ? oh0 + plan.rows : p.ym.h, n = task / plan.strips / plan.bands;
    // Position (h0, w0) of the padded input is x[0][0]; it has `height` rows of `width` pixels that may be read.
    int64_t h0 = 0, w0 = 0, height = p.xm.h, width = p.xm.w, row = p.xm.sh, col = p.xm.sw;
    const A* x;
    if (plan.staged) {
      h0 = oh0 * g.sh - g.ph, w0 = ow0 * g.sw - g.pw;
      height = (oh1 - oh0 - 1) * g.sh + (g.kh - 1) * g.dh + 1, width = (ow1 - ow0 - 1) * g.sw + (g.kw - 1) * g.dw + 1;
      row = width * channels, col = channels;
      stage(static_cast<const T*>(p.x), p.xm, n, {h0, w0, height, width, g.zh, g.zw, 0, channels, g.padding, channels},
            scratch);
      x = scratch;
    } else {
      x = reinterpret_cast<const A*>(static_cast<const T*>(p.x) + n * p.xm.sn);
    }
    Window<A> v{};
    v.row = g.dh * row, v.col = g.dw * col, v.kw = g.kw;
    for (int64_t oh = oh0; oh < oh1; ++oh) {
      const int64_t h = oh * g.sh - g.ph - h0;
      const Taps down = taps_inside(h, g.kh, g.dh, height);
      v.i0 = down.first, v.i1 = down.last;
      for (int64_t ow = ow0, pixels; ow < ow1; ow += pixels) {
        const int64_t w = ow * g.sw - g.pw - w0;
        const Taps beside = taps_inside(w, g.kw, g.dw, width);
        v.j0 = beside.first, v.j1 = beside.last;
        pixels = 1;
        if (w >= 0) {  // as many pixels as have all their taps inside
          const int64_t inside = (width - w - (g.kw - 1) * g.dw - 1) / g.sw + 1;
          const int64_t left = ow1 - ow < inside ? ow1 - ow : inside;
          pixels = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        }
        const bool whole = v.j0 == 0 && v.j1 == g.kw && g.kw == 3 && g.dw == 1;
        const Out<A> pixel = straight ? out_of<T>(p, static_cast<const A*>(p.bias), n, 0, oh, ow) : local;
        // Channels innermost: they lie side by side in memory, and a batch of maps streams through once.
        for (int64_t c0 = 0; c0 < channels; c0 += L) {
          v.x = x + h * row + w * col + c0;
          v.w = static_cast<const A*>(p.packed) + c0 / L * g.kh * g.kw * CG * L;
          v.lanes = channels - c0 < L ? int(channels - c0) : L;
          const bool direct = straight && v.lanes == L;
          const Out<A>& out = direct ? pixel : local;
          const int64_t c = direct ? c0 : 0;
          if (v.lanes < L)
            accumulate_pixels<A, CG, 1, 1, false>(int(pixels), v, g.sw * col, out, c);
          else if (whole && g.sw == 1)
            accumulate_pixels<A, CG, 3, 1, true>(int(pixels), v, col, out, c);
          else if (whole && g.sw == 2)
            accumulate_pixels<A, CG, 3, 2, true>(int(pixels), v, col, out, c);
          else
            accumulate_pixels<A, CG, 1, 1, true>(int(pixels), v, g.sw * col, out, c);
          if (!direct)
            epilogue<T>(p, tile, L, int(pixels), v.lanes, p.bias ? static_cast<const A*>(p.bias) + c0 : nullptr, n, c0,
                        oh, ow);
        }
      }
    }
    if (p.moments) moments<T>(p, n, oh0, oh1, ow0, ow1, 0, channels);
  }
}

}  // namespace

void conv2d_lane_grouped(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    Acc<T>* staged = static_cast<Acc<T>*>(scratch);
    switch_group_size<Acc<T>>(p.g.group_in, [&](auto size) { rows<T, size.value>(p, plan, staged, begin, end); });
  });
}

}  // namespace fastcnn::FASTCNN_ISA
