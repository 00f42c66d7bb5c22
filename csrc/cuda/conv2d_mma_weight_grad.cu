// The weight gradient of NHWC tensors as a matrix product on tensor cores: output channels times weights (taps and,
// within each, channels), summed over pixels. Each split of the pixels leaves its sums to
// conv2d_weight_grad_finish.
#include "cuda/conv2d.cuh"
#include "cuda/divisor.h"
#include "cuda/mma_tile.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2dWeightGrad conv;
  int pixels, chunk, weights;  // chunk: pixels of a split, whole steps; weights: of an output channel
  // From a pixel to the one a step further on: rows and columns of x, elements; and what a step to the next row of
  // pixels or to the next image adds to that.
  int next_h, next_w;
  int64_t next, next_row, next_image;
  Divisor by_h, by_w, by_group_in, by_kw, by_columns, by_rows;
};

// A block computes kM channels x kN weights by warps of kWarpM x kWarpN.
template <class T, int kM, int kN, int kWarpM, int kWarpN>
struct Tile {
  static_assert(kM == kN);  // so that a thread copies the same chunk of both operands
  static constexpr int kThreads = kM / kWarpM * (kN / kWarpN) * kWarp;
  static constexpr int kChunks = kM / kChunk<T>, kRows = kThreads / kChunks, kCopies = kDepth<T> / kRows;
  struct Stage {
    T a[kDepth<T> * kM], b[kDepth<T> * kN];
  };
};

constexpr int kStages = 3;

template <class T, int kM, int kN, int kWarpM, int kWarpN>
__global__ void __launch_bounds__(Tile<T, kM, kN, kWarpM, kWarpN>::kThreads, kM == 128 ? 2 : 4)
    conv2d_mma_weight_grad_kernel(Params p) {
  using S = Tile<T, kM, kN, kWarpM, kWarpN>;
  using Stage = typename S::Stage;
  FASTCNN_SHARED(Stage, stages);
  const Conv2dWeightGrad& c = p.conv;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  uint32_t row_block, column_block;
  const int split = int(p.by_rows.divide(p.by_columns.divide(blockIdx.x, column_block), row_block));
  const int m0 = int(row_block) * kM, n0 = int(column_block) * kN, group = blockIdx.y;
  const int outputs = int(c.g.group_out);

  // What this thread copies of every step's pixels: of some, one chunk of channels and one of weights. A chunk never
  // straddles two taps.
  const int chunk = thread % S::kChunks, row = thread / S::kChunks;
  const int o = m0 + chunk * kChunk<T>, weight = n0 + chunk * kChunk<T>;
  uint32_t channel, j;
  const uint32_t i = p.by_kw.divide(p.by_group_in.divide(weight < p.weights ? weight : 0, channel), j);
  const int down = int(i) * c.g.dh - c.g.ph, across = int(j) * c.g.dw - c.g.pw;
  const int rows = int(c.gm.h) * c.g.sh, columns = int(c.gm.w) * c.g.sw;
  const int begin = split * p.chunk, end = p.pixels - begin < p.chunk ? p.pixels : begin + p.chunk;
  int pixel = begin + row, h[S::kCopies], w[S::kCopies];
  const T* x[S::kCopies];
#pragma unroll
  for (int u = 0; u < S::kCopies; ++u) {
    uint32_t oh, ow;
    const uint32_t n = p.by_h.divide(p.by_w.divide(pixel + u * S::kRows, ow), oh);
    h[u] = int(oh) * c.g.sh + down, w[u] = int(ow) * c.g.sw + across;
    x[u] = static_cast<const T*>(c.x) + n * c.xm.sn + h[u] * c.xm.sh + w[u] * c.xm.sw + group * c.g.group_in + channel;
  }
  const T* grad = static_cast<const T*>(c.grad) + pixel * c.gm.sw + group * outputs + o;

  const auto fetch = [&](Stage& stage) {
#pragma unroll
    for (int u = 0; u < S::kCopies; ++u) {
      const bool exists = pixel + u * S::kRows < end;
      const int to = row + u * S::kRows, place = to * kM + outer_chunk<T>(to, chunk) * kChunk<T>;
      cp_async<16>(stage.a + place, grad + u * S::kRows * c.gm.sw, exists && o < outputs);
      const bool valid =
          exists && weight < p.weights && uint32_t(h[u]) < uint32_t(c.xm.h) && uint32_t(w[u]) < uint32_t(c.xm.w);
      cp_async<16>(stage.b + place, x[u], valid);
      h[u] += p.next_h, w[u] += p.next_w, x[u] += p.next;
      if (w[u] >= columns + across) w[u] -= columns, h[u] += c.g.sh, x[u] += p.next_row;
      if (h[u] >= rows + down) h[u] -= rows, x[u] += p.next_image;
    }
    pixel += kDepth<T>, grad += kDepth<T> * c.gm.sw;
  };

  const int warp_m = warp / (kN / kWarpN) * kWarpM, warp_n = warp % (kN / kWarpN) * kWarpN;
  const int steps = (end - begin + kDepth<T> - 1) / kDepth<T>;
  WarpSums<kWarpM, kWarpN> sums;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) fetch(stages[s]);
    cp_async_commit();
  }
  int reading = 0, writing = kStages - 1;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    sync_block();
    if (step + kStages - 1 < steps) fetch(stages[writing]);  // what all warps have left behind
    cp_async_commit();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      LeftFragments<kWarpM> a;
      RightFragments<kWarpN> b;
      load_left_outer<T, kWarpM, kM>(a, stages[reading].a, warp_m, k, lane);
      load_right_outer<T, kWarpN, kN>(b, stages[reading].b, warp_n, k, lane);
      multiply<T>(sums, a, b);
    }
    reading = reading + 1 == kStages ? 0 : reading + 1, writing = writing + 1 == kStages ? 0 : writing + 1;
  }

  float* out = static_cast<float*>(c.partial) + (int64_t(split) * c.g.groups + group) * outputs * p.weights;
