// First layers of 16-bit types, any layout, on tensor cores: the image's part that a block reads lies in shared memory
// once, for all taps and output channels, and the matrix of windows is read off it pair by pair.
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/conv2d_first_halo.cuh"
#include "cuda/mma_tile.cuh"

namespace fastcnn::cuda {
namespace {

// What a store of y (and a load of the residual) takes: 8 channels of a pixel; one, whose neighbour lies beside it; or
// one of a pixel whose neighbour does.
enum Store : int { kChunks, kChannels, kPixels };

struct Params {
  Conv2d conv;
  FirstTile tile;
  FirstGrid grid;
  int steps, sum;  // sum: of an output's packed weights, with their filling
  bool adjoin, odd_and_even;
  Divisor by_channels, by_columns, by_pairs;
};

// Of a sum's pairs in steps of 16, for each quarter of a fragment's row: the words in the halo, counted from the
// window's first, and what of them belongs to the window.
struct Pairs {
  uint32_t at[2], mask[2];
};
static_assert(sizeof(Pairs) == 16 && kFirstPairs * 2 == kDepth<half_t>);

template <class T, int kN>
struct Tile {
  static constexpr int kWarps = kN == 96 ? 6 : 8, kThreads = kWarps * kWarp;  // at most; at least kFirstWarps
  static constexpr int kMostCopies = kN * (kDepth<T> / kChunk<T>) / (kFirstWarps * kWarp);
  struct Stage {
    T weights[kN * kDepth<T>];
  };
  // In the epilogue a warp's 32 pixels x 32 channels, with room between rows that keeps fragments on different banks.
  static constexpr int kChannelRow = 32 + 8, kPixelRow = 32 + 4;
  static constexpr size_t kOutBytes = 32 * kChannelRow * sizeof(float);
};

// A warp computes 32 pixels x kN channels.
template <class T, int kN, int kStore>
__global__ void __launch_bounds__(Tile<T, kN>::kThreads, 2) conv2d_first_mma_kernel(Params p) {
  using S = Tile<T, kN>;
  using Stage = typename S::Stage;
  FASTCNN_SHARED(Stage, stages);
  Vec<uint32_t, 4>* pairs = reinterpret_cast<Vec<uint32_t, 4>*>(stages + kFirstStages);  // as Pairs, [step of 16][4]
  uint32_t* halo = reinterpret_cast<uint32_t*>(pairs + p.steps * 8);
  const Conv2d& c = p.conv;
  const FirstTile& t = p.tile;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp, outputs = int(c.g.group_out);
  const FirstPlace place = p.grid.place(t, blockIdx.x);

  // What this thread copies of every step: a chunk of the weights of some output channels.
  const int chunk = thread % (kDepth<T> / kChunk<T>), row = thread / (kDepth<T> / kChunk<T>);
  const int rows = int(blockDim.x) / (kDepth<T> / kChunk<T>),
            to = row * kDepth<T> + inner_chunk(row, chunk) * kChunk<T>;
  const T *w0 = static_cast<const T*>(c.w), *w = w0 + int64_t(place.channel + row) * p.sum + chunk * kChunk<T>;
  const auto fetch = [&](Stage& stage) {
#pragma unroll
    for (int u = 0; u < S::kMostCopies; ++u) {
      const bool exists = place.channel + row + u * rows < outputs;
      if (row + u * rows < kN)
        cp_async<16>(stage.weights + to + u * rows * kDepth<T>, exists ? w + int64_t(u * rows) * p.sum : w0, exists);
    }
    w += kDepth<T>;
  };
  fetch(stages[0]);
  cp_async_commit();
  T* elements = reinterpret_cast<T*>(halo);
  for_each_of_halo<4>(static_cast<const T*>(c.x) + place.n * c.xm.sn, c.xm, t, place.row * c.g.sh - c.g.ph,
                      place.column * c.g.sw - c.g.pw, p.adjoin, p.by_channels, [&](int at, bool valid, const T* from) {
                        const T x = load_if(valid, from);
                        store_shared(elements + at, x);
                        if (t.copy && at > 0) store_shared(elements + t.copy + at - 1, x);
                      });
  for (int e = thread; e < p.steps * 8; e += blockDim.x) {
    Pairs of{};
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      uint32_t pair;
      const int row = int(p.by_pairs.divide(e / 4 * 8 + v * 4 + e % 4, pair));
      if (row >= c.g.kh) continue;
      of.at[v] = row * t.pitch / 2 + pair;
      of.mask[v] = int(pair) * 2 + 1 < c.g.kw * int(c.g.group_in) ? ~0u : 0xffffu;
    }
    store_shared(pairs + e, Vec<uint32_t, 4>{of.at[0], of.at[1], of.mask[0], of.mask[1]});
  }

