// Convolution of float32 tensors in either layout as a matrix product in exact float32: pixels of y times output
// channels, summed over taps and, within each, channels; eight by eight sums a thread.
#include "cuda/conv2d_moments.cuh"
#include "cuda/conv2d_taps.cuh"
#include "cuda/divisor.h"
#include "cuda/ffma_tile.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

// What four neighbouring elements of y (and of the residual) one store may take.
enum class Run { none, channels, pixels };

struct Params {
  Conv2d conv;
  int pixels, steps, filled;  // filled: output channels of a group in the packed weight
  Run run;
  TapSteps by;
  Divisor by_h, by_w, by_columns;
};

// Neighbouring threads copy neighbouring channels of NHWC, neighbouring pixels of NCHW.
template <int kM, int kN, bool kChannelsLast>
__global__ void __launch_bounds__(FfmaTile<kM, kN>::kThreads, FfmaTile<kM, kN>::kBlocks) conv2d_ffma_kernel(Params p) {
  using S = FfmaTile<kM, kN>;
  using Stage = typename S::Stage;
  FASTCNN_SHARED(Stage, stages);
  const Conv2d& c = p.conv;
  const int thread = threadIdx.x, channels = int(c.g.group_in), outputs = int(c.g.group_out), group = blockIdx.y;
  uint32_t column_block;
  const int m0 = int(p.by_columns.divide(blockIdx.x, column_block)) * kM, n0 = int(column_block) * kN;

  // What this thread copies: of NHWC one channel of several pixels, of NCHW several channels of one pixel.
  constexpr int kWindows = kChannelsLast ? kM * S::kDepth / S::kThreads : 1;
  constexpr int kChannels = kM * S::kDepth / S::kThreads / kWindows;
  constexpr int kNextPixel = S::kThreads / S::kDepth, kNextChannel = S::kThreads / kM;
  static_assert(S::kThreads % kM == 0);
  const int first_channel = kChannelsLast ? thread % S::kDepth : thread / kM;
  const int first_pixel = kChannelsLast ? thread / S::kDepth : thread % kM;
  Window<float> windows[kWindows];
#pragma unroll
  for (int u = 0; u < kWindows; ++u) {
    const int pixel = m0 + first_pixel + u * kNextPixel;
    uint32_t oh, ow;
    const uint32_t n = p.by_h.divide(p.by_w.divide(pixel < p.pixels ? pixel : 0, ow), oh);
    windows[u] = Window<float>(c, pixel < p.pixels, int(n), int(oh), int(ow));
    windows[u].x += (int64_t(group) * channels + first_channel) * c.xm.sc;
  }
  constexpr int kCopiesB = S::kDepth * kN / 4 / S::kThreads, kNextRow = S::kThreads / (kN / 4);
  const int row = thread / (kN / 4), o = thread % (kN / 4) * 4;
  const bool exists = n0 + o < p.filled;
  const float* w = static_cast<const float*>(c.w) + group * c.ws.g + row * c.ws.c + (exists ? n0 + o : 0);

  TapWalk next;
  const auto fetch = [&](Stage& stage) {
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const int channel = first_channel + k * kNextChannel;
      const uint32_t tap = next.tap(next.channel + channel < channels);
#pragma unroll
      for (int u = 0; u < kWindows; ++u)
        cp_async<4>(&stage.a[channel][first_pixel + u * kNextPixel], windows[u].x + k * kNextChannel * c.xm.sc,
                    windows[u].holds(tap));
    }
#pragma unroll
    for (int k = 0; k < kCopiesB; ++k) {
      const bool valid = exists && next.channel + row + k * kNextRow < channels;
      cp_async<16>(&stage.b[row + k * kNextRow][o], w + k * kNextRow * c.ws.c, valid);
    }
    int64_t x_step, w_step;
    next.advance<S::kDepth>(p.by, channels, c.g.kw, x_step, w_step);
#pragma unroll
    for (int u = 0; u < kWindows; ++u) windows[u].x += x_step;
    w += w_step;
  };

  float sum[8][8] = {};
  const ThreadPlace at = S::place(thread);
  run_stages<S>(stages, p.steps, fetch, sum, at);

  // In place: a copy of the sums beside them would not fit the registers.
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int to = n0 + at.column(k);
    const float bias = to < outputs ? bias_of<float>(c, int64_t(group) * outputs + to) : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i][k] += bias;
  }
  if (c.moments)
    tile_moments<kN, kM / 32, 0b10001, 8, 8>(
        c, MomentTile(c, p.pixels, m0, n0, group, kM), reinterpret_cast<float*>(stages), thread / kWarp / (kN / 64),
        [&](int i) { return at.row(i); }, [&](int k) { return at.column(k); }, [&](int i, int k) { return sum[i][k]; });
  const auto finished = [&](int i, int k, float residual) { return activated(sum[i][k] + residual, c.relu); };
  const float* residual = static_cast<const float*>(c.residual);
  float* y = static_cast<float*>(c.y);
  // Four pixels, or one, whose channels lie side by side or do not.
  const int together = p.run == Run::pixels ? 4 : 1;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i % 4 && together == 4) continue;
    const int pixel = m0 + at.row(i);
    if (pixel >= p.pixels) continue;
    uint32_t oh, ow;
    const uint32_t n = p.by_h.divide(p.by_w.divide(pixel, ow), oh);
    const int64_t from = n * c.rm.sn + oh * c.rm.sh + ow * c.rm.sw, to = n * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int64_t channel = int64_t(group) * outputs + n0 + at.column(k);
      if (n0 + at.column(k) >= outputs || (k % 4 && p.run == Run::channels)) continue;
      const int64_t r = from + channel * c.rm.sc, out = to + channel * c.ym.sc;
      if (p.run == Run::none) {
        store(y + out, finished(i, k, residual ? load(residual + r) : 0));
        continue;
      }
      Vec<float, 4> more{}, v;
      if (residual) more = load(reinterpret_cast<const Vec<float, 4>*>(residual + r));
