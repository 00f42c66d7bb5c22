// Convolution of 16-bit NHWC tensors with 8 or 16 channels per group on tensor cores: a block copies its halo tile
// once, and every tap is a matrix product of shifted pixels. Of a step's 16 products, 8 belong to one tap and 8
// channels, and 8 to the next channels or, where a group has no more, to the next tap: no product is wasted on another
// group's.
#include <type_traits>

#include "cuda/conv2d_epilogue.cuh"
#include "cuda/conv2d_planes.cuh"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2d conv;
  PlaneTile tile;
  int steps, units;
  // shares: warps of a group, times tile_groups all of the block's (powers of two); row_pieces: eights of columns
  int tile_groups, shares, row_pieces;
  Divisor by_chunks, by_width, by_sw, by_groups, by_row_pieces, by_steps, by_columns, by_kw;
  Divisor by_chunk_tiles, by_column_tiles, by_row_tiles;
};

template <class T, int kGroup>
__global__ void __launch_bounds__(kPlaneThreads, 3) conv2d_grouped_mma_kernel(Params p) {
  constexpr int kChunk = 8, kOut = kGroup / 8, kPieces = 8 / kOut;  // a warp's sums: kPieces x 16 pixels x kOut x 8
  using Chunk = Vec<T, kChunk>;
  using Pair = Vec<uint32_t, 2>;
  FASTCNN_SHARED(Chunk, halo);
  const Conv2d& c = p.conv;
  const PlaneTile& t = p.tile;
  Pair* const weights = reinterpret_cast<Pair*>(halo + t.plane * t.chunks);
  int* const offsets = reinterpret_cast<int*>(weights + t.chunks * p.steps * kWarp);
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  uint32_t chunk_tile, column_tile, row_tile;
  const int64_t n = p.by_row_tiles.divide(
      p.by_column_tiles.divide(p.by_chunk_tiles.divide(blockIdx.x, chunk_tile), column_tile), row_tile);
  const int row0 = int(row_tile) * t.rows, column0 = int(column_tile) * t.columns, chunk0 = int(chunk_tile) * t.chunks;
  const int channels = int(c.g.groups) * kGroup;

  uint32_t chunk;
  const int pixel = int(p.by_chunks.divide(thread, chunk)), pixel_step = int(p.by_chunks.divide(kPlaneThreads));
  const int channel = (chunk0 + int(chunk)) * kChunk;  // that this thread copies and, in the end, stores
  const T* x = static_cast<const T*>(c.x) + n * c.xm.sn + (channel < channels ? channel : 0);
  const int h0 = row0 * c.g.sh - c.g.ph, w0 = column0 * c.g.sw - c.g.pw;
  copy_to_plane(halo + chunk * t.plane, x, channel < channels, c.xm, t, TileWalk(pixel, pixel_step, p.by_width), h0, w0,
                p.by_sw);
  cp_async_commit();
  // Weights as the lanes' fragments: [group][step][8 outputs][lane], inputs 2 (lane % 4) and the next of two units.
  const int group0 = chunk0 / kOut;
  for (int e = warp; e < p.tile_groups * p.steps * kOut; e += kPlaneWarps) {
    uint32_t step;
    const int group = group0 + int(p.by_steps.divide(e / kOut, step)), o = e % kOut * 8 + lane / 4;
    const bool exists = group < c.g.groups;
    const T* w = static_cast<const T*>(c.w) + (exists ? group * c.ws.g + o * c.ws.o : 0) + lane % 4 * 2;
    Pair pair;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int unit = int(step) * 2 + half;
      pair.v[half] = exists && unit < p.units ? load(reinterpret_cast<const uint32_t*>(w + unit * kChunk)) : 0;
    }
    store_shared(weights + e * kWarp + lane, pair);
  }
  for (int unit = thread; unit < p.steps * 2; unit += kPlaneThreads)
    store_shared(offsets + unit, unit_offset<kOut>(c.g, t, unit < p.units ? unit : 0, p.by_kw, p.by_sw));
  cp_async_wait<0>();
  sync_block();

  // A warp takes 16 pixels, two rows of eight, of every `shares`-th piece. Lanes 0-15 point at the first unit's.
  uint32_t group;
  const int share = int(p.by_groups.divide(warp, group)), pieces = t.rows / 2 * p.row_pieces;
  const Chunk* from[kPieces];
  float sum[kPieces][kOut][4] = {};
  const auto exists = [&](int m) { return share + m * p.shares < pieces; };
#pragma unroll
  for (int m = 0; m < kPieces; ++m) {
    uint32_t eight;
    const int row = int(p.by_row_pieces.divide(exists(m) ? share + m * p.shares : 0, eight)) * 2 + lane / 8 % 2;
    from[m] = halo + group * kOut * t.plane + row * c.g.sh * t.row + int(eight) * 8 + lane % 8;
  }
  const auto multiply = [&](int step, auto full, auto whole) {
    const int offset = load_shared(offsets + step * 2 + lane / 16);
    uint32_t b[kOut][2];
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      const Pair pair = load_shared(weights + ((group * p.steps + step) * kOut + o) * kWarp + lane);
      b[o][0] = pair.v[0], b[o][1] = pair.v[1];
    }