  // Row r of a fragment is pixel r of sixteen or, where that would put windows eight apart on one bank, of all even
  // ones and then all odd ones.
  const auto pixel_of = [&](int row) {
    const int in16 = row % 16;
    return warp * kWarpPixels + row - in16 + (p.odd_and_even ? in16 % 8 * 2 + in16 / 8 : in16);
  };
  int window[2][2];  // its first word, of a lane's rows
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = pixel_of(m * 16 + half * 8 + lane / 4);
      uint32_t column;
      const int row = int(p.by_columns.divide(pixel < t.rows * t.columns ? pixel : 0, column));
      const int at = row * c.g.sh * t.pitch + int(column) * c.g.sw * int(c.g.group_in);
      window[m][half] = (at % 2 ? t.copy + at - 1 : at) / 2;
    }

  WarpSums<32, kN> sums;
  const int row_b = lane / 16 * 8 + lane % 8;
  for (int step = 0; step < p.steps; ++step) {
    cp_async_wait<0>();
    sync_block();
    if (step + 1 < p.steps) fetch(stages[(step + 1) % kFirstStages]);  // which all have left
    cp_async_commit();
    const T* weights = stages[step % kFirstStages].weights + row_b * kDepth<T>;
#pragma unroll
    for (int k = 0; k < kDepth<T> / 16; ++k) {
      const Vec<uint32_t, 4> of = load_shared(pairs + (step * (kDepth<T> / 16) + k) * 4 + lane % 4);
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = load_shared(halo + window[m][i % 2] + of.v[i / 2]) & of.v[2 + i / 2];
      const T* from = weights + inner_chunk(row_b, k * 2 + lane / 8 % 2) * kChunk<T>;
      // One fragment ahead: all of them at once would spill registers.
      ldmatrix_x4(b[0], from);
#pragma unroll
      for (int n = 0; n < kN / 16; ++n) {
        if (n + 1 < kN / 16) ldmatrix_x4(b[(n + 1) % 2], from + (n + 1) * 16 * kDepth<T>);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            mma_m16n8k16<T>(sums.v[m][n * 2 + half], a[m], {b[n % 2][half * 2], b[n % 2][half * 2 + 1]});
      }
    }
  }

  sync_block();
  float* out = reinterpret_cast<float*>(stages) + warp * int(S::kOutBytes / sizeof(float));
  const T* residual = static_cast<const T*>(c.residual) + place.n * c.rm.sn;
  T* y = static_cast<T*>(c.y) + place.n * c.ym.sn;
  const auto position = [&](int row, int& oh, int& ow) {
    const int pixel = pixel_of(row);
    uint32_t column;
    oh = place.row + int(p.by_columns.divide(pixel, column)), ow = place.column + int(column);
    return pixel < t.rows * t.columns && oh < c.ym.h && ow < c.ym.w;
  };
  const auto finish = [&](float sum, int oh, int ow, int o) {
    float value = sum + bias_of<T>(c, o);
    if (c.residual) value += to_float(load(residual + oh * c.rm.sh + ow * c.rm.sw + o * c.rm.sc));
    store(y + oh * c.ym.sh + ow * c.ym.sw + o * c.ym.sc, from_float<T>(activated(value, c.relu)));
  };
#pragma unroll
  for (int part = 0; part < kN / 32; ++part) {
    const int o0 = place.channel + part * 32;
    if (o0 >= outputs) break;
    sync_warp();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* sum = &sums.v[m][part * 4 + n][half * 2];
          const int row = m * 16 + half * 8 + lane / 4, channel = n * 8 + lane % 4 * 2;
          if constexpr (kStore == kPixels) {
            store_shared(out + channel * S::kPixelRow + row, sum[0]);
            store_shared(out + (channel + 1) * S::kPixelRow + row, sum[1]);
          } else {
            store_shared(reinterpret_cast<Vec<float, 2>*>(out + row * S::kChannelRow + channel),
                         Vec<float, 2>{sum[0], sum[1]});
          }
        }
    sync_warp();
    int oh, ow;
    if constexpr (kStore == kPixels) {
      const bool exists = position(lane, oh, ow);
      const int channels = outputs - o0 < 32 ? outputs - o0 : 32;
#pragma unroll 1
      for (int o = 0; o < channels; ++o) {
        const float sum = load_shared(out + o * S::kPixelRow + lane);
        if (exists) finish(sum, oh, ow, o0 + o);
      }
    } else if constexpr (kStore == kChannels) {
#pragma unroll 1
      for (int row = 0; row < 32; ++row) {
        const float sum = load_shared(out + row * S::kChannelRow + lane);
        if (position(row, oh, ow) && o0 + lane < outputs) finish(sum, oh, ow, o0 + lane);
      }
    } else {
      const int channel = lane % 4 * kChunk<T>, o = o0 + channel;
      float bias[kChunk<T>];
#pragma unroll
      for (int v = 0; v < kChunk<T>; ++v) bias[v] = o < outputs ? bias_of<T>(c, o + v) : 0;
      const int odd = lane / 4 % 2;  // rows whose chunks share banks: they read the halves in turn
#pragma unroll 1
      for (int row = lane / 4; row < 32; row += 8) {
        Vec<float, 4> sum[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          sum[half] = load_shared(
              reinterpret_cast<const Vec<float, 4>*>(out + row * S::kChannelRow + channel + (half ^ odd) * 4));
        if (!position(row, oh, ow) || o >= outputs) continue;
        Vec<T, kChunk<T>> value, more{};
        if (c.residual)
          more = load(reinterpret_cast<const Vec<T, kChunk<T>>*>(residual + oh * c.rm.sh + ow * c.rm.sw + o));
#pragma unroll
        for (int v = 0; v < kChunk<T>; ++v) {
          const float of = odd ? sum[1 - v / 4].v[v % 4] : sum[v / 4].v[v % 4];
          value.v[v] = from_float<T>(activated(of + bias[v] + to_float(more.v[v]), c.relu));
        }
        store(reinterpret_cast<Vec<T, kChunk<T>>*>(y + oh * c.ym.sh + ow * c.ym.sw + o), value);
      }
    }
  }
}

