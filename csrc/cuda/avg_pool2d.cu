#include "cuda/avg_pool2d.cuh"
#include "cuda/avg_window.cuh"
#include "cuda/map_tile.cuh"
#include "cuda/reduce.cuh"

namespace fastcnn::cuda {
namespace {

// Kernels ask for four blocks a processor: up to 64 registers, where the compiler left alone takes 32 and spills.

// y is the map that the kernel writes: pooled, or backward the gradient of what was.
struct Params {
  const void* x;
  void* y;
  AvgAxis rows, columns;
  int h, w, oh, ow;  // of x, of y
  double divisor;    // 0: that of the windows
};

constexpr int kPoolBits = 8;
static_assert(1 << kPoolBits == kPoolThreads);

struct Span {
  int begin, end;
};

// The number of values that window (row, column) counts, or that which stands for it.
template <class A>
__device__ __forceinline__ A divisor_of(const Params& p, int row, int column) {
  return p.divisor != 0 ? A(p.divisor) : A(divisor_of(p.rows, row)) * A(divisor_of(p.columns, column));
}

// Which rows and columns of a window's threads a thread takes: first, and every `step`th from there.
struct Share {
  int row, row_step, column, column_step;
};

// Adds to sum V values from x on, of position (h, w).
template <class T, int V, bool kBackward>
__device__ __forceinline__ void add(const Params& p, int h, int w, const T* x, Acc<T> (&sum)[V]) {
  using A = Acc<T>;
  const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(x));
  const A scale = kBackward ? 1 / divisor_of<A>(p, h, w) : A(1);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += kBackward ? to_acc(in.v[v]) * scale : to_acc(in.v[v]);
}

// Adds to sum what the thread's share of x[rows][columns] comes to, V values at at(row, column).
template <class T, int V, bool kBackward, class At>
__device__ __forceinline__ void add_window(const Params& p, Span rows, Span columns, const Share& share, const At& at,
                                           Acc<T> (&sum)[V]) {
  for (int h = rows.begin + share.row; h < rows.end; h += share.row_step)
    for (int w = columns.begin + share.column; w < columns.end; w += share.column_step)
      add<T, V, kBackward>(p, h, w, static_cast<const T*>(p.x) + at(h, w), sum);
}

template <class T, int V, bool kBackward>
__device__ __forceinline__ void finish(const Params& p, int row, int column, const Acc<T> (&sum)[V], int64_t at) {
  using A = Acc<T>;
  const A divisor = kBackward ? A(1) : divisor_of<A>(p, row, column);
  Vec<T, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.v[v] = from_acc<T>(kBackward ? sum[v] : sum[v] / divisor);
  store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + at), out);
}

// One output of V channels a thread. K: the window's height and width where the compiler should know them, so that all
// its loads are under way at once; else 0.
template <class T, int V, int K, bool kBackward>
__global__ void __launch_bounds__(kPoolThreads, 4) avg_pool2d_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<V> block(t);
  const T* x = static_cast<const T*>(p.x);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int row, column;
    if (!block.at(e, c, row, column)) continue;
    const auto at = [&](int h, int w) { return block.offset(p.h, p.w, h, w, c); };
    Span rows, columns;
    window_of<kBackward>(p.rows, row, rows.begin, rows.end);
    window_of<kBackward>(p.columns, column, columns.begin, columns.end);
    A sum[V] = {};
    if constexpr (K == 0) {
      for (int h = rows.begin; h < rows.end; ++h) {
        const T* from = x + at(h, columns.begin);  // moves on: a place for each column would cost too many registers
        for (int w = columns.begin; w < columns.end; ++w, from += t.channels) add<T, V, kBackward>(p, h, w, from, sum);
      }
    } else {
#pragma unroll
      for (int i = 0; i < K; ++i)
#pragma unroll
        for (int j = 0; j < K; ++j) {
          const int h = rows.begin + i, w = columns.begin + j;
          if (h >= rows.end || w >= columns.end) continue;
          const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(x + at(h, w)));
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += to_acc(in.v[v]);
        }
    }
    finish<T, V, kBackward>(p, row, column, sum, block.offset(p.oh, p.ow, row, column, c));
  }
}

