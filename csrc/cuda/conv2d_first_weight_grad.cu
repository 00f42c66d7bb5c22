// The weight gradient of first layers of 16-bit types as a matrix product on tensor cores: output channels times
// weights, summed over pixels of NHWC gradients and of an image in any layout. A block lays the windows of 8x8 pixels
// out as a matrix in shared memory. Each split of these tiles leaves its sums to conv2d_weight_grad_finish.
#include "cuda/conv2d_first_halo.cuh"
#include "cuda/mma_tile.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int kSide = kFirstSide, kPixels = kSide * kSide, kThreads = 256;

struct Params {
  Conv2dWeightGrad conv;
  FirstTile tile;
  int tiles, chunk;  // chunk: tiles of a split
  int row, weights;  // of a window's row, of an output channel
  bool adjoin;
  Divisor by_channels, by_pairs, by_across, by_down, by_columns, by_rows;
};

// A block computes kM channels x kN weights, two by four warps.
template <class T, int kM, int kN>
struct Tile {
  static constexpr int kWarpM = kM / 2, kWarpN = kN / 4,
                       kPairs = kN / 2 / kWarp;       // pairs of weights that a lane copies
  static constexpr int kWidth = (kM + 63) / 64 * 64;  // whole lines of all banks
  struct Shared {
    T grad[kPixels * kWidth], windows[kPixels * kN];
  };
};

template <class T, int kM, int kN>
__global__ void __launch_bounds__(kThreads, 2) conv2d_first_mma_weight_grad_kernel(Params p) {
  using S = Tile<T, kM, kN>;
  using Shared = typename S::Shared;
  FASTCNN_SHARED(Shared, shared);
  uint32_t* halo = reinterpret_cast<uint32_t*>(shared + 1);
  T* elements = reinterpret_cast<T*>(halo);
  const Conv2dWeightGrad& c = p.conv;
  const FirstTile& t = p.tile;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp, outputs = int(c.g.group_out);
  uint32_t row_block, column_block;
  const int split = int(p.by_rows.divide(p.by_columns.divide(blockIdx.x, column_block), row_block));
  const int m0 = int(row_block) * kM, n0 = int(column_block) * kN;

  // A warp lays out the windows of one column of pixels, its lanes pairs of weights.
  int at[S::kPairs];
  uint32_t mask[S::kPairs];
#pragma unroll
  for (int u = 0; u < S::kPairs; ++u) {
    uint32_t pair;
    const int i = int(p.by_pairs.divide(n0 / 2 + u * kWarp + lane, pair));
    const int window = warp * c.g.sw * int(c.g.group_in);
    at[u] = (window % 2 ? t.copy + window - 1 : window) / 2 + (i < c.g.kh ? i * t.pitch / 2 + int(pair) : 0);
    mask[u] = i >= c.g.kh ? 0 : int(pair) * 2 + 1 < p.row ? ~0u : 0xffffu;
  }

  const int warp_m = warp / 4 * S::kWarpM, warp_n = warp % 4 * S::kWarpN;
  WarpSums<S::kWarpM, S::kWarpN> sums;
  const int begin = split * p.chunk, end = p.tiles - begin < p.chunk ? p.tiles : begin + p.chunk;
  for (int tile = begin; tile < end; ++tile) {
    uint32_t down, across;
    const int64_t n = p.by_down.divide(p.by_across.divide(tile, across), down);
    const int oh = int(down) * kSide, ow = int(across) * kSide;
    sync_block();  // all have left the tile before
#pragma unroll 1
    for (int e = thread; e < kPixels * (kM / kChunk<T>); e += kThreads) {
      const int pixel = e / (kM / kChunk<T>), chunk = e % (kM / kChunk<T>), o = m0 + chunk * kChunk<T>;
      const int h = oh + pixel / kSide, w = ow + pixel % kSide;
      const bool exists = h < c.gm.h && w < c.gm.w && o < outputs;
      const T* grad = static_cast<const T*>(c.grad);
      cp_async<16>(shared->grad + pixel * S::kWidth + outer_chunk<T>(pixel, chunk) * kChunk<T>,
                   exists ? grad + n * c.gm.sn + h * c.gm.sh + w * c.gm.sw + o : grad, exists);
    }
    cp_async_commit();
    // Two elements, and one copy or row at a time: more would spill registers beside the sums.
    for_each_of_halo<2>(static_cast<const T*>(c.x) + n * c.xm.sn, c.xm, t, oh * c.g.sh - c.g.ph, ow * c.g.sw - c.g.pw,
                        p.adjoin, p.by_channels, [&](int place, bool valid, const T* from) {
                          const T x = load_if(valid, from);
                          store_shared(elements + place, x);
                          if (t.copy && place > 0) store_shared(elements + t.copy + place - 1, x);
                        });
    sync_block();
#pragma unroll 2
    for (int i = 0; i < kSide; ++i) {
      const int pixel = i * kSide + warp;
      const bool exists = oh + i < c.gm.h && ow + warp < c.gm.w;
#pragma unroll
      for (int u = 0; u < S::kPairs; ++u) {
        const uint32_t x = load_shared(halo + at[u] + i * c.g.sh * (t.pitch / 2)) & (exists ? mask[u] : 0);
        const int pair = u * kWarp + lane;
        store_shared(reinterpret_cast<uint32_t*>(shared->windows + pixel * kN +
                                                 outer_chunk<T>(pixel, pair / (kChunk<T> / 2)) * kChunk<T>) +
                         pair % (kChunk<T> / 2),
                     x);
      }
    }
    cp_async_wait<0>();
    sync_block();
#pragma unroll 1
    for (int k = 0; k < kPixels / 16; k += 2)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        LeftFragments<S::kWarpM> a;
        RightFragments<S::kWarpN> b;
        load_left_outer<T, S::kWarpM, S::kWidth>(a, shared->grad, warp_m, k + half, lane);
        load_right_outer<T, S::kWarpN, kN>(b, shared->windows, warp_n, k + half, lane);
        multiply<T>(sums, a, b);
      }
  }

  float* out = static_cast<float*>(c.partial) + int64_t(split) * outputs * p.weights;
