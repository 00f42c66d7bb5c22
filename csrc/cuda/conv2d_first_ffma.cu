// First layers in float32, any layout: the image's part that a block reads lies in shared memory once, for all taps and
// output channels; eight by eight sums a thread.
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/conv2d_first_halo.cuh"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2d conv;
  FirstTile tile;
  FirstGrid grid;
  int row, part, parts, filled;  // of a window's row: elements, those of a stage, stages; filled: outputs in the weight
  bool adjoin, runs;             // runs: four channels of y (and of the residual) may be one access
  Divisor by_channels, by_columns;
};

// A warp computes 64 pixels x 32 channels: eight lanes along the pixels, each every eighth of them.
template <int kN>
struct Tile {
  static constexpr int kWarps = kN == 32 ? 4 : kN / 16;                      // at most
  static constexpr int kThreads = kWarps * kWarp, kBlocks = 384 / kThreads;  // of a processor: 168 registers
  struct Stage {
    float weights[kFirstDepth][kN];
  };
};

// kVector: elements of a window that one load takes, as its place in the halo allows.
template <int kN, int kVector>
__global__ void __launch_bounds__(Tile<kN>::kThreads, Tile<kN>::kBlocks) conv2d_first_ffma_kernel(Params p) {
  using Stage = typename Tile<kN>::Stage;
  FASTCNN_SHARED(Stage, stages);
  float* halo = reinterpret_cast<float*>(stages + kFirstStages);
  const Conv2d& c = p.conv;
  const FirstTile& t = p.tile;
  const FirstPlace place = p.grid.place(t, blockIdx.x);
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;

  int next_row = 0, next_part = 0;
  const auto fetch = [&](Stage& stage) {
    const int first = next_part * p.part, length = p.row - first < p.part ? p.row - first : p.part;
    const float* w = static_cast<const float*>(c.w) + int64_t(next_row * p.row + first) * p.filled;
    for (int e = thread; e < length * (kN / 4); e += blockDim.x) {
      const int k = e / (kN / 4), o = e % (kN / 4) * 4;
      const bool exists = place.channel + o < p.filled;
      cp_async<16>(&stage.weights[k][o], exists ? w + int64_t(k) * p.filled + place.channel + o : w, exists);
    }
    if (++next_part == p.parts) next_part = 0, ++next_row;
  };
  for_each_of_halo<4>(static_cast<const float*>(c.x) + place.n * c.xm.sn, c.xm, t, place.row * c.g.sh - c.g.ph,
                      place.column * c.g.sw - c.g.pw, p.adjoin, p.by_channels,
                      [&](int at, bool valid, const float* from) { cp_async<4>(halo + at, from, valid); });
  fetch(stages[0]);
  cp_async_commit();

  constexpr int kAcross = kN / 32;  // warps along the channels
  const int first_pixel = warp / kAcross * kFirstPixels + lane / 4, column = warp % kAcross * 32 + lane % 4 * 4;
  int window[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int pixel = first_pixel + i * 8;
    uint32_t q;
    const int r = int(p.by_columns.divide(pixel < t.rows * t.columns ? pixel : 0, q));
    window[i] = r * c.g.sh * t.pitch + int(q) * c.g.sw * int(c.g.group_in);
  }
  float sum[8][8] = {};
  const auto add = [&](const float (&a)[8], const float* weights) {
    Vec<float, 4> b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      b[half] = load_shared(reinterpret_cast<const Vec<float, 4>*>(weights + column + half * 16));
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) sum[i][k] = fmaf(a[i], b[k / 4].v[k % 4], sum[i][k]);
  };
  int step = 0;
  for (int i = 0; i < c.g.kh; ++i)
    for (int part = 0; part < p.parts; ++part, ++step) {
      cp_async_wait<0>();
      sync_block();
      if (next_row < c.g.kh) fetch(stages[(step + 1) % kFirstStages]);  // which all have left
      cp_async_commit();
      const Stage& stage = stages[step % kFirstStages];
      const int first = part * p.part, length = p.row - first < p.part ? p.row - first : p.part;
      const float* x = halo + i * t.pitch + first;
      int k = 0;
      for (; k + 4 <= length; k += 4) {
        float a[4][8];
#pragma unroll
        for (int u = 0; u < 8; ++u)
#pragma unroll
          for (int v = 0; v < 4 / kVector; ++v) {
            const auto some =
                load_shared(reinterpret_cast<const Vec<float, kVector>*>(x + window[u] + k + v * kVector));
#pragma unroll
            for (int e = 0; e < kVector; ++e) a[v * kVector + e][u] = some.v[e];
          }
#pragma unroll
        for (int d = 0; d < 4; ++d) add(a[d], stage.weights[k + d]);
      }
#pragma unroll 1
      for (; k < length; ++k) {
        float a[8];
#pragma unroll
        for (int u = 0; u < 8; ++u) a[u] = load_shared(x + window[u] + k);
        add(a, stage.weights[k]);
      }
    }

  const int outputs = int(c.g.group_out);
  float bias[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int o = place.channel + column + k / 4 * 16 + k % 4;
    bias[k] = o < outputs ? bias_of<float>(c, o) : 0;
  }
  const float* residual = static_cast<const float*>(c.residual) + place.n * c.rm.sn;
  float* y = static_cast<float*>(c.y) + place.n * c.ym.sn;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int pixel = first_pixel + i * 8;
    uint32_t q;
    const int oh = place.row + int(p.by_columns.divide(pixel, q)), ow = place.column + int(q);
    if (pixel >= t.rows * t.columns || oh >= c.ym.h || ow >= c.ym.w) continue;
    const int64_t from = oh * c.rm.sh + ow * c.rm.sw, to = oh * c.ym.sh + ow * c.ym.sw;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int o = place.channel + column + half * 16;
      Vec<float, 4> more{}, v;
      if (p.runs && c.residual && o < outputs) more = load(reinterpret_cast<const Vec<float, 4>*>(residual + from + o));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool exists = o + e < outputs;
        if (!p.runs && c.residual && exists) more.v[e] = load(residual + from + (o + e) * c.rm.sc);
        v.v[e] = activated(sum[i][half * 4 + e] + bias[half * 4 + e] + more.v[e], c.relu);
        if (!p.runs && exists) store(y + to + (o + e) * c.ym.sc, v.v[e]);
      }
      if (p.runs && o < outputs) store(reinterpret_cast<Vec<float, 4>*>(y + to + o), v);
    }
  }
}