// How 2^thread_bits threads share out a large window, 2^column_bits of them along each of its rows.
struct Sharing {
  int thread_bits, column_bits;
  __host__ __device__ int threads() const { return 1 << thread_bits; }
  __device__ Share of(int i, int step) const {
    const int columns = 1 << column_bits;
    return {i >> column_bits, threads() >> column_bits, (i & (columns - 1)) * step, columns * step};
  }
};

// NCHW, large windows: `threads` neighbouring lanes an output, which read the V neighbours of a row that a load gives.
template <class T, int V, bool kBackward>
__global__ void __launch_bounds__(kPoolThreads, 4)
    avg_pool2d_lanes_kernel(Params p, Sharing s, uint32_t outputs, Divisor by_rows, Divisor by_columns) {
  using A = Acc<T>;
  const uint32_t output = (int64_t(blockIdx.x) * kPoolThreads + threadIdx.x) >> s.thread_bits;
  const int lane = threadIdx.x & (s.threads() - 1);
  uint32_t row = 0, column = 0;
  const int64_t plane = by_rows.divide(by_columns.divide(output, column), row);
  A sum[V] = {}, total[1] = {};
  if (output < outputs) {
    Span rows, columns;
    window_of<kBackward>(p.rows, row, rows.begin, rows.end);
    window_of<kBackward>(p.columns, column, columns.begin, columns.end);
    const auto at = [&](int h, int w) { return (plane * p.h + h) * p.w + w; };
    add_window<T, V, kBackward>(p, rows, columns, s.of(lane, V), at, sum);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) total[0] += sum[v];
  total[0] = sum_lanes(total[0], s.threads());
  if (output < outputs && lane == 0) finish<T, 1, kBackward>(p, row, column, total, output);
}

// NHWC, large windows: a block an output of `lanes` times V channels, whose rows of threads share out the window.
template <class T, int V, bool kBackward>
__global__ void __launch_bounds__(kPoolThreads, 4)
    avg_pool2d_block_kernel(Params p, Sharing s, int64_t channels, Divisor by_rows, Divisor by_columns,
                            Divisor by_chunks) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, memory);
  const int lanes = kPoolThreads >> s.thread_bits, lane = threadIdx.x & (lanes - 1);
  uint32_t chunk, row, column;
  const int64_t image = by_rows.divide(by_columns.divide(by_chunks.divide(blockIdx.x, chunk), column), row);
  const int64_t c = (int64_t(chunk) * lanes + lane) * V;
  A sum[V] = {};
  if (c < channels) {
    Span rows, columns;
    window_of<kBackward>(p.rows, row, rows.begin, rows.end);
    window_of<kBackward>(p.columns, column, columns.begin, columns.end);
    const auto at = [&](int h, int w) { return ((image * p.h + h) * p.w + w) * channels + c; };
    add_window<T, V, kBackward>(p, rows, columns, s.of(threadIdx.x >> (kPoolBits - s.thread_bits), 1), at, sum);
  }
  sum_rows(memory, s.threads(), lanes, sum);
  if (c < channels && threadIdx.x < unsigned(lanes))
    finish<T, V, kBackward>(p, row, column, sum, ((image * p.oh + row) * p.ow + column) * channels + c);
}

struct Run {
  Params p;
  int64_t n, c;
  int64_t reads_h, reads_w;  // of a window, about
  bool nhwc;
  void* stream;

  template <class T, int V, bool kBackward>
  const char* thread_an_output() const {
    const MapTile tile(nhwc, n, c, p.oh, p.ow, V);
    if (tile.blocks > kMostBlocks) return "the tensor is too large for one grid";
    const Launch l{dim3(unsigned(tile.blocks)), dim3(kPoolThreads), 0, stream};
    if constexpr (!kBackward) {
      if (p.rows.k == 2 && p.columns.k == 2) return launch<avg_pool2d_kernel<T, V, 2, false>>(l, p, tile);
      if (p.rows.k == 3 && p.columns.k == 3) return launch<avg_pool2d_kernel<T, V, 3, false>>(l, p, tile);
    }
    return launch<avg_pool2d_kernel<T, V, 0, kBackward>>(l, p, tile);
  }

