// Depthwise and other convolutions of few channels per group, NHWC, without tensor cores: a block copies the part of x
// that its outputs' windows cover (the halo tile) to shared memory once, and every tap reads it there.
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/divisor.h"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2d conv;
  GroupedTile tile;
  int chunks;  // of 16 bytes that a pixel has
  Divisor by_chunks, by_columns, by_width, by_column_tiles, by_row_tiles, by_chunk_tiles, by_kw;
};

// A thread computes kRows neighbouring rows of one column, kVector channels, each from the kGroup of its group, kWidth
// at a time.
template <class T, int kGroup>
__global__ void __launch_bounds__(kGroupedThreads, 2) conv2d_grouped_kernel(Params p) {
  constexpr int kVector = 16 / sizeof(T), kRows = kGroupedRows;
  constexpr int kParts = kGroup > 4 ? kGroup / 4 : 1, kWidth = kGroup / kParts;
  static_assert(kParts == 1 || kVector == 4);
  using Chunk = Vec<T, kVector>;
  FASTCNN_SHARED(Chunk, halo);
  const Conv2d& c = p.conv;
  const GroupedTile& t = p.tile;
  // Weights behind the halo tile, as [tap][kGroup * kVector / 4][chunk][4]: a warp's 16-byte reads adjoin.
  float* weights = reinterpret_cast<float*>(halo + t.height * t.width * t.chunks);
  uint32_t chunk_tile, column_tile, row_tile;
  const int64_t n = p.by_row_tiles.divide(
      p.by_column_tiles.divide(p.by_chunk_tiles.divide(blockIdx.x, chunk_tile), column_tile), row_tile);
  const int row0 = int(row_tile) * t.rows, column0 = int(column_tile) * t.columns, chunk0 = int(chunk_tile) * t.chunks;

  const T* x = static_cast<const T*>(c.x) + n * c.xm.sn + chunk0 * kVector;
  const int h0 = row0 * c.g.sh - c.g.ph, w0 = column0 * c.g.sw - c.g.pw;
  for (int e = threadIdx.x; e < t.height * t.width * t.chunks; e += kGroupedThreads) {
    uint32_t chunk, v;
    const int h = h0 + int(p.by_width.divide(p.by_chunks.divide(e, chunk), v)), w = w0 + int(v);
    const bool valid =
        uint32_t(h) < uint32_t(c.xm.h) && uint32_t(w) < uint32_t(c.xm.w) && chunk0 + int(chunk) < p.chunks;
    cp_async<16>(halo + e, valid ? x + h * c.xm.sh + w * c.xm.sw + chunk * kVector : x, valid);
  }
  cp_async_commit();
  const int taps = c.g.kh * c.g.kw;
  for (int e = threadIdx.x; e < taps * t.chunks * kVector * kGroup; e += kGroupedThreads) {
    uint32_t chunk, j;
    const int part = int(p.by_chunks.divide(e / 4, chunk));
    const int i = int(p.by_kw.divide(part / (kGroup * kVector / 4), j));
    // of the chunk's weights, [output][channel of its group]
    const int at = part % (kGroup * kVector / 4) * 4 + e % 4, o = (chunk0 + int(chunk)) * kVector + at / kGroup;
    const bool exists = chunk0 + int(chunk) < p.chunks;
    const T* w = static_cast<const T*>(c.w) + (exists ? o / kGroup * c.ws.g + o % kGroup * c.ws.o : 0) +
                 at % kGroup * c.ws.c + i * c.ws.i + int(j) * c.ws.j;
    store_shared(weights + e, exists ? to_float(load(w)) : 0.f);
  }
  cp_async_wait<0>();
  sync_block();

  uint32_t chunk, column;
  const int row = int(p.by_columns.divide(p.by_chunks.divide(threadIdx.x, chunk), column)) * kRows;
  if (row >= t.rows || column0 + int(column) >= c.ym.w || chunk0 + int(chunk) >= p.chunks) return;
  float sum[kRows][kVector] = {};
  for (int i = 0; i < c.g.kh; ++i)
    for (int j = 0; j < c.g.kw; ++j)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float w[kVector * kWidth];
#pragma unroll
        for (int q = 0; q < kWidth * kVector / 4; ++q) {
          const int fours = (i * c.g.kw + j) * (kGroup * kVector / 4) + q * kParts + part;
          const auto four =
              load_shared(reinterpret_cast<const Vec<float, 4>*>(weights + (fours * t.chunks + int(chunk)) * 4));
#pragma unroll
          for (int v = 0; v < 4; ++v) w[q * 4 + v] = four.v[v];
        }
        const int from = int(chunk) / kParts * kParts + part;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int at = ((row + r) * c.g.sh + i * c.g.dh) * t.width + int(column) * c.g.sw + j * c.g.dw;
          const Chunk in = load_shared(halo + at * t.chunks + from);
#pragma unroll
          for (int v = 0; v < kVector; ++v)
#pragma unroll
            for (int k = 0; k < kWidth; ++k)
              sum[r][v] = fmaf(w[v * kWidth + k], to_float(in.v[v / kWidth * kWidth + k]), sum[r][v]);
        }
      }

  const int ow = column0 + int(column), channel = (chunk0 + int(chunk)) * kVector;
  float bias[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) bias[v] = bias_of<T>(c, channel + v);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int oh = row0 + row + r;
    if (oh >= c.ym.h) continue;
    Chunk residual{}, y;
    if (c.residual)
      residual = load(reinterpret_cast<const Chunk*>(static_cast<const T*>(c.residual) + n * c.rm.sn + oh * c.rm.sh +
                                                     ow * c.rm.sw + channel));
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      float value = sum[r][v] + bias[v];
      if (c.residual) value += to_float(residual.v[v]);
      y.v[v] = from_float<T>(activated(value, c.relu));
    }
    store(reinterpret_cast<Chunk*>(static_cast<T*>(c.y) + n * c.ym.sn + oh * c.ym.sh + ow * c.ym.sw + channel), y);
  }
}

