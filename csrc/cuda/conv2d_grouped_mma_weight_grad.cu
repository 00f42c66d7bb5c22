// The weight gradient of 16-bit NHWC tensors with 8 or 16 channels per group on tensor cores: taps and channels of x
// times output channels, summed over pixels of halo tiles. Each warp of a group, in each split of the tiles, leaves its
// sums to conv2d_weight_grad_finish.
#include <type_traits>

#include "cuda/conv2d.cuh"
#include "cuda/conv2d_planes.cuh"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2dWeightGrad conv;
  PlaneTile tile;
  int units, grad_plane;
  int shares, row_pieces;      // warps of a group, times its groups all of the block's; eights of columns
  int tiles, tiles_per_split;  // of all images, for one range of channels
  Divisor by_chunks, by_width, by_columns, by_sw, by_kw, by_groups, by_row_pieces;
  Divisor by_chunk_tiles, by_step_tiles, by_column_tiles, by_row_tiles;
};

// Steps, each of two units, that a warp keeps sums for: of 3x3 taps, all.
template <int kGroup>
constexpr int kSteps = kGroup == 8 ? 5 : 9;

template <class T, int kGroup>
__global__ void __launch_bounds__(kPlaneThreads, 2) conv2d_grouped_mma_weight_grad_kernel(Params p) {
  constexpr int kChunk = 8, kOut = kGroup / 8;
  using Chunk = Vec<T, kChunk>;
  FASTCNN_SHARED(Chunk, halo);
  const Conv2dWeightGrad& c = p.conv;
  const PlaneTile& t = p.tile;
  Chunk* const grads = halo + t.plane * t.chunks;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  uint32_t chunk_tile, step_tile, chunk, group;
  const int split = int(p.by_step_tiles.divide(p.by_chunk_tiles.divide(blockIdx.x, chunk_tile), step_tile));
  const int chunk0 = int(chunk_tile) * t.chunks, channels = int(c.g.groups) * kGroup;
  const int first_tile = split * p.tiles_per_split;
  const int last_tile = p.tiles - first_tile < p.tiles_per_split ? p.tiles : first_tile + p.tiles_per_split;

  const int pixel = int(p.by_chunks.divide(thread, chunk)), pixel_step = int(p.by_chunks.divide(kPlaneThreads));
  const int channel = (chunk0 + int(chunk)) * kChunk;  // that this thread copies
  const T* const x = static_cast<const T*>(c.x) + (channel < channels ? channel : 0);
  const T* const grad = static_cast<const T*>(c.grad) + (channel < channels ? channel : 0);
  const TileWalk first_input(pixel, pixel_step, p.by_width), first_grad(pixel, pixel_step, p.by_columns);

  // Of 16 pixels, two rows of eight, and two units, lanes point at rows of x: 0-7 and 16-23 at the first unit's.
  const int share = int(p.by_groups.divide(warp, group)), pieces = t.rows / 2 * p.row_pieces;
  int* const table = reinterpret_cast<int*>(halo);  // through which nvcc keeps them, not their computation in the loop
  if (thread < kSteps<kGroup> * 2) {
    const int unit = int(step_tile) * kSteps<kGroup> * 2 + thread;
    store_shared(table + thread, unit_offset<kOut>(c.g, t, unit < p.units ? unit : 0, p.by_kw, p.by_sw));
  }
  sync_block();
  int offsets[kSteps<kGroup>];
#pragma unroll
  for (int s = 0; s < kSteps<kGroup>; ++s) offsets[s] = load_shared(table + s * 2 + lane / 8 % 2);
  sync_block();
  float sum[kSteps<kGroup>][kOut][4] = {};
  for (int tile = first_tile; tile < last_tile; ++tile) {
    uint32_t column_tile, row_tile;
    const int64_t n = p.by_row_tiles.divide(p.by_column_tiles.divide(tile, column_tile), row_tile);
    const int row0 = int(row_tile) * t.rows, column0 = int(column_tile) * t.columns;
    if (tile > first_tile) sync_block();  // all have read the last tile
    copy_to_plane(halo + chunk * t.plane, x + n * c.xm.sn, channel < channels, c.xm, t, first_input,
                  row0 * c.g.sh - c.g.ph, column0 * c.g.sw - c.g.pw, p.by_sw);
    for (TileWalk at = first_grad; at.row < t.rows; at.advance(t.columns)) {
      const int h = row0 + at.row, w = column0 + at.column;
      const bool valid = channel < channels && h < c.gm.h && w < c.gm.w;
      cp_async<16>(grads + chunk * p.grad_plane + at.row * t.columns + at.column,
                   valid ? grad + n * c.gm.sn + h * c.gm.sh + w * c.gm.sw : grad, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();

    const bool ragged = row0 + t.rows > c.gm.h || column0 + t.columns > c.gm.w;
    for (int piece = share; piece < pieces; piece += p.shares) {
      uint32_t eight;
      const int row = int(p.by_row_pieces.divide(piece, eight)) * 2, column = int(eight) * 8;
      uint32_t b[kOut][2];
      const Chunk* const outputs =
          grads + group * kOut * p.grad_plane + (row + lane / 8 % 2) * t.columns + column + lane % 8;
      if constexpr (kOut == 1) {
        ldmatrix_x2_trans(b[0], outputs);
      } else {
        uint32_t both[4];
        ldmatrix_x4_trans(both, outputs + lane / 16 * p.grad_plane);
        b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
      }
      uint32_t keep[2];  // of the pixels in a register, two neighbours of either row, those that exist
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int w = column0 + column + lane % 4 * 2;
        const uint32_t pair = (w < c.gm.w ? 0xffffu : 0u) | (w + 1 < c.gm.w ? 0xffff0000u : 0u);
        keep[half] = row0 + row + half < c.gm.h ? pair : 0;
      }
      const Chunk* const inputs =
          halo + group * kOut * t.plane + (row + lane / 16) * c.g.sh * t.row + column + lane % 8;
      const auto multiply = [&](auto whole) {
#pragma unroll
        for (int s = 0; s < kSteps<kGroup>; ++s) {  // all: a weight of fewer leaves the memory time for them
          uint32_t a[4];
          ldmatrix_x4_trans(a, inputs + offsets[s]);
          if constexpr (!decltype(whole)::value) {  // an infinity would meet a gradient of zero
#pragma unroll
            for (int r = 0; r < 4; ++r) a[r] &= keep[r / 2];
          }
#pragma unroll
          for (int o = 0; o < kOut; ++o) mma_m16n8k16<T>(sum[s][o], a, b[o]);
        }
      };
      if (ragged)
        multiply(std::false_type{});
      else
        multiply(std::true_type{});
    }
  }

  const int64_t weights = int64_t{p.units} * kChunk;  // of an output
  float* const out = static_cast<float*>(c.partial) + (int64_t(split) * p.shares + share) * channels * weights;
  const int first_output = chunk0 * kChunk + int(group) * kGroup;
  if (first_output >= channels) return;
#pragma unroll
  for (int s = 0; s < kSteps<kGroup>; ++s)
#pragma unroll
    for (int o = 0; o < kOut; ++o)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int unit = (int(step_tile) * kSteps<kGroup> + s) * 2 + i / 2;
        const int output = first_output + o * 8 + lane % 4 * 2 + i % 2;
        if (unit < p.units) store(out + output * weights + unit * kChunk + lane / 4, sum[s][o][i]);
      }
}

