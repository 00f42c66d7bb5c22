// Convolution of 16-bit NHWC tensors as a matrix product on tensor cores: pixels of y times output channels, summed
// over taps and, within each, channels. No operand is ever laid out as a matrix: a row of the left one is gathered as
// the sum proceeds, tap by tap, from where its pixel's window lies.
#include "cuda/conv2d_moments.cuh"
#include "cuda/conv2d_taps.cuh"
#include "cuda/divisor.h"
#include "cuda/mma_tile.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kMost = (int64_t{1} << 31) - 1;

struct Params {
  Conv2d conv;
  int pixels, steps;  // steps: of kDepth channels, in all taps
  TapSteps by;
  Divisor by_h, by_w, by_columns;
};

// A block computes kM pixels x kN channels by warps of kWarpM x kWarpN.
template <class T, int kM, int kN, int kWarpM, int kWarpN, int kStages>
struct Tile {
  static constexpr int kWarps = kM / kWarpM * (kN / kWarpN), kThreads = kWarps * kWarp;
  static constexpr int kRows = kThreads / (kDepth / kChunk);  // that all threads copy at once, a chunk each
  static constexpr int kCopiesA = kM / kRows, kCopiesB = kN / kRows;
  struct Stage {
    T a[kM * kDepth], b[kN * kDepth];
  };
  // In the epilogue a row of warps at a time passes through shared memory; 8 more floats a row keep the fragments'
  // rows on different banks.
  static constexpr int kOutRow = kN + 8;
  static_assert(kWarpM * kOutRow * sizeof(float) <= sizeof(Stage) * kStages);
};

template <class T, int kM, int kN, int kWarpM, int kWarpN, int kStages>
__global__ void __launch_bounds__(Tile<T, kM, kN, kWarpM, kWarpN, kStages>::kThreads, kM == 128 ? 2 : 4)
    conv2d_mma_kernel(Params p) {
  using S = Tile<T, kM, kN, kWarpM, kWarpN, kStages>;
  using Stage = typename S::Stage;
  FASTCNN_SHARED(Stage, stages);
  const Conv2d& c = p.conv;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  uint32_t column_block;
  const int m0 = int(p.by_columns.divide(blockIdx.x, column_block)) * kM, n0 = int(column_block) * kN;
  const int group = blockIdx.y, channels = int(c.g.group_in), outputs = int(c.g.group_out);

  // What this thread copies: chunk `chunk` of some pixels and of some output channels.
  const int chunk = thread % (kDepth / kChunk), row = thread / (kDepth / kChunk);
  const int place = row * kDepth + inner_chunk(row, chunk) * kChunk;
  Window<T> windows[S::kCopiesA];
  const T* w[S::kCopiesB];
  bool exists[S::kCopiesB];
#pragma unroll
  for (int u = 0; u < S::kCopiesA; ++u) {
    const int pixel = m0 + row + u * S::kRows;
    uint32_t oh, ow;
    const uint32_t n = p.by_h.divide(p.by_w.divide(pixel < p.pixels ? pixel : 0, ow), oh);
    windows[u] = Window<T>(c, pixel < p.pixels, int(n), int(oh), int(ow));
    windows[u].x += group * channels + chunk * kChunk;
  }
#pragma unroll
  for (int u = 0; u < S::kCopiesB; ++u) {
    const int o = n0 + row + u * S::kRows;
    exists[u] = o < outputs;
    w[u] = static_cast<const T*>(c.w) + group * c.ws.g + (exists[u] ? o : 0) * c.ws.o + chunk * kChunk;
  }

  TapWalk next;
  const auto fetch = [&](Stage& stage) {
    const bool inside = next.channel + chunk * kChunk < channels;
    const uint32_t tap = next.tap(inside);
#pragma unroll
    for (int u = 0; u < S::kCopiesA; ++u) {
      cp_async<16>(stage.a + place + u * S::kRows * kDepth, windows[u].x, windows[u].holds(tap) ? 16 : 0);
    }
#pragma unroll
    for (int u = 0; u < S::kCopiesB; ++u)
      cp_async<16>(stage.b + place + u * S::kRows * kDepth, w[u], inside && exists[u] ? 16 : 0);
    int64_t x_step, w_step;
    next.advance<kDepth>(p.by, channels, c.g.kw, x_step, w_step);
#pragma unroll
    for (int u = 0; u < S::kCopiesA; ++u) windows[u].x += x_step;
#pragma unroll
    for (int u = 0; u < S::kCopiesB; ++u) w[u] += w_step;
  };

  const int warp_m = warp / (kN / kWarpN), warp_n = warp % (kN / kWarpN);
  WarpSums<kWarpM, kWarpN> sums;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < p.steps) fetch(stages[s]);
    cp_async_commit();
  }
  int reading = 0, writing = kStages - 1;
  for (int step = 0; step < p.steps; ++step) {
    cp_async_wait<kStages - 2>();
    sync_block();
    if (step + kStages - 1 < p.steps) fetch(stages[writing]);  // what all warps have left behind
    cp_async_commit();
    const Stage& stage = stages[reading];
    multiply_inner<T>(sums, stage.a + warp_m * kWarpM * kDepth, stage.b + warp_n * kWarpN * kDepth, lane);
    reading = reading + 1 == kStages ? 0 : reading + 1, writing = writing + 1 == kStages ? 0 : writing + 1;
  }

  if (c.moments) mma_moments<T, kM, kN>(c, MomentTile(c, p.pixels, m0, n0, group, kM), stages, sums, warp_m, warp_n);

  // Through shared memory, so that each thread stores 8 neighbouring channels of a pixel at once.
  float* out = reinterpret_cast<float*>(stages);
  constexpr int kChunks = kN / kChunk;
  const int out_chunk = thread % kChunks, o = n0 + out_chunk * kChunk;
  const int64_t first_channel = int64_t(group) * outputs + o;
  float bias[kChunk];
