// Convolution as a matrix product on tensor cores: pixels of y times output channels, summed over taps and, within
// each, channels. No operand is ever laid out as a matrix: a row of the left one is gathered as the sum proceeds, tap
// by tap, from where its pixel's window lies. Of tiles that would leave processors idle, several blocks each sum a
// part.
#include <type_traits>

#include "cuda/conv2d_dispatch.h"
#include "cuda/conv2d_mma_epilogue.cuh"
#include "cuda/conv2d_moments.cuh"

namespace fastcnn::cuda {
namespace {

template <class S>
__device__ __forceinline__ MmaPlace place_of(const MmaParams& p, int tile) {
  uint32_t column, row;
  const int group = int(p.by_rows.divide(p.by_columns.divide(tile, column), row));
  return {int(row) * S::kM, int(column) * S::kN, group};
}

// Where this thread's sums of an instruction lie that a piece leaves: [piece][part][n][thread].
template <class S>
__device__ __forceinline__ Vec<float, 2>* partial_of(const MmaParams& p, int64_t piece, int part, int n) {
  const int sums = (part * (S::kWarpN / 8) + n) * S::kThreads + int(threadIdx.x);
  return static_cast<Vec<float, 2>*>(p.conv.partial) + piece * (S::kM * S::kN / 2) + sums;
}

// kPlanes: x lies in planes of channels, of any strides.
template <class T, int kM, int kN, bool kPlanes>
__global__ void __launch_bounds__(MmaTraits<kM, kN>::kThreads, MmaTraits<kM, kN>::kBlocks)
    conv2d_mma_kernel(MmaParams p) {
  using S = MmaShape<T, kM, kN>;
  using Rows = MmaRows<S>;
  using Stage = typename S::Stage;
  using Left = std::conditional_t<kPlanes, PlaneCopies<S>, PixelCopies<S>>;
  using Right = WeightCopies<S>;
  constexpr int kStages = S::kStages;
  FASTCNN_SHARED(Stage, stages);
  int tile = blockIdx.x, begin = 0, end = p.steps;
  const int piece = tile - p.whole;
  if (piece >= 0) {
    uint32_t part;
    tile = p.whole + int(p.by_pieces.divide(piece, part));
    begin = int(part) * p.chunk, end = end - begin < p.chunk ? end : begin + p.chunk;
  }
  const MmaPlace at = place_of<S>(p, tile);
  const Left left(p, at);
  const Right right(p, at);
  const auto fetch = [&](Stage& stage, int step) {
    int first, rows;
    left.start(stage.a, p, step, first, rows);
    right.start(stage.b, p, first, rows);
  };

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_m = warp / Rows::kWarpsN * S::kWarpM, warp_n = warp % Rows::kWarpsN * S::kWarpN;
  WarpSums<S::kWarpM, S::kWarpN> sums;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s < end) fetch(stages[s], begin + s);
    cp_async_commit();
  }
  int reading = 0, writing = kStages - 1;
  for (int step = begin; step < end; ++step) {
    cp_async_wait<kStages - 2>();
    sync_block();
    if (step + kStages - 1 < end) fetch(stages[writing], step + kStages - 1);  // what all warps have left behind
    cp_async_commit();
    const Stage& stage = stages[reading];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      LeftFragments<S::kWarpM> a;
      RightFragments<S::kWarpN> b;
      Left::load(a, stage.a, warp_m, k, lane);
      Right::load(b, stage.b, warp_n, k, lane);
      multiply<T>(sums, a, b);
    }
    reading = reading + 1 == kStages ? 0 : reading + 1, writing = writing + 1 == kStages ? 0 : writing + 1;
  }

  if (p.conv.moments) {  // of whole tiles: unsplit()
    const MomentTile moments(p.conv, p.pixels, at.m0, at.n0, at.group, kM);
    mma_moments<T, kM, kN>(p.conv, moments, stages, sums, warp_m / S::kWarpM, warp_n / S::kWarpN);
  }
#pragma unroll
  for (int part = 0; part < Rows::kParts; ++part) {
    typename Rows::Sums some;
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
      const float* sum = sums.v[part / 2][n] + part % 2 * 2;
      some[n] = {sum[0], sum[1]};
      if (piece >= 0) store(partial_of<S>(p, piece, part, n), some[n]);
    }
    if (piece < 0) Rows::store(p, at, reinterpret_cast<float*>(stages), part, some);
  }
}

