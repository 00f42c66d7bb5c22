#include "cuda/map_tile.cuh"
#include "cuda/reduce.cuh"
#include "cuda/subsample2d.cuh"
#include "cuda/windows.cuh"

namespace fastcnn::cuda {
namespace {

constexpr int kBlockBits = 8;
static_assert(1 << kBlockBits == kSubsampleThreads && kPoolThreads == kSubsampleThreads);

// Subsample2dParams as the kernels use them: positions of one axis need no 64 bits.
struct Params {
  const void *x, *w, *b, *g;
  void *out, *dw, *db;
  double* partial;
  double scale;
  int64_t c;
  int h, w_in, oh, ow, kh, kw, sh, sw;
  Divisor by_sh, by_sw, by_c;
};

template <class T, int V>
__device__ __forceinline__ Vec<T, V> load_vector(const void* p, int64_t at) {
  return load(reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(p) + at));
}

// Adds up output (row, column)'s window; at(row, column) is where x has a position.
template <class T, int V, class At>
__device__ __forceinline__ void add_window(const Params& p, int row, int column, const At& at, Acc<T> (&sum)[V]) {
  for (int i = 0; i < p.kh; ++i)
#pragma unroll 2  // of four, sm_100's registers do not hold the addresses
    for (int j = 0; j < p.kw; ++j) {
      const Vec<T, V> in = load_vector<T, V>(p.x, at(row * p.sh + i, column * p.sw + j));
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += to_acc(in.v[v]);
    }
}

// The channel that element v of a thread's vector belongs to: NHWC the next one, NCHW the plane's.
template <int V>
__device__ __forceinline__ int64_t channel_of(const Params& p, const MapBlock<V>& block, int64_t c) {
  uint32_t channel;
  p.by_c.divide(uint32_t(block.plane), channel);
  return block.t.channels_last ? c : channel;
}

template <class T, int V>
__global__ void __launch_bounds__(kSubsampleThreads, 4) subsample2d_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<V> block(t);
  for (int e = threadIdx.x; e < t.size(); e += kSubsampleThreads) {
    int64_t c;
    int row, column;
    if (!block.at(e, c, row, column)) continue;
    A sum[V] = {};
    add_window<T, V>(p, row, column, [&](int h, int w) { return block.offset(p.h, p.w_in, h, w, c); }, sum);
    const int64_t channel = channel_of(p, block, c);
    const Vec<T, V> weight = load_vector<T, V>(p.w, channel);
    const Vec<T, V> bias = p.b ? load_vector<T, V>(p.b, channel) : Vec<T, V>{};
    Vec<T, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) y.v[v] = from_acc<T>(to_acc(bias.v[v]) + to_acc(weight.v[v]) * A(p.scale) * sum[v]);
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.out) + block.offset(p.oh, p.ow, row, column, c)), y);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kSubsampleThreads, 4) subsample2d_backward_input_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<V> block(t);
  for (int e = threadIdx.x; e < t.size(); e += kSubsampleThreads) {
    int64_t c;
    int h, w, top, bottom, left, right;
    if (!block.at(e, c, h, w)) continue;
    covering(h, p.oh, p.kh, p.by_sh, 0, top, bottom);
    covering(w, p.ow, p.kw, p.by_sw, 0, left, right);
    A sum[V] = {};
    for (int row = top; row < bottom; ++row) {
      int64_t from = block.offset(p.oh, p.ow, row, left, c);
      for (int column = left; column < right; ++column, from += t.channels) {
        const Vec<T, V> g = load_vector<T, V>(p.g, from);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += to_acc(g.v[v]);
      }
    }
    const Vec<T, V> weight = load_vector<T, V>(p.w, channel_of(p, block, c));
    Vec<T, V> dx;
#pragma unroll
    for (int v = 0; v < V; ++v) dx.v[v] = from_acc<T>(to_acc(weight.v[v]) * A(p.scale) * sum[v]);
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.out) + block.offset(p.h, p.w_in, h, w, c)), dx);
  }
}

// A block takes 2^lane_bits channels (NCHW: one) of an image and kSubsampleChain outputs a thread.
struct Cut {
  int lane_bits, nhwc;
  int64_t images, groups, pieces, blocks;
  Divisor by_groups, by_pieces, by_ow;

  explicit Cut(const Subsample2dParams& p) : nhwc(p.xm.sc == 1 && p.xm.c > 1), images(p.xm.n) {
    lane_bits = nhwc ? log2_floor(2 * p.xm.c - 1, kWarpBits) : 0;
    const int64_t outputs = kSubsampleChain << (kBlockBits - lane_bits);
    groups = ceil_div(p.xm.c, 1 << lane_bits), pieces = ceil_div(p.ym.h * p.ym.w, outputs);
    blocks = images * groups * pieces;
    by_groups = Divisor(groups ? groups : 1), by_pieces = Divisor(pieces), by_ow = Divisor(p.ym.w);
  }
};

