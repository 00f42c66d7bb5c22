// The weight gradient of convolutions with few channels per group, NHWC: a block walks over tiles of the gradient, and
// copies each with the part of x that its windows cover to shared memory once. Each split of the tiles leaves its sums
// to conv2d_weight_grad_finish.
#include "cuda/conv2d.cuh"
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/conv2d_halo.cuh"
#include "cuda/divisor.h"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2dWeightGrad conv;
  GroupedGradTile tile;
  int chunks;                  // of 16 bytes that a pixel has
  int tiles, tiles_per_split;  // of all images, for one range of channels
  Divisor by_chunks, by_width, by_columns, by_strips, by_parts, by_inputs, by_row_runs, by_units;
  Divisor by_chunk_tiles, by_column_tiles, by_row_tiles;
};

// Sums of a thread: kGradTaps neighbouring taps of a row of the kernel, the four channels of its part of the gradient,
// each with kGroup channels of x. kAdjoin: what a tap reads, the tap before reads for the next pixel.
template <class T, int kGroup, bool kAdjoin>
__global__ void __launch_bounds__(kGroupedThreads, 2) conv2d_grouped_weight_grad_kernel(Params p) {
  constexpr int kVector = 16 / sizeof(T), kSums = kGradTaps * kGradPart * kGroup;
  using Chunk = Vec<T, kVector>;
  using Part = Vec<T, kGradPart>;
  FASTCNN_SHARED(Chunk, halo);
  const Conv2dWeightGrad& c = p.conv;
  const GroupedGradTile& t = p.tile;
  Chunk* const grads = halo + t.height * t.width * t.chunks;
  const int thread = threadIdx.x, parts = t.chunks * kVector / kGradPart;
  uint32_t chunk_tile;
  const int split = int(p.by_chunk_tiles.divide(blockIdx.x, chunk_tile));
  const int chunk0 = int(chunk_tile) * t.chunks, first_tile = split * p.tiles_per_split;
  const int last_tile = p.tiles - first_tile < p.tiles_per_split ? p.tiles : first_tile + p.tiles_per_split;

  // What this thread copies: one chunk of some pixels.
  uint32_t chunk;
  const int pixel = int(p.by_chunks.divide(thread, chunk)), pixels = int(p.by_chunks.divide(t.threads));
  const TileWalk first_input(pixel, pixels, p.by_width), first_grad(pixel, pixels, p.by_columns);
  const bool exists = chunk0 + int(chunk) < p.chunks;
  const T* x = static_cast<const T*>(c.x) + (exists ? (chunk0 + int(chunk)) * kVector : 0);
  const T* grad = static_cast<const T*>(c.grad) + (exists ? (chunk0 + int(chunk)) * kVector : 0);

  // What it sums: strips `lane`, lane + lanes, ... of kGradPixels pixels, with taps (i, j) and those beside it.
  uint32_t unit, part, input, j;
  const int lane = int(p.by_units.divide(thread, unit));
  const int run = int(p.by_inputs.divide(p.by_parts.divide(unit, part), input));
  const int i = int(p.by_row_runs.divide(run, j));
  j *= kGradTaps;
  const int in_part = int(part) - int(part) % t.inputs + int(input);
  const Part* const inputs =
      reinterpret_cast<const Part*>(halo) + (i * c.g.dh * t.width + int(j) * c.g.dw) * parts + in_part;
  const Part* const outputs = reinterpret_cast<const Part*>(grads) + part;

  float sum[kSums] = {};
  for (int tile = first_tile; tile < last_tile; ++tile) {
    uint32_t column_tile, row_tile;
    const int64_t n = p.by_row_tiles.divide(p.by_column_tiles.divide(tile, column_tile), row_tile);
    const int row0 = int(row_tile) * t.rows, column0 = int(column_tile) * t.columns;
    const int h0 = row0 * c.g.sh - c.g.ph, w0 = column0 * c.g.sw - c.g.pw;
    if (tile > first_tile) sync_block();  // all have read the last tile
    TileWalk at = first_input;
    for (int e = thread; e < t.height * t.width * t.chunks; e += t.threads, at.advance(t.width)) {
      const int h = h0 + at.row, w = w0 + at.column;
      const bool valid = exists && uint32_t(h) < uint32_t(c.xm.h) && uint32_t(w) < uint32_t(c.xm.w);
      cp_async<16>(halo + e, valid ? x + n * c.xm.sn + h * c.xm.sh + w * c.xm.sw : x, valid);
    }
    at = first_grad;
    for (int e = thread; e < t.rows * t.columns * t.chunks; e += t.threads, at.advance(t.columns)) {
      const int h = row0 + at.row, w = column0 + at.column;
      const bool valid = exists && h < c.gm.h && w < c.gm.w;
      cp_async<16>(grads + e, valid ? grad + n * c.gm.sn + h * c.gm.sh + w * c.gm.sw : grad, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();

    const int rows = int(c.gm.h) - row0 < t.rows ? int(c.gm.h) - row0 : t.rows, columns = int(c.gm.w) - column0;
    if (lane >= t.lanes) continue;
    for (int strip = lane; strip < rows * t.strips; strip += t.lanes) {
      uint32_t s;
      const int row = int(p.by_strips.divide(strip, s)), column = int(s) * kGradPixels;
      const Part* const g = outputs + (row * t.columns + column) * parts;
      const Part* const in = inputs + (row * c.g.sh * t.width + column * c.g.sw) * parts;
      const int column_step = c.g.sw * parts, tap_step = c.g.dw * parts;
      Part window[kAdjoin ? kGradPixels + kGradTaps - 1 : 1];
      if constexpr (kAdjoin)
#pragma unroll
        for (int w = 0; w < kGradPixels + kGradTaps - 1; ++w) window[w] = load_shared(in + w * column_step);
#pragma unroll
      for (int u = 0; u < kGradPixels; ++u) {
        if (column + u >= columns) break;  // zeros for these would meet infinities of x
        const Part o = load_shared(g + u * parts);
#pragma unroll
        for (int tap = 0; tap < kGradTaps; ++tap) {
          Part v;
          if constexpr (kAdjoin)
            v = window[u + tap];
          else
            v = load_shared(in + u * column_step + tap * tap_step);
#pragma unroll
          for (int k = 0; k < kGradPart * kGroup; ++k) {
            float& to = sum[tap * kGradPart * kGroup + k];
            to = fmaf(to_float(o.v[k / kGroup]), to_float(v.v[k / kGroup / kGroup * kGroup + k % kGroup]), to);
          }
        }
      }
    }
  }

  // The lanes' sums, in their order.
  sync_block();
  float* const sums = reinterpret_cast<float*>(halo);
  const int summing = t.lanes * t.units;
  if (lane < t.lanes)
#pragma unroll
    for (int k = 0; k < kSums; ++k) store_shared(sums + k * summing + thread, sum[k]);
  sync_block();
  float* const out =
      static_cast<float*>(c.partial) + split * (c.g.groups * c.g.group_out * c.g.group_in) * (int64_t{c.g.kh} * c.g.kw);
  for (int e = thread; e < t.units * kSums; e += t.threads) {
    const int k = int(p.by_units.divide(e, unit));
    float total = 0;
    for (int from = 0; from < t.lanes; ++from) total += load_shared(sums + k * summing + from * t.units + unit);
    const int at = int(p.by_row_runs.divide(p.by_inputs.divide(p.by_parts.divide(unit, part), input), j));
    const int column = int(j) * kGradTaps + k / (kGradPart * kGroup);
    const int o = chunk0 * kVector + int(part) * kGradPart + k / kGroup % kGradPart;
    if (column >= c.g.kw || o >= p.chunks * kVector) continue;
    const int64_t tap = int64_t(o) * c.g.kh * c.g.kw + at * c.g.kw + column;
    store(out + tap * c.g.group_in + int(input) * kGroup + k % kGroup, total);
  }
}

template <class T, int kGroup>
const char* run(const Params& p, const Launch& l) {
  return p.conv.g.sw == p.conv.g.dw ? launch<conv2d_grouped_weight_grad_kernel<T, kGroup, true>>(l, p)
                                    : launch<conv2d_grouped_weight_grad_kernel<T, kGroup, false>>(l, p);
}

template <class T>
const char* run(const Params& p, const Launch& l) {
  switch (p.conv.g.group_in) {
    case 1:
      return run<T, 1>(p, l);
    case 2:
      return run<T, 2>(p, l);
    default:
      return run<T, 4>(p, l);
  }
}

struct Grid {
  GroupedGradTile tile;
  int64_t down, across, deep, tiles;

  explicit Grid(const Conv2dWeightGrad& c)
      : tile(grouped_grad_tile(c.g, c.gm.h, c.gm.w, c.dtype)),
        down(ceil_div(c.gm.h, tile.rows)),
        across(ceil_div(c.gm.w, tile.columns)),
        deep(ceil_div(grouped_chunks(c.g, c.dtype), tile.chunks)),
        tiles(c.gm.n * down * across) {}
};

}  // namespace

int64_t grouped_weight_grad_splits(const Conv2dWeightGrad& c) {
  const Grid grid(c);
  return grouped_grad_splits(grid.tiles, grid.deep);
}

const char* conv2d_weight_grad_grouped(const Conv2dWeightGrad& c, void* stream) {
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  const Grid grid(c);
  const GroupedGradTile& t = grid.tile;
  if (grid.tiles > kMostIndex || grid.deep * c.splits > kMostBlocks) return "the gradient is too large for one grid";
  Params p{};
  p.conv = c, p.tile = t, p.chunks = int(grouped_chunks(c.g, c.dtype));
  p.tiles = int(grid.tiles), p.tiles_per_split = int(ceil_div(grid.tiles, c.splits));
  p.by_chunks = Divisor(t.chunks), p.by_width = Divisor(t.width), p.by_columns = Divisor(t.columns);
  p.by_strips = Divisor(t.strips), p.by_parts = Divisor(t.chunks * (16 / size_of(c.dtype)) / kGradPart);
  p.by_inputs = Divisor(t.inputs), p.by_row_runs = Divisor(ceil_div(c.g.kw, kGradTaps)), p.by_units = Divisor(t.units);
  p.by_chunk_tiles = Divisor(grid.deep), p.by_column_tiles = Divisor(grid.across), p.by_row_tiles = Divisor(grid.down);
  const Launch l{dim3(unsigned(grid.deep * c.splits)), dim3(unsigned(t.threads)),
                 size_t(grouped_grad_bytes(c.g, c.dtype, t)), stream};
  return c.dtype == Dtype::f32 ? run<float>(p, l) : c.dtype == Dtype::f16 ? run<half_t>(p, l) : run<bfloat16_t>(p, l);
}

}  // namespace fastcnn::cuda
