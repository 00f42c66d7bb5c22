// Weight gradient: a tile of MR weights (neighbouring taps and input channels) by NV vectors of output channels stays
// in registers while the sum runs over the pixels of a block. Each part of dw belongs to one thread, which adds the
// blocks in one order, so no reduction depends on the number of threads.
#include "cpu/conv2d_grad_tile.h"
#include "cpu/conv2d_stage.h"
#include "cpu/lane_groups.h"
#include "cpu/vec.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// A block of output pixels, its gradients and the inputs under it; element steps.
template <class A>
struct Block {
  const A* x;  // input of the first pixel's tap (0, 0), first channel
  const A* grad;
  int64_t x_image, x_row, x_col, grad_image, grad_row, grad_col;
  int64_t images, rows, cols;

  int64_t pixels() const { return images * rows * cols; }
};

// The block's inputs of MR neighbouring weights, pixel after pixel: in the tensor each pixel's lie on lines of their
// own, which fall into few sets of L1 where the channels are a power of two.
template <class A, int MR>
void pack_inputs(const Block<A>& b, int64_t sh, int64_t sw, A* out) {
  for (int64_t n = 0; n < b.images; ++n)
    for (int64_t r = 0; r < b.rows; ++r) {
      const A* x = b.x + n * b.x_image + r * sh * b.x_row;
      for (int64_t c = 0; c < b.cols; ++c, x += sw * b.x_col, out += MR) __builtin_memcpy(out, x, MR * sizeof(A));
    }
}

// The block's gradients of `count` <= kGradNV * L neighbouring output channels, zeros behind them up to whole vectors.
template <class A>
void pack_grads(const Block<A>& b, int64_t count, A* out) {
  constexpr int L = Vec<A>::lanes;
  for (int64_t n = 0; n < b.images; ++n)
    for (int64_t r = 0; r < b.rows; ++r) {
      const A* grad = b.grad + n * b.grad_image + r * b.grad_row;
      for (int64_t c = 0; c < b.cols; ++c, grad += b.grad_col) {
        int64_t i = 0;
        for (; i + L <= count; i += L, out += L) store(out, load(grad + i));
        if (i < count) store(out, load(grad + i, int(count - i))), out += L;
      }
    }
}

template <class A, int MR = kGradMR>
auto pack_inputs_of(int weights) -> void (*)(const Block<A>&, int64_t, int64_t, A*) {
  if constexpr (MR == 0)
    return nullptr;
  else
    return weights == MR ? &pack_inputs<A, MR> : pack_inputs_of<A, MR - 1>(weights);
}

// Calls f(first, block) for every block of image n, channels [c0, c0+channels) of x and [oc0, ..) of grad, in order.
template <class T, class F>
void for_each_block(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, Acc<T>* scratch, int64_t c0,
                    int64_t channels, int64_t oc0, int64_t outputs, const F& f) {
  using A = Acc<T>;
  const ConvGeometry& g = p.g;
  Acc<T>* scratch_grad = scratch + plan.scratch;
  bool first = true;
  for (int64_t n0 = 0; n0 < p.gm.n; n0 += plan.images)
    for (int64_t oh = 0; oh < p.gm.h; oh += plan.rows)
      for (int64_t ow = 0; ow < p.gm.w; ow += plan.cols) {
        Block<A> b{};
        b.images = p.gm.n - n0 < plan.images ? p.gm.n - n0 : plan.images;
        b.rows = p.gm.h - oh < plan.rows ? p.gm.h - oh : plan.rows;
        b.cols = p.gm.w - ow < plan.cols ? p.gm.w - ow : plan.cols;
        const int64_t h0 = oh * g.sh - g.ph, w0 = ow * g.sw - g.pw;
        if (plan.stage_x) {
          const StageWindow w{h0,
                              w0,
                              (b.rows - 1) * g.sh + (g.kh - 1) * g.dh + 1,
                              (b.cols - 1) * g.sw + (g.kw - 1) * g.dw + 1,
                              1,
                              1,
                              c0,
                              channels,
                              Padding::zeros,
                              channels};
          b.x = scratch, b.x_image = w.rows * w.cols * channels, b.x_row = w.cols * channels, b.x_col = channels;
          for (int64_t n = 0; n < b.images; ++n)
            stage(static_cast<const T*>(p.x), p.xm, n0 + n, w, scratch + n * b.x_image);
        } else {
          b.x =
              reinterpret_cast<const A*>(static_cast<const T*>(p.x) + n0 * p.xm.sn + h0 * p.xm.sh + w0 * p.xm.sw + c0);
          b.x_image = p.xm.sn, b.x_row = p.xm.sh, b.x_col = p.xm.sw;
        }
        if (plan.stage_grad) {
          b.grad = scratch_grad;
          b.grad_image = b.rows * b.cols * outputs, b.grad_row = b.cols * outputs, b.grad_col = outputs;
          for (int64_t n = 0; n < b.images; ++n)
            stage(static_cast<const T*>(p.grad), p.gm, n0 + n,
                  {oh, ow, b.rows, b.cols, 1, 1, oc0, outputs, Padding::zeros, outputs},
                  scratch_grad + n * b.grad_image);
        } else {
          b.grad = reinterpret_cast<const A*>(static_cast<const T*>(p.grad) + n0 * p.gm.sn + oh * p.gm.sh +
                                              ow * p.gm.sw + oc0);
          b.grad_image = p.gm.sn, b.grad_row = p.gm.sh, b.grad_col = p.gm.sw;
        }
        f(first, b);
        first = false;
      }
}

