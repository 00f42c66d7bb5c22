#include "ops/conv2d_winograd_grad.h"

#include "cpu/conv2d_grad_tile.h"
#include "cpu/winograd_tiles.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

using namespace winograd;

TileBlock chunk_of(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t chunk) {
  return TileGrid{p.gm.h, p.gm.w, plan.rows, plan.cols}.block(chunk, p.gm.n);
}

// Where the transformed gradients of a chunk begin.
int64_t grads_of(const WinogradGradPlan& plan, int64_t chunk) {
  return chunk * kPoints * plan.rows * plan.cols * plan.grad_step;
}

// sums[point][c][v*L..] (+)= sum over tiles of inputs[point][tile][c] * grads[point][tile][v*L..], input channels
// [c0, c0+channels) in tiles of registers, panels [panel0, panel1).
template <class A>
void multiply(const A* inputs, int64_t input_step, const A* grads, int64_t grad_step, int64_t tiles, int64_t channels,
              int64_t panel0, int64_t panel1, bool first, A* sums, int64_t point_step, int64_t width) {
  constexpr int L = Vec<A>::lanes;
  const int64_t parts = (channels + kGradMR - 1) / kGradMR;
  for (int point = 0; point < kPoints; ++point)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t c = part * channels / parts, count = (part + 1) * channels / parts - c;
      for (int64_t v0 = panel0; v0 < panel1; v0 += kGradNV)
        accumulate_grad_for<A>(int(count), panel1 - v0 < kGradNV ? 1 : kGradNV)(
            inputs + point * tiles * input_step + c, input_step, grads + point * tiles * grad_step + v0 * L, grad_step,
            tiles, first, sums + point * point_step + c * width + v0 * L, width);
    }
}

}  // namespace

void winograd_grad_transform(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group,
                             int64_t first, void* grads, void* scratch, int64_t begin, int64_t end) {
  const ConvGeometry& g = p.g;
  const TileSource from{p.grad, p.gm, group * g.group_out, g.group_out, 0, 0, plan.stage_grad};
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const TileBlock block = chunk_of(p, plan, chunk);
      transform_gradients<T>(from, block, static_cast<A*>(scratch),
                             static_cast<A*>(grads) + grads_of(plan, chunk - first), plan.grad_step,
                             block.tiles() * plan.grad_step);
    }
  });
}

void winograd_grad_multiply(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group, int64_t first,
                            int64_t last, const void* grads, void* scratch, int64_t begin, int64_t end) {
  const ConvGeometry& g = p.g;
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    constexpr int L = kLanes<T>;
    const int64_t width = plan.panels * L;
    A* copy = static_cast<A*>(scratch);
    A* inputs = copy + plan.scratch_stage;
    for (int64_t part = begin / plan.pieces; part * plan.pieces < end; ++part) {
      const int64_t from = part * plan.pieces < begin ? begin - part * plan.pieces : 0;
      const int64_t to = (part + 1) * plan.pieces < end ? plan.pieces : end - part * plan.pieces;
      const int64_t c0 = from * g.group_in / plan.pieces, channels = to * g.group_in / plan.pieces - c0;
      const int64_t step = winograd_step(channels, L);
      const TileSource x{p.x, p.xm, group * g.group_in + c0, channels, g.ph, g.pw, plan.stage_x};
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const TileBlock block = chunk_of(p, plan, chunk);
        transform_inputs<T>(x, block, copy, inputs, step, block.tiles() * step);
        multiply<A>(inputs, step, static_cast<const A*>(grads) + grads_of(plan, chunk - first), plan.grad_step,
                    block.tiles(), channels, part * plan.panels / plan.parts, (part + 1) * plan.panels / plan.parts,
                    chunk == 0, static_cast<A*>(p.dw) + c0 * width, g.group_in * width, width);
      }
    }
  });
}

void winograd_grad_finish(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group, void* out,
                          int64_t begin, int64_t end) {
  const ConvGeometry& g = p.g;
  constexpr int kWeights = kTaps * kTaps;
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    constexpr int L = kLanes<T>;
    const int64_t width = plan.panels * L, point_step = g.group_in * width;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t left = g.group_out - panel * L, outputs = left < L ? left : L;
      T* to = static_cast<T*>(out) + (group * g.group_out + panel * L) * g.group_in * kWeights;
      for (int64_t c = 0; c < g.group_in; ++c, to += kWeights) {
        const A* sums = static_cast<const A*>(p.dw) + c * width + panel * L;
        alignas(64) A taps[kWeights][L];
        square<kIn, kTaps, A>([&](int i, int j) { return load(sums + (i * kIn + j) * point_step); },
                              [](const auto& m, auto& o) { weight_gradient<A>(m, o); },
                              [&](int i, int j, V<A> v) { store(taps[i * kTaps + j], v); });
        for (int64_t l = 0; l < outputs; ++l)
          for (int k = 0; k < kWeights; ++k) put(to + l * g.group_in * kWeights + k, taps[k][l]);
      }
    }
  });
}

}  // namespace fastcnn::FASTCNN_ISA