template <class T>
const char* run(const Params& p, const Launch& l) {
  if constexpr (sizeof(T) == 4) {
    if (p.conv.g.group_in == 8) return launch<conv2d_grouped_kernel<T, 8>>(l, p);
    if (p.conv.g.group_in == 16) return launch<conv2d_grouped_kernel<T, 16>>(l, p);
  }
  switch (p.conv.g.group_in) {
    case 1:
      return launch<conv2d_grouped_kernel<T, 1>>(l, p);
    case 2:
      return launch<conv2d_grouped_kernel<T, 2>>(l, p);
    default:
      return launch<conv2d_grouped_kernel<T, 4>>(l, p);
  }
}

}  // namespace

const char* conv2d_grouped(const Conv2d& c, void* stream) {
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  Params p{};
  p.conv = c, p.tile = grouped_tile(c.g, c.ym.h, c.ym.w, c.dtype), p.chunks = int(grouped_chunks(c.g, c.dtype));
  const GroupedTile& t = p.tile;
  const int64_t down = ceil_div(c.ym.h, t.rows), across = ceil_div(c.ym.w, t.columns);
  const int64_t deep = ceil_div(p.chunks, t.chunks);
  const int64_t blocks = c.ym.n * down * across * deep;
  if (blocks > kMostBlocks) return "the output is too large for one grid";
  p.by_chunks = Divisor(t.chunks), p.by_columns = Divisor(t.columns), p.by_width = Divisor(t.width);
  p.by_column_tiles = Divisor(across), p.by_row_tiles = Divisor(down), p.by_chunk_tiles = Divisor(deep);
  p.by_kw = Divisor(c.g.kw);
  const Launch l{dim3(unsigned(blocks)), dim3(kGroupedThreads), size_t(grouped_bytes(c.g, c.dtype, t)), stream};
  return c.dtype == Dtype::f32 ? run<float>(p, l) : c.dtype == Dtype::f16 ? run<half_t>(p, l) : run<bfloat16_t>(p, l);
}

}  // namespace fastcnn::cuda