// Unit = (group * outer + tap row or tap) * tiles of weights + tile. A unit's inputs are packed once and meet the
// gradients of all output channels, which the units of a block share.
template <class T>
void direct_units(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, Acc<T>* scratch, int64_t begin,
                  int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const ConvGeometry& g = p.g;
  const int64_t pitch = plan.panels * L, pairs = (plan.panels + kGradNV - 1) / kGradNV;
  const int64_t outer = g.kh * plan.tap_cols, weights = plan.weights, tiles = (weights + kGradMR - 1) / kGradMR;
  const int64_t per_group = outer * tiles;
  A* const inputs = scratch + plan.scratch + plan.scratch_grad;
  A* const grads = inputs + plan.images * plan.rows * plan.cols * kGradMR;
  for (int64_t group = begin / per_group; group * per_group < end; ++group) {
    const int64_t from = group * per_group < begin ? begin - group * per_group : 0;
    const int64_t to = (group + 1) * per_group < end ? per_group : end - group * per_group;
    A* dw = static_cast<A*>(p.dw) + group * g.kh * g.kw * g.group_in * pitch;
    for_each_block<T>(p, plan, scratch, group * g.group_in, g.group_in, group * g.group_out, g.group_out,
                      [&](bool first, const Block<A>& block) {
                        const int64_t pixels = block.pixels();
                        for (int64_t pair = 0; pair < pairs; ++pair) {
                          Block<A> b = block;
                          const int64_t oc = pair * kGradNV * L, left = g.group_out - oc;
                          b.grad += oc;
                          pack_grads(b, left < kGradNV * L ? left : kGradNV * L, grads + pixels * oc);
                        }
                        for (int64_t unit = from; unit < to; ++unit) {
                          const int64_t tile = unit % tiles, tap = unit / tiles;
                          const int64_t i = tap / plan.tap_cols, j = tap % plan.tap_cols;
                          const int64_t m0 = tile * weights / tiles, count = (tile + 1) * weights / tiles - m0;
                          Block<A> b = block;
                          b.x += i * g.dh * b.x_row + j * g.dw * b.x_col + m0;
                          pack_inputs_of<A>(int(count))(b, g.sh, g.sw, inputs);
                          for (int64_t v0 = 0; v0 < plan.panels; v0 += kGradNV) {
                            const int64_t nv = plan.panels - v0 < kGradNV ? plan.panels - v0 : kGradNV;
                            accumulate_grad_for<A>(int(count), int(nv))(
                                inputs, count, grads + pixels * v0 * L, nv * L, pixels, first,
                                dw + (tap * weights + m0) * pitch + v0 * L, pitch);
                          }
                        }
                      });
  }
}

// Unit = vector of channels * kh + tap row.
template <class T, int CG>
void lane_grouped_units(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, Acc<T>* scratch,
                        int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const ConvGeometry& g = p.g;
  const int64_t channels = g.groups * CG;
  for_each_block<T>(p, plan, scratch, 0, channels, 0, channels, [&](bool first, const Block<A>& b) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t c0 = unit / g.kh * L, i = unit % g.kh;
      const int lanes = channels - c0 < L ? int(channels - c0) : L;
      for (int64_t j = 0; j < g.kw; ++j) {
        A* dw = static_cast<A*>(p.dw) + (unit * g.kw + j) * CG * L;
        V<A> acc[CG];
#pragma GCC unroll 8
        for (int c = 0; c < CG; ++c) acc[c] = first ? V<A>{} : load(dw + c * L);
        for (int64_t r = 0; r < b.rows; ++r) {
          const A* x = b.x + (r * g.sh + i * g.dh) * b.x_row + j * g.dw * b.x_col + c0;
          const A* grad = b.grad + r * b.grad_row + c0;
          for (int64_t c = 0; c < b.cols; ++c, x += g.sw * b.x_col, grad += b.grad_col) {
            const V<A> value = lanes == L ? load(x) : load(x, lanes);
            const V<A> d = lanes == L ? load(grad) : load(grad, lanes);
            V<A> channel[CG];
            spread_all<CG>(value, channel);
#pragma GCC unroll 8
            for (int k = 0; k < CG; ++k) acc[k] += channel[k] * d;
          }
        }
#pragma GCC unroll 8
        for (int c = 0; c < CG; ++c) store(dw + c * L, acc[c]);
      }
    }
  });
}

}  // namespace

void conv2d_weight_grad_direct(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, void* scratch,
                               int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    direct_units<T>(p, plan, static_cast<Acc<T>*>(scratch), begin, end);
  });
}

void conv2d_weight_grad_lane_grouped(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, void* scratch,
                                     int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    Acc<T>* staged = static_cast<Acc<T>*>(scratch);
    switch_group_size<Acc<T>>(p.g.group_in,
                              [&](auto size) { lane_grouped_units<T, size.value>(p, plan, staged, begin, end); });
  });
}

}  // namespace fastcnn::FASTCNN_ISA