template <int kN>
const char* run(const Params& p, void* stream) {
  using S = Tile<kN>;
  const FirstTile& t = p.tile;
  const size_t shared = sizeof(typename S::Stage) * kFirstStages + first_halo_bytes(t, Dtype::f32);
  const Launch l{dim3(unsigned(p.grid.blocks)), dim3(t.warps * (kN / 32) * kWarp), shared, stream};
  const int64_t step = first_step(p.conv.g);
  return step % 4 == 0   ? launch<conv2d_first_ffma_kernel<kN, 4>>(l, p)
         : step % 2 == 0 ? launch<conv2d_first_ffma_kernel<kN, 2>>(l, p)
                         : launch<conv2d_first_ffma_kernel<kN, 1>>(l, p);
}

}  // namespace

const char* conv2d_first_ffma(const Conv2d& c, void* stream) {
  if (const char* refusal = first_refusal(c.xm, c.g)) return refusal;
  Params p{};
  p.conv = c, p.tile = first_tile(c.g, c.ym.n, c.ym.h, c.ym.w, Dtype::f32);
  const int channels = first_channels(c.g);
  p.grid = FirstGrid(c.ym, p.tile, channels);
  if (p.grid.blocks > kMostBlocks) return "the output is too large for one grid";
  p.row = int(first_row(c.g)), p.parts = int(ceil_div(p.row, kFirstDepth));
  p.part = int(ceil_div(ceil_div(p.row, p.parts), 4) * 4);
  p.filled = int(packed_layout(c.g, Dtype::f32).group_out), p.adjoin = pixels_adjoin(c.xm);
  p.runs = c.g.group_out % 4 == 0 && in_runs(c.y, c.ym, 4) && in_runs(c.residual, c.rm, 4);
  p.by_channels = Divisor(c.g.group_in), p.by_columns = Divisor(p.tile.columns);
  return channels == 96 ? run<96>(p, stream) : channels == 64 ? run<64>(p, stream) : run<32>(p, stream);
}

}  // namespace fastcnn::cuda