#pragma unroll
  for (int v = 0; v < kChunk; ++v) bias[v] = o < outputs ? bias_of<T>(c, first_channel + v) : 0;
  for (int pass = 0; pass < kM / kWarpM; ++pass) {
    sync_block();
    if (warp_m == pass) {
#pragma unroll
      for (int m = 0; m < kWarpM / 16; ++m)
#pragma unroll
        for (int n = 0; n < kWarpN / 8; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = (m * 16 + half * 8 + lane / 4) * S::kOutRow + warp_n * kWarpN + n * 8 + lane % 4 * 2;
            store_shared(reinterpret_cast<Vec<float, 2>*>(out + at),
                         Vec<float, 2>{sums.v[m][n][half * 2], sums.v[m][n][half * 2 + 1]});
          }
    }
    sync_block();
    for (int r = thread / kChunks; r < kWarpM; r += S::kThreads / kChunks) {
      const int pixel = m0 + pass * kWarpM + r;
      if (pixel >= p.pixels || o >= outputs) continue;
      uint32_t oh, ow;
      const uint32_t n = p.by_h.divide(p.by_w.divide(pixel, ow), oh);
      Vec<T, kChunk> y, residual{};
      if (c.residual)
        residual = load(reinterpret_cast<const Vec<T, kChunk>*>(static_cast<const T*>(c.residual) + n * c.rm.sn +
                                                                oh * c.rm.sh + ow * c.rm.sw + first_channel));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto sum =
            load_shared(reinterpret_cast<const Vec<float, 4>*>(out + r * S::kOutRow + out_chunk * kChunk + half * 4));
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int k = half * 4 + v;
          float value = sum.v[v] + bias[k];
          if (c.residual) value += to_float(residual.v[k]);
          y.v[k] = from_float<T>(activated(value, c.relu));
        }
      }
      store(reinterpret_cast<Vec<T, kChunk>*>(static_cast<T*>(c.y) + n * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw +
                                              first_channel),
            y);
    }
  }
}

template <class T, int kM, int kN, int kWarpM, int kWarpN, int kStages>
const char* run(Params p, void* stream) {
  using S = Tile<T, kM, kN, kWarpM, kWarpN, kStages>;
  const int64_t columns = (p.conv.g.group_out + kN - 1) / kN, blocks = (p.pixels + kM - 1) / kM * columns;
  if (blocks > kMostBlocks || p.conv.g.groups > 65535) return "the output is too large for one grid";
  if (p.conv.moments && p.conv.slot_pixels != kM) return "moments are wanted in slots of another size than a tile's";
  p.by_columns = Divisor(columns);
  const Launch l{dim3(unsigned(blocks), unsigned(p.conv.g.groups)), dim3(S::kThreads),
                 sizeof(typename S::Stage) * kStages, stream};
  return launch<conv2d_mma_kernel<T, kM, kN, kWarpM, kWarpN, kStages>>(l, p);
}

}  // namespace

const char* conv2d_mma(const Conv2d& c, void* stream) {
  const int64_t pixels = c.ym.n * c.ym.h * c.ym.w, taps = int64_t{c.g.kh} * c.g.kw;
  const int64_t steps = (c.g.group_in + kDepth - 1) / kDepth * taps;
  if (pixels > kMost - 128) return "the output has too many pixels for one grid";
  if (c.xm.h + 2 * std::abs(int64_t{c.g.ph}) > kMost || c.xm.w + 2 * std::abs(int64_t{c.g.pw}) > kMost)
    return "an axis exceeds 2^31 positions";
  if (steps > kMost) return "the weight is too large for one sum";
  Params p{};
  p.conv = c, p.pixels = int(pixels), p.steps = int(steps), p.by = TapSteps(c, kDepth);
  p.by_h = Divisor(c.ym.h), p.by_w = Divisor(c.ym.w);
  const auto with_tile = [&](auto element) {
    using T = decltype(element);
    switch (gemm_tile(pixels, c.g.group_out, c.g.groups)) {
      case GemmTile::k128x128:
        return run<T, 128, 128, 64, 32, 3>(p, stream);
      case GemmTile::k128x64:
        return run<T, 128, 64, 32, 32, 3>(p, stream);
      default:
        return run<T, 64, 64, 32, 32, 4>(p, stream);
    }
  };
  return c.dtype == Dtype::f16 ? with_tile(half_t{}) : with_tile(bfloat16_t{});
}

}  // namespace fastcnn::cuda