#pragma unroll
  for (int n = 0; n < S::kWarpN / 8; ++n) {
    uint32_t pair;
    const int i = int(p.by_pairs.divide((n0 + warp_n + n * 8) / 2 + lane % 4, pair));
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const int weight = i * p.row + int(pair) * 2 + v;
      if (i >= c.g.kh || int(pair) * 2 + v >= p.row) continue;
#pragma unroll
      for (int m = 0; m < S::kWarpM / 16; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int o = m0 + warp_m + m * 16 + half * 8 + lane / 4;
          if (o < outputs) store(out + int64_t(o) * p.weights + weight, sums.v[m][n][half * 2 + v]);
        }
    }
  }
}

struct Grid {
  int64_t rows, columns, tiles;
  int m, n;

  explicit Grid(const Conv2dWeightGrad& c) {
    const int64_t sums = 2 * c.g.kh * ceil_div(first_row(c.g), 2);
    m = first_channels(c.g) == 96 ? 96 : 64, n = sums <= 64 ? 64 : 192;
    rows = ceil_div(c.g.group_out, m), columns = ceil_div(sums, n);
    tiles = c.gm.n * ceil_div(c.gm.h, kSide) * ceil_div(c.gm.w, kSide);
  }
};

template <class T, int kM, int kN>
const char* run(Params p, const Grid& grid, void* stream) {
  const size_t shared = sizeof(typename Tile<T, kM, kN>::Shared) + first_halo_bytes(p.tile, p.conv.dtype);
  const Launch l{dim3(unsigned(grid.rows * grid.columns * p.conv.splits)), dim3(kThreads), shared, stream};
  return launch<conv2d_first_mma_weight_grad_kernel<T, kM, kN>>(l, p);
}

}  // namespace

int64_t first_weight_grad_splits(const Conv2dWeightGrad& c) {
  const Grid grid(c);
  const int64_t splits = weight_grad_splits(grid.tiles * kPixels, grid.rows * grid.columns);
  return ceil_div(grid.tiles, ceil_div(grid.tiles, splits));
}

const char* conv2d_first_weight_grad(const Conv2dWeightGrad& c, void* stream) {
  if (const char* refusal = first_refusal(c.xm, c.g)) return refusal;
  const Grid grid(c);
  if (grid.tiles > kMostBlocks || grid.rows * grid.columns * c.splits > kMostBlocks)
    return "the output is too large for one grid";
  Params p{};
  p.conv = c, p.tile = shape_first_tile(c.g, c.dtype, kSide, kSide);
  p.tiles = int(grid.tiles), p.chunk = int(ceil_div(grid.tiles, c.splits));
  p.row = int(first_row(c.g)), p.weights = c.g.kh * p.row, p.adjoin = pixels_adjoin(c.xm);
  p.by_channels = Divisor(c.g.group_in), p.by_pairs = Divisor(ceil_div(p.row, 2));
  p.by_across = Divisor(ceil_div(c.gm.w, kSide)), p.by_down = Divisor(ceil_div(c.gm.h, kSide));
  p.by_columns = Divisor(grid.columns), p.by_rows = Divisor(grid.rows);
  const auto with_tile = [&](auto element) {
    using T = decltype(element);
    if (grid.m == 96) return grid.n == 64 ? run<T, 96, 64>(p, grid, stream) : run<T, 96, 192>(p, grid, stream);
    return grid.n == 64 ? run<T, 64, 64>(p, grid, stream) : run<T, 64, 192>(p, grid, stream);
  };
  return c.dtype == Dtype::f16 ? with_tile(half_t{}) : with_tile(bfloat16_t{});
}

}  // namespace fastcnn::cuda