  template <class T, int V, bool kBackward>
  const char* lanes_an_output(int64_t outputs) const {
    const int columns = log2_floor(reads_w / V, kWarpBits), rows = log2_floor(reads_h, kWarpBits - columns);
    const Sharing s{columns + rows, columns};
    const int64_t blocks = (outputs * s.threads() + kPoolThreads - 1) / kPoolThreads;
    const Launch l{dim3(unsigned(blocks)), dim3(kPoolThreads), 0, stream};
    return launch<avg_pool2d_lanes_kernel<T, V, kBackward>>(l, p, s, uint32_t(outputs), Divisor(p.oh), Divisor(p.ow));
  }

  template <class T, int V, bool kBackward>
  const char* block_an_output(int lane_bits, int64_t chunks) const {
    const int thread_bits = kPoolBits - lane_bits;
    const Launch l{dim3(unsigned(n * p.oh * p.ow * chunks)), dim3(kPoolThreads),
                   size_t(kPoolThreads * V * sizeof(Acc<T>)), stream};
    return launch<avg_pool2d_block_kernel<T, V, kBackward>>(
        l, p, Sharing{thread_bits, log2_floor(reads_w, thread_bits)}, c, Divisor(p.oh), Divisor(p.ow), Divisor(chunks));
  }

  template <class T, bool kBackward>
  const char* run() const {
    constexpr int V = 16 / sizeof(T);
    const bool aligned_16 = aligned(p.x, 16) && aligned(p.y, 16), large = reads_h * reads_w >= kPoolLargeWindow;
    if (nhwc) {
      const bool vectors = aligned_16 && c % V == 0;
      const int64_t last = (vectors ? c / V : c) - 1;
      const int lane_bits = log2_floor(2 * last + 1, kWarpBits);  // as many lanes as there are groups, rounded up
      const int64_t chunks = (last >> lane_bits) + 1;
      if (large && n * p.oh * p.ow * chunks <= kMostBlocks)
        return vectors ? block_an_output<T, V, kBackward>(lane_bits, chunks)
                       : block_an_output<T, 1, kBackward>(lane_bits, chunks);
      return vectors ? thread_an_output<T, V, kBackward>() : thread_an_output<T, 1, kBackward>();
    }
    const int64_t outputs = n * c * p.oh * p.ow;
    if (large && outputs < kMostBlocks) {
      // a plane that one window covers lies in memory as one row
      if constexpr (!kBackward)
        if (p.oh == 1 && p.ow == 1 && p.h == 1 && p.w % V == 0 && aligned(p.x, 16))
          return lanes_an_output<T, V, false>(outputs);
      return lanes_an_output<T, 1, kBackward>(outputs);
    }
    return thread_an_output<T, 1, kBackward>();
  }
};

// Whether the axis has one window, of all positions.
bool covers_all(const AvgPoolAxis& a) { return a.out == 1 && (a.k == 0 || (a.p == 0 && a.k >= a.in)); }

AvgPoolAxis whole(int64_t in) { return {in, 1, in, 1, 0}; }

}  // namespace

const char* avg_pool2d(const AvgPool2dArgs& args, void* stream) {
  AvgPool2dArgs a = args;
  const int64_t plane = a.rows.in * a.columns.in;
  if (covers_all(a.rows) && covers_all(a.columns) && plane < kMostPositions) {  // then a plane is one row in memory
    if (a.divisor == 0) a.divisor = double(plane);
    a.rows = whole(a.channels_last ? plane : 1), a.columns = whole(a.channels_last ? 1 : plane);
  }
  for (const AvgPoolAxis* axis : {&a.rows, &a.columns})
    if (const char* error = refused(*axis)) return error;
  const AvgAxis rows(a.rows, a.count_include_pad), columns(a.columns, a.count_include_pad);
  const auto from = [&](const AvgPoolAxis& axis) { return int(a.backward ? axis.out : axis.in); };
  const auto to = [&](const AvgPoolAxis& axis) { return int(a.backward ? axis.in : axis.out); };
  const Run run{{a.x, a.y, rows, columns, from(a.rows), from(a.columns), to(a.rows), to(a.columns), a.divisor},
                a.n,
                a.c,
                reads(a.rows, a.backward),
                reads(a.columns, a.backward),
                a.channels_last,
                stream};
  const char* error = nullptr;
  switch_dtype(a.dtype, [&](auto element) {
    using T = decltype(element);
    error = a.backward ? run.run<T, true>() : run.run<T, false>();
  });
  return error;
}

}  // namespace fastcnn::cuda