Store store_of(const Conv2d& c) {
  constexpr int64_t kRun = kChunk<half_t>;
  if (c.g.group_out % kRun == 0 && in_runs(c.y, c.ym, kRun) && in_runs(c.residual, c.rm, kRun)) return kChunks;
  return c.ym.sc == 1 ? kChannels : kPixels;
}

template <class T, int kN>
const char* run(const Params& p, void* stream) {
  using S = Tile<T, kN>;
  const FirstTile& t = p.tile;
  const size_t inputs = first_weight_bytes(p.conv.g, p.conv.dtype) + first_halo_bytes(t, p.conv.dtype);
  const size_t outputs = S::kOutBytes * t.warps;
  const Launch l{dim3(unsigned(p.grid.blocks)), dim3(t.warps * kWarp), inputs < outputs ? outputs : inputs, stream};
  switch (store_of(p.conv)) {
    case kChunks:
      return launch<conv2d_first_mma_kernel<T, kN, kChunks>>(l, p);
    case kChannels:
      return launch<conv2d_first_mma_kernel<T, kN, kChannels>>(l, p);
    default:
      return launch<conv2d_first_mma_kernel<T, kN, kPixels>>(l, p);
  }
}

}  // namespace

const char* conv2d_first_mma(const Conv2d& c, void* stream) {
  if (const char* refusal = first_refusal(c.xm, c.g)) return refusal;
  Params p{};
  p.conv = c, p.tile = first_tile(c.g, c.ym.n, c.ym.h, c.ym.w, c.dtype);
  const int channels = first_channels(c.g);
  p.grid = FirstGrid(c.ym, p.tile, channels);
  if (p.grid.blocks > kMostBlocks) return "the output is too large for one grid";
  const int64_t pairs = ceil_div(first_row(c.g), 2);
  p.sum = int(packed_layout(c.g, c.dtype).strides.o), p.steps = p.sum / kDepth<half_t>;
  p.adjoin = pixels_adjoin(c.xm), p.odd_and_even = first_step(c.g) % 8 == 4 && first_step(c.g) > 4;
  p.by_channels = Divisor(c.g.group_in), p.by_columns = Divisor(p.tile.columns), p.by_pairs = Divisor(pairs);
  const auto with_tile = [&](auto element) {
    using T = decltype(element);
    return channels == 96 ? run<T, 96>(p, stream) : channels == 64 ? run<T, 64>(p, stream) : run<T, 32>(p, stream);
  };
  return c.dtype == Dtype::f16 ? with_tile(half_t{}) : with_tile(bfloat16_t{});
}

}  // namespace fastcnn::cuda