#pragma unroll
    for (int m = 0; m < kPieces; ++m) {
      if (!decltype(full)::value && !exists(m)) break;
      uint32_t a[4];
      ldmatrix_x4(a, from[m] + offset);
      if constexpr (!decltype(whole)::value) a[2] = a[3] = 0;  // of no unit: an infinity would meet its weights of zero
#pragma unroll
      for (int o = 0; o < kOut; ++o) mma_m16n8k16<T>(sum[m][o], a, b[o]);
    }
  };
  const auto multiply_all = [&](auto full) {
    for (int step = 0; step < p.units / 2; ++step) multiply(step, full, std::true_type{});
    if (p.units % 2 == 1) multiply(p.steps - 1, full, std::false_type{});
  };
  if (exists(kPieces - 1))  // no branch then keeps one piece's products from the next one's loads
    multiply_all(std::true_type{});
  else
    multiply_all(std::false_type{});

  // Through shared memory, so that each thread stores 8 neighbouring channels of a pixel at once.
  sync_block();
  float* const out = reinterpret_cast<float*>(halo);
  const int out_row = t.chunks * kChunk + 8;
#pragma unroll
  for (int m = 0; m < kPieces; ++m) {
    if (!exists(m)) break;
    uint32_t eight;
    const int row = int(p.by_row_pieces.divide(share + m * p.shares, eight)) * 2;
#pragma unroll
    for (int o = 0; o < kOut; ++o)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int to = (row + half) * t.columns + int(eight) * 8 + lane / 4;
        store_shared(reinterpret_cast<Vec<float, 2>*>(out + to * out_row + (group * kOut + o) * 8 + lane % 4 * 2),
                     Vec<float, 2>{sum[m][o][half * 2], sum[m][o][half * 2 + 1]});
      }
  }
  sync_block();
  if (channel >= channels) return;
  float bias[kChunk];
#pragma unroll
  for (int v = 0; v < kChunk; ++v) bias[v] = bias_of<T>(c, channel + v);
  for (int from_pixel = pixel; from_pixel < t.rows * t.columns; from_pixel += pixel_step) {
    uint32_t column;
    const int oh = row0 + int(p.by_columns.divide(from_pixel, column)), ow = column0 + int(column);
    if (oh >= c.ym.h || ow >= c.ym.w) continue;
    Chunk y, residual{};
    if (c.residual)
      residual = load(reinterpret_cast<const Chunk*>(static_cast<const T*>(c.residual) + n * c.rm.sn + oh * c.rm.sh +
                                                     ow * c.rm.sw + channel));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto four =
          load_shared(reinterpret_cast<const Vec<float, 4>*>(out + from_pixel * out_row + chunk * kChunk + half * 4));
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int k = half * 4 + v;
        float value = four.v[v] + bias[k];
        if (c.residual) value += to_float(residual.v[k]);
        y.v[k] = from_float<T>(activated(value, c.relu));
      }
    }
    store(reinterpret_cast<Chunk*>(static_cast<T*>(c.y) + n * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw + channel), y);
  }
}

template <class T>
const char* run(const Params& p, const Launch& l) {
  return p.conv.g.group_in == 8 ? launch<conv2d_grouped_mma_kernel<T, 8>>(l, p)
                                : launch<conv2d_grouped_mma_kernel<T, 16>>(l, p);
}

}  // namespace

const char* conv2d_grouped_mma(const Conv2d& c, void* stream) {
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  Params p{};
  p.conv = c, p.tile = plane_tile(c.g, c.ym.h, c.ym.w);
  const PlaneTile& t = p.tile;
  const int64_t down = ceil_div(c.ym.h, t.rows), across = ceil_div(c.ym.w, t.columns);
  const int64_t deep = ceil_div(c.g.groups * c.g.group_in / 8, t.chunks), blocks = c.ym.n * down * across * deep;
  if (blocks > kMostBlocks) return "the output is too large for one grid";
  p.steps = int(plane_steps(c.g)), p.units = int(plane_units(c.g)), p.tile_groups = t.chunks * 8 / int(c.g.group_in);
  p.shares = kPlaneWarps / p.tile_groups, p.row_pieces = t.columns / 8;
  p.by_chunks = Divisor(t.chunks), p.by_width = Divisor(t.width), p.by_sw = Divisor(c.g.sw);
  p.by_groups = Divisor(p.tile_groups), p.by_row_pieces = Divisor(p.row_pieces), p.by_steps = Divisor(p.steps);
  p.by_columns = Divisor(t.columns), p.by_kw = Divisor(c.g.kw), p.by_chunk_tiles = Divisor(deep);
  p.by_column_tiles = Divisor(across), p.by_row_tiles = Divisor(down);
  const Launch l{dim3(unsigned(blocks)), dim3(kPlaneThreads), size_t(plane_bytes(c.g, t)), stream};
  return c.dtype == Dtype::f16 ? run<half_t>(p, l) : run<bfloat16_t>(p, l);
}

}  // namespace fastcnn::cuda