#pragma unroll
      for (int e = 0; e < 4; ++e)
        v.v[e] = p.run == Run::pixels ? finished(i / 4 * 4 + e, k, more.v[e]) : finished(i, k / 4 * 4 + e, more.v[e]);
      store(reinterpret_cast<Vec<float, 4>*>(y + out), v);
    }
  }
}

Run run_of(const Conv2d& c) {
  const auto pixels = [](const void* p, const Map& m) {
    return !p || (m.sw == 1 && m.sh == m.w && m.sc % 4 == 0 && m.sn % 4 == 0 && aligned(p, 16));
  };
  if (c.g.group_out % 4 == 0 && in_runs(c.y, c.ym, 4) && in_runs(c.residual, c.rm, 4)) return Run::channels;
  return c.ym.h * c.ym.w % 4 == 0 && pixels(c.y, c.ym) && pixels(c.residual, c.rm) ? Run::pixels : Run::none;
}

template <int kM, int kN>
const char* run(Params p, void* stream) {
  using S = FfmaTile<kM, kN>;
  const int64_t columns = (p.conv.g.group_out + kN - 1) / kN, blocks = (p.pixels + kM - 1) / kM * columns;
  if (blocks > kMostBlocks || p.conv.g.groups > 65535) return "the output is too large for one grid";
  if (p.conv.moments && p.conv.slot_pixels != kM) return "moments are wanted in slots of another size than a tile's";
  p.by_columns = Divisor(columns);
  const Launch l{dim3(unsigned(blocks), unsigned(p.conv.g.groups)), dim3(S::kThreads),
                 sizeof(typename S::Stage) * S::kStages, stream};
  return p.conv.xm.sc == 1 ? launch<conv2d_ffma_kernel<kM, kN, true>>(l, p)
                           : launch<conv2d_ffma_kernel<kM, kN, false>>(l, p);
}

}  // namespace

const char* conv2d_ffma(const Conv2d& c, void* stream) {
  constexpr int kDepth = kFfmaDepth;
  const int64_t pixels = c.ym.n * c.ym.h * c.ym.w;
  const int64_t steps = (c.g.group_in + kDepth - 1) / kDepth * c.g.kh * c.g.kw;
  if (pixels > kMostIndex - 128) return "the output has too many pixels for one grid";
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  if (steps > kMostIndex || c.g.group_out > kMostIndex - 128) return "the weight is too large for one sum";
  Params p{};
  p.conv = c, p.pixels = int(pixels), p.steps = int(steps), p.filled = int(packed_layout(c.g, Dtype::f32).group_out);
  p.run = run_of(c), p.by = TapSteps(c, kDepth), p.by_h = Divisor(c.ym.h), p.by_w = Divisor(c.ym.w);
  switch (gemm_tile(pixels, c.g.group_out, c.g.groups)) {
    case GemmTile::k128x128:
      return run<128, 128>(p, stream);
    case GemmTile::k128x64:
      return run<128, 64>(p, stream);
    default:
      return run<64, 64>(p, stream);
  }
}

}  // namespace fastcnn::cuda