#pragma unroll
  for (int m = 0; m < kWarpM / 16; ++m)
#pragma unroll
    for (int n = 0; n < kWarpN / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int to = m0 + warp_m + m * 16 + half * 8 + lane / 4, e = n0 + warp_n + n * 8 + lane % 4 * 2;
        if (to < outputs && e < p.weights)
          store(reinterpret_cast<Vec<float, 2>*>(out + int64_t(to) * p.weights + e),
                Vec<float, 2>{sums.v[m][n][half * 2], sums.v[m][n][half * 2 + 1]});
      }
}

int64_t weights_of(const ConvGeometry& g) { return int64_t{g.kh} * g.kw * g.group_in; }

// 128x128 where the weight fills it, else 64x64.
int64_t tile_of(const ConvGeometry& g) { return g.group_out > 64 && weights_of(g) > 64 ? 128 : 64; }

// Pixels of a split: whole steps of the kernel for any type.
constexpr int64_t kWhole = 32;
int64_t chunk_of(int64_t pixels, int64_t splits) { return ceil_div(ceil_div(pixels, splits), kWhole) * kWhole; }

template <class T, int kM, int kN, int kWarpM, int kWarpN>
const char* run(Params p, void* stream) {
  using S = Tile<T, kM, kN, kWarpM, kWarpN>;
  const int64_t columns = ceil_div(p.weights, kN), rows = ceil_div(p.conv.g.group_out, kM);
  const int64_t blocks = columns * rows * p.conv.splits;
  if (blocks > kMostBlocks || p.conv.g.groups > 65535) return "the weight is too large for one grid";
  p.by_columns = Divisor(columns), p.by_rows = Divisor(rows);
  const Launch l{dim3(unsigned(blocks), unsigned(p.conv.g.groups)), dim3(S::kThreads),
                 sizeof(typename S::Stage) * kStages, stream};
  return launch<conv2d_mma_weight_grad_kernel<T, kM, kN, kWarpM, kWarpN>>(l, p);
}

}  // namespace

int64_t mma_weight_grad_splits(const Conv2dWeightGrad& c) {
  const int64_t tile = tile_of(c.g), pixels = c.gm.n * c.gm.h * c.gm.w;
  const int64_t blocks = ceil_div(c.g.group_out, tile) * ceil_div(weights_of(c.g), tile) * c.g.groups;
  return ceil_div(pixels, chunk_of(pixels, weight_grad_splits(pixels, blocks)));
}

const char* conv2d_weight_grad_mma(const Conv2dWeightGrad& c, void* stream) {
  const int64_t pixels = c.gm.n * c.gm.h * c.gm.w, weights = weights_of(c.g);
  if (pixels > kMostIndex - 2 * kWhole) return "the output has too many pixels for one grid";
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  if (weights > kMostIndex - 128) return "the weight is too large for one grid";
  Params p{};
  p.conv = c, p.pixels = int(pixels), p.chunk = int(chunk_of(pixels, c.splits)), p.weights = int(weights);
  const int64_t depth = 64 / int64_t(size_of(c.dtype)), rows = depth / c.gm.w, row = c.g.sh * c.xm.sh,
                column = c.g.sw * c.xm.sw;
  p.next_w = int(depth % c.gm.w) * c.g.sw, p.next_h = int(rows % c.gm.h) * c.g.sh;
  p.next = rows / c.gm.h * c.xm.sn + rows % c.gm.h * row + depth % c.gm.w * column;
  p.next_row = row - c.gm.w * column, p.next_image = c.xm.sn - c.gm.h * row;
  p.by_h = Divisor(c.gm.h), p.by_w = Divisor(c.gm.w), p.by_group_in = Divisor(c.g.group_in);
  p.by_kw = Divisor(c.g.kw);
  const auto with_tile = [&](auto element) {
    using T = decltype(element);
    return tile_of(c.g) == 128 ? run<T, 128, 128, 64, 64>(p, stream) : run<T, 64, 64, 32, 32>(p, stream);
  };
  if (c.dtype == Dtype::f32) return with_tile(float{});
  return c.dtype == Dtype::f16 ? with_tile(half_t{}) : with_tile(bfloat16_t{});
}

}  // namespace fastcnn::cuda