template <class T>
const char* run(const Params& p, const Launch& l) {
  return p.conv.g.group_in == 8 ? launch<conv2d_grouped_mma_weight_grad_kernel<T, 8>>(l, p)
                                : launch<conv2d_grouped_mma_weight_grad_kernel<T, 16>>(l, p);
}

struct Grid {
  PlaneTile tile;
  int64_t down, across, deep, step_tiles, tiles, shares;

  explicit Grid(const Conv2dWeightGrad& c)
      : tile(plane_grad_tile(c.g, c.gm.h, c.gm.w)),
        down(ceil_div(c.gm.h, tile.rows)),
        across(ceil_div(c.gm.w, tile.columns)),
        deep(ceil_div(c.g.groups * c.g.group_in / 8, tile.chunks)),
        step_tiles(ceil_div(plane_steps(c.g), c.g.group_in == 8 ? kSteps<8> : kSteps<16>)),
        tiles(c.gm.n * down * across),
        shares(kPlaneWarps * c.g.group_in / (tile.chunks * 8)) {}
};

}  // namespace

int64_t grouped_mma_weight_grad_splits(const Conv2dWeightGrad& c) {
  const Grid grid(c);
  return grouped_grad_splits(grid.tiles, grid.deep * grid.step_tiles) * grid.shares;
}

const char* conv2d_weight_grad_grouped_mma(const Conv2dWeightGrad& c, void* stream) {
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  const Grid grid(c);
  const PlaneTile& t = grid.tile;
  const int64_t splits = c.splits / grid.shares, blocks = grid.deep * grid.step_tiles * splits;
  if (grid.tiles > kMostIndex || blocks > kMostBlocks) return "the gradient is too large for one grid";
  Params p{};
  p.conv = c, p.tile = t, p.units = int(plane_units(c.g)), p.grad_plane = plane_of_grad(t);
  p.shares = int(grid.shares), p.row_pieces = t.columns / 8;
  p.tiles = int(grid.tiles), p.tiles_per_split = int(ceil_div(grid.tiles, splits));
  p.by_chunks = Divisor(t.chunks), p.by_width = Divisor(t.width), p.by_columns = Divisor(t.columns);
  p.by_sw = Divisor(c.g.sw), p.by_kw = Divisor(c.g.kw), p.by_groups = Divisor(t.chunks * 8 / c.g.group_in);
  p.by_row_pieces = Divisor(p.row_pieces), p.by_chunk_tiles = Divisor(grid.deep);
  p.by_step_tiles = Divisor(grid.step_tiles), p.by_column_tiles = Divisor(grid.across);
  p.by_row_tiles = Divisor(grid.down);
  const Launch l{dim3(unsigned(blocks)), dim3(kPlaneThreads), size_t(plane_grad_bytes(t)), stream};
  return c.dtype == Dtype::f16 ? run<half_t>(p, l) : run<bfloat16_t>(p, l);
}

}  // namespace fastcnn::cuda