// Of a tile in pieces: their sums, in order; a block finishes eight rows of each warp.
template <class T, int kM, int kN>
__global__ void __launch_bounds__(MmaTraits<kM, kN>::kThreads) conv2d_mma_finish(MmaParams p) {
  using S = MmaShape<T, kM, kN>;
  FASTCNN_SHARED(float, out);
  const int part = blockIdx.x, tile = blockIdx.y, pieces = int(p.by_pieces.d);
  typename MmaRows<S>::Sums sums{};
  for (int piece = 0; piece < pieces; ++piece)
#pragma unroll
    for (int n = 0; n < S::kWarpN / 8; ++n) {
      const auto more = load(partial_of<S>(p, int64_t(tile) * pieces + piece, part, n));
      sums[n].v[0] += more.v[0], sums[n].v[1] += more.v[1];
    }
  MmaRows<S>::store(p, place_of<S>(p, p.whole + tile), out, part, sums);
}

template <class T, int kM, int kN>
const char* run(const MmaParams& p, const MmaPlan& plan, void* stream) {
  using S = MmaShape<T, kM, kN>;
  using Rows = MmaRows<S>;
  if (p.conv.moments && p.conv.slot_pixels != kM) return "moments are wanted in slots of another size than a tile's";
  const Launch l{dim3(unsigned(plan.blocks())), dim3(S::kThreads), sizeof(typename S::Stage) * S::kStages, stream};
  const char* error = nullptr;
  if constexpr (sizeof(T) == 4)
    error = plan.planes ? launch<conv2d_mma_kernel<T, kM, kN, true>>(l, p)
                        : launch<conv2d_mma_kernel<T, kM, kN, false>>(l, p);
  else
    error = launch<conv2d_mma_kernel<T, kM, kN, false>>(l, p);
  if (error || plan.pieces == 1) return error;
  const Launch finish{dim3(Rows::kParts, unsigned(plan.rest())), dim3(S::kThreads), Rows::kBytes, stream};
  return launch<conv2d_mma_finish<T, kM, kN>>(finish, p);
}

MmaPlan plan_of(const Conv2d& c) {
  const MmaPlan plan = mma_plan(c.g, c.dtype, c.xm.sc != 1, c.ym.n * c.ym.h * c.ym.w, c.processors);
  return c.moments ? plan.unsplit() : plan;
}

}  // namespace

int processors_of(int device) { return processors(device); }

int64_t mma_partial_elements(const Conv2d& c) { return plan_of(c).partial_elements(); }

const char* conv2d_mma(const Conv2d& c, void* stream) {
  const int64_t pixels = c.ym.n * c.ym.h * c.ym.w, sum = c.g.group_in * c.g.kh * c.g.kw;
  if (pixels > kMostIndex - 128) return "the output has too many pixels for one grid";
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  if (sum > kMostIndex / 2 || c.g.group_out > kMostIndex - 192) return "the weight is too large for one sum";
  const MmaPlan plan = plan_of(c);
  if (plan.blocks() > kMostBlocks) return "the output is too large for one grid";
  if (plan.pieces > 1 && !c.partial) return "there is no memory for parts of its sums";
  MmaParams p{};
  p.conv = c, p.pixels = int(pixels), p.steps = int(plan.steps), p.sum = int(sum);
  p.filled = int(packed_layout(c.g, c.dtype).group_out);
  p.whole = int(plan.whole), p.chunk = int(plan.chunk);
  p.chunks = c.g.group_out % 4 == 0 && in_runs(c.y, c.ym, 4) && in_runs(c.residual, c.rm, 4);
  p.x_row = c.g.dh * c.xm.sh, p.x_column = c.g.dw * c.xm.sw;
  p.by_h = Divisor(c.ym.h), p.by_w = Divisor(c.ym.w), p.by_columns = Divisor(plan.columns);
  p.by_rows = Divisor(plan.rows), p.by_pieces = Divisor(plan.pieces), p.by_channels = Divisor(c.g.group_in);
  p.by_channel_steps = Divisor(plan.channel_steps), p.by_kw = Divisor(c.g.kw);
  const auto with_tile = [&](auto element) {
    using T = decltype(element);
    switch (plan.tile) {
      case MmaTile::k128x192:
        return run<T, 128, 192>(p, plan, stream);
      case MmaTile::k128x128:
        return run<T, 128, 128>(p, plan, stream);
      case MmaTile::k128x64:
        return run<T, 128, 64>(p, plan, stream);
      default:
        return run<T, 64, 64>(p, plan, stream);
    }
  };
  if (c.dtype == Dtype::f32) return with_tile(float{});
  return c.dtype == Dtype::f16 ? with_tile(half_t{}) : with_tile(bfloat16_t{});
}

}  // namespace fastcnn::cuda