template <class T>
__global__ void __launch_bounds__(kSubsampleThreads) subsample2d_partial_kernel(Params p, Cut cut) {
  using A = Acc<T>;
  FASTCNN_SHARED(double, memory);
  const int lanes = 1 << cut.lane_bits, rows = kSubsampleThreads >> cut.lane_bits;
  uint32_t group, piece;
  const int64_t unit = cut.by_groups.divide(blockIdx.x, group), image = cut.by_pieces.divide(uint32_t(unit), piece);
  const int64_t c = int64_t(group) * lanes + (threadIdx.x & (lanes - 1));
  const auto at = [&](int height, int width, int h, int w) {
    return cut.nhwc ? ((image * height + h) * width + w) * p.c + c : ((image * p.c + c) * height + h) * width + w;
  };
  A dw = 0, db = 0;
  const int first = int(piece) * rows * kSubsampleChain + int(threadIdx.x >> cut.lane_bits);
#pragma unroll 1
  for (int k = 0; k < kSubsampleChain; ++k) {
    const int i = first + k * rows;
    if (i >= p.oh * p.ow || c >= p.c) break;
    uint32_t column;
    const int row = int(cut.by_ow.divide(i, column));
    A window[1] = {};
    add_window<T, 1>(p, row, int(column), [&](int h, int w) { return at(p.h, p.w_in, h, w); }, window);
    const A g = to_acc(load(static_cast<const T*>(p.g) + at(p.oh, p.ow, row, int(column))));
    dw += g * window[0], db += g;
  }
  double sums[2] = {double(dw), double(db)};
  sum_rows(memory, rows, lanes, sums);
  if (c >= p.c || threadIdx.x >= unsigned(lanes)) return;
  store(p.partial + (2 * unit) * p.c + c, sums[0]);
  store(p.partial + (2 * unit + 1) * p.c + c, sums[1]);
}

// A block a channel.
template <class T>
__global__ void __launch_bounds__(kSubsampleThreads) subsample2d_sum_kernel(Params p, int64_t units) {
  FASTCNN_SHARED(double, memory);
  const int64_t c = blockIdx.x;
  double sums[2] = {};
  for (int64_t unit = threadIdx.x; unit < units; unit += kSubsampleThreads) {
    sums[0] += load(p.partial + (2 * unit) * p.c + c);
    sums[1] += load(p.partial + (2 * unit + 1) * p.c + c);
  }
  sum_rows(memory, kSubsampleThreads, 1, sums);
  if (threadIdx.x) return;
  store(static_cast<T*>(p.dw) + c, from_acc<T>(Acc<T>(sums[0] * p.scale)));
  store(static_cast<T*>(p.db) + c, from_acc<T>(Acc<T>(sums[1])));
}

const char* refused(const Subsample2dParams& p) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const Map& x = p.xm;
  if (x.c > kMost) return "there are more than 2^31 channels";
  return x.h > kMost || x.w > kMost || p.ym.h * p.ym.w > kMost / 2 ? "a plane exceeds 2^30 positions" : nullptr;
}

Params params_of(const Subsample2dParams& p) {
  return {p.x,       p.w,       p.b,       p.g,         p.out,         p.dw,          p.db,
          p.partial, p.scale,   p.xm.c,    int(p.xm.h), int(p.xm.w),   int(p.ym.h),   int(p.ym.w),
          int(p.kh), int(p.kw), int(p.sh), int(p.sw),   Divisor(p.sh), Divisor(p.sw), Divisor(p.xm.c ? p.xm.c : 1)};
}

// f(element, vector, grid, tile) over the map `m` that a kernel writes.
template <class F>
const char* over_map(const Subsample2dParams& p, const Map& m, void* stream, const F& f) {
  if (const char* error = refused(p)) return error;
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / sizeof(T);
    const bool nhwc = p.xm.sc == 1 && m.c > 1;  // an output of one pixel does not tell
    const bool vectors = nhwc && m.c % V == 0 && aligned(p.x, 16) && aligned(p.g, 16) && aligned(p.out, 16) &&
                         aligned(p.w, 16) && aligned(p.b, 16);
    const auto start = [&](auto vector) {
      const MapTile tile(nhwc, m.n, m.c, m.h, m.w, decltype(vector)::value);
      if (tile.blocks > kMostBlocks) return "the tensor is too large for one grid";
      return f(element, vector, Launch{dim3(unsigned(tile.blocks)), dim3(kSubsampleThreads), 0, stream}, tile);
    };
    error = vectors ? start(std::integral_constant<int, V>{}) : start(std::integral_constant<int, 1>{});
  });
  return error;
}

}  // namespace

const char* subsample2d(const Subsample2dParams& p, void* stream) {
  return over_map(p, p.ym, stream, [&](auto t, auto vector, const Launch& l, const MapTile& tile) {
    return launch<subsample2d_kernel<decltype(t), decltype(vector)::value>>(l, params_of(p), tile);
  });
}

const char* subsample2d_backward_input(const Subsample2dParams& p, void* stream) {
  return over_map(p, p.xm, stream, [&](auto t, auto vector, const Launch& l, const MapTile& tile) {
    return launch<subsample2d_backward_input_kernel<decltype(t), decltype(vector)::value>>(l, params_of(p), tile);
  });
}

int64_t subsample2d_units(const Subsample2dParams& p) {
  const Cut cut(p);
  return cut.images * cut.pieces;
}

const char* subsample2d_backward_weight(const Subsample2dParams& p, void* stream) {
  if (const char* error = refused(p)) return error;
  const Cut cut(p);
  if (cut.blocks > kMostBlocks || p.xm.c > kMostBlocks) return "the tensor is too large for one grid";
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr size_t kShared = 2 * kSubsampleThreads * sizeof(double);
    const Launch partial{dim3(unsigned(cut.blocks)), dim3(kSubsampleThreads), kShared, stream};
    error = launch<subsample2d_partial_kernel<T>>(partial, params_of(p), cut);
    if (error) return;
    const Launch sum{dim3(unsigned(p.xm.c)), dim3(kSubsampleThreads), kShared, stream};
    error = launch<subsample2d_sum_kernel<T>>(sum, params_of(p), cut.images * cut.pieces);
  });
  return error;
}

}  // namespace fastcnn::cuda
