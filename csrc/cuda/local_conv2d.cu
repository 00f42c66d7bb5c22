#include "cuda/device.cuh"
#include "cuda/divisor.h"
#include "cuda/local_conv2d.cuh"
#include "cuda/tiles.h"
#include "cuda/windows.cuh"

namespace fastcnn::cuda {
namespace {

// At each position the op is a product of matrices of its own, of which a block makes a tile of 16 by 16, a thread an
// element. A weight is used once a sample, so that a tile's samples are what saves memory traffic. Kernels ask for four
// blocks a processor: up to 64 registers, where the compiler left alone takes 48 and spills.

struct View {
  int64_t n, c, h, w;  // strides
  int height, width;
  __device__ int64_t at(int64_t image, int64_t channel, int row, int column) const {
    return image * n + channel * c + row * h + column * w;
  }
};

struct Params {
  const void *x, *w, *b, *g;
  void *out, *dw, *db;
  View xv, yv;
  int samples, channels, outputs, filter;  // filter: weights of an output
  int kh, kw, sh, sw, ph, pw, dilation_h, dilation_w;
  Divisor by_sh, by_sw, by_taps, by_kw;
};

// A block's position of the map, and the first row and column of its tile of the product, m by n.
struct Grid {
  Divisor by_across, by_down, by_width;
  int64_t blocks;

  Grid(int64_t height, int64_t width, int64_t m, int64_t n) : by_width(width) {
    const int64_t down = ceil_div(m, kLocalTile), across = ceil_div(n, kLocalTile);
    by_down = Divisor(down ? down : 1), by_across = Divisor(across ? across : 1);
    blocks = height * width * down * across;
  }
  __device__ void find(int& row, int& column, int& m0, int& n0) const {
    uint32_t across, down, w;
    row = int(by_width.divide(by_down.divide(by_across.divide(blockIdx.x, across), down), w));
    column = int(w), m0 = int(down) * kLocalTile, n0 = int(across) * kLocalTile;
  }
};

// A tile's operands in shared memory. Rows lie two banks on from each other, so that what a warp reads, 16 rows of one
// k, and what it writes, 16 rows of two, lie in different banks.
template <class A>
struct Operands {
  A a[kLocalTile][kLocalDepth + 2], b[kLocalTile][kLocalDepth + 2];
};

// Fills rows by depth, f(row, k) each; neighbouring threads take neighbours of depth, or of rows.
template <bool kAlongDepth, class A, class F>
__device__ __forceinline__ void fill(A (&tile)[kLocalTile][kLocalDepth + 2], const F& f) {
#pragma unroll
  for (int e = 0; e < kLocalTile * kLocalDepth / kLocalThreads; ++e) {
    const int i = threadIdx.x + e * kLocalThreads;
    const int row = kAlongDepth ? i / kLocalDepth : i % kLocalTile, k = kAlongDepth ? i % kLocalDepth : i / kLocalTile;
    store_shared(&tile[row][k], f(row, k));
  }
}

// sum += the product over `depth` of a(row, k), row the thread's of the tile, and b(column, k); both give 0 outside.
template <bool kAAlongDepth, bool kBAlongDepth, class A, class FA, class FB>
__device__ __forceinline__ void multiply(Operands<A>* shared, int depth, const FA& a, const FB& b, A& sum) {
  const int row = threadIdx.x / kLocalTile, column = threadIdx.x % kLocalTile;
  for (int k0 = 0; k0 < depth; k0 += kLocalDepth) {
    sync_block();  // the last step's operands have been read
    fill<kAAlongDepth>(shared->a, [&](int m, int k) { return k0 + k < depth ? a(m, k0 + k) : A(0); });
    fill<kBAlongDepth>(shared->b, [&](int n, int k) { return k0 + k < depth ? b(n, k0 + k) : A(0); });
    sync_block();
#pragma unroll 8
    for (int k = 0; k < kLocalDepth; ++k) sum += load_shared(&shared->a[row][k]) * load_shared(&shared->b[column][k]);
  }
}

template <class T>
__device__ __forceinline__ Acc<T> value(bool exists, const void* p, int64_t at) {
  return to_acc(load_if(exists, static_cast<const T*>(p) + at));
}

// Weight k of a filter at output (row, column): whether it meets the input, where.
struct Tap {
  int channel, h, w;
  bool inside;
  __device__ Tap(const Params& p, int row, int column, int k) {
    uint32_t tap, j;
    channel = int(p.by_taps.divide(k, tap));
    const int i = int(p.by_kw.divide(tap, j));
    h = row * p.sh - p.ph + i * p.dilation_h, w = column * p.sw - p.pw + int(j) * p.dilation_w;
    inside = h >= 0 && h < p.xv.height && w >= 0 && w < p.xv.width;
  }
};

// Rows are outputs, columns samples. What meets the padding counts as 0 on both sides: an infinite weight gives no NaN.
template <class T>
__global__ void __launch_bounds__(kLocalThreads, 4) local_conv2d_kernel(Params p, Grid grid) {
  using A = Acc<T>;
  FASTCNN_SHARED(Operands<A>, shared);
  int row, column, o0, n0;
  grid.find(row, column, o0, n0);
  const int64_t position = int64_t(row) * p.yv.width + column, first = position * p.outputs + o0;
  A sum = 0;
  multiply<true, true>(
      shared, p.filter,
      [&](int m, int k) {
        const bool exists = o0 + m < p.outputs && Tap(p, row, column, k).inside;
        return value<T>(exists, p.w, (first + m) * p.filter + k);
      },
      [&](int n, int k) {
        const Tap tap(p, row, column, k);
        return value<T>(n0 + n < p.samples && tap.inside, p.x, p.xv.at(n0 + n, tap.channel, tap.h, tap.w));
      },
      sum);
  const int o = o0 + int(threadIdx.x) / kLocalTile, n = n0 + int(threadIdx.x) % kLocalTile;
  if (o >= p.outputs || n >= p.samples) return;
  const int64_t positions = int64_t(p.yv.height) * p.yv.width;
  if (p.b) sum += value<T>(true, p.b, o * positions + position);
  store(static_cast<T*>(p.out) + p.yv.at(n, o, row, column), from_acc<T>(sum));
}

// Of input position (h, v): rows are channels, columns samples, the sum over the outputs of each window that holds it.
template <class T>
__global__ void __launch_bounds__(kLocalThreads, 4) local_conv2d_backward_input_kernel(Params p, Grid grid) {
  using A = Acc<T>;
  FASTCNN_SHARED(Operands<A>, shared);
  int h, v, c0, n0;
  grid.find(h, v, c0, n0);
  int top, bottom, left, right;
  covering(h, p.yv.height, (p.kh - 1) * p.dilation_h + 1, p.by_sh, p.ph, top, bottom);
  covering(v, p.yv.width, (p.kw - 1) * p.dilation_w + 1, p.by_sw, p.pw, left, right);
  A sum = 0;
  for (int row = top; row < bottom; ++row) {
    const int down = h + p.ph - row * p.sh;
    if (p.dilation_h > 1 && down % p.dilation_h) continue;
    for (int column = left; column < right; ++column) {
      const int across = v + p.pw - column * p.sw;
      if (p.dilation_w > 1 && across % p.dilation_w) continue;
      const int tap =
          (p.dilation_h > 1 ? down / p.dilation_h : down) * p.kw + (p.dilation_w > 1 ? across / p.dilation_w : across);
      const int64_t first = (int64_t(row) * p.yv.width + column) * p.outputs;
      multiply<false, true>(
          shared, p.outputs,
          [&](int m, int o) {
            return value<T>(c0 + m < p.channels, p.w, (first + o) * p.filter + (c0 + m) * int64_t(p.kh * p.kw) + tap);
          },
          [&](int n, int o) { return value<T>(n0 + n < p.samples, p.g, p.yv.at(n0 + n, o, row, column)); }, sum);
    }
  }
  const int c = c0 + int(threadIdx.x) / kLocalTile, n = n0 + int(threadIdx.x) % kLocalTile;
  if (c < p.channels && n < p.samples) store(static_cast<T*>(p.out) + p.xv.at(n, c, h, v), from_acc<T>(sum));
}

// Rows are outputs, columns weights of the filter, the sum over the samples. Weights that meet the padding get 0.
template <class T>
__global__ void __launch_bounds__(kLocalThreads, 4) local_conv2d_backward_weight_kernel(Params p, Grid grid) {
  using A = Acc<T>;
  FASTCNN_SHARED(Operands<A>, shared);
  int row, column, o0, k0;
  grid.find(row, column, o0, k0);
  A sum = 0;
  multiply<false, false>(
      shared, p.samples,
      [&](int m, int n) { return value<T>(o0 + m < p.outputs, p.g, p.yv.at(n, o0 + m, row, column)); },
      [&](int m, int n) {
        const Tap tap(p, row, column, k0 + m);
        return value<T>(k0 + m < p.filter && tap.inside, p.x, p.xv.at(n, tap.channel, tap.h, tap.w));
      },
      sum);
  const int o = o0 + int(threadIdx.x) / kLocalTile, k = k0 + int(threadIdx.x) % kLocalTile;
  if (o >= p.outputs || k >= p.filter) return;
  const int64_t position = int64_t(row) * p.yv.width + column;
  const bool inside = Tap(p, row, column, k).inside;
  store(static_cast<T*>(p.dw) + (position * p.outputs + o) * p.filter + k, from_acc<T>(inside ? sum : A(0)));
}

// A thread a bias, in the order of memory.
template <class T>
__global__ void __launch_bounds__(kLocalThreads, 4)
    local_conv2d_bias_kernel(Params p, Divisor by_width, Divisor by_height, uint32_t count) {
  using A = Acc<T>;
  const uint32_t i = blockIdx.x * kLocalThreads + threadIdx.x;
  if (i >= count) return;
  uint32_t row, column;
  const int o = int(by_height.divide(by_width.divide(i, column), row));
  A sum = 0;
#pragma unroll 4
  for (int n = 0; n < p.samples; ++n) sum += value<T>(true, p.g, p.yv.at(n, o, int(row), int(column)));
  store(static_cast<T*>(p.db) + i, from_acc<T>(sum));
}

constexpr int64_t kMost = (int64_t{1} << 31) - 1;

const char* refused(const LocalConv2dParams& p) {
  if (p.xm.h + 2 * p.ph > kMost || p.xm.w + 2 * p.pw > kMost) return "an axis exceeds 2^31 positions";
  if (p.xm.c * p.kh * p.kw > kMost - kLocalTile) return "a filter has more than 2^31 weights";
  if (p.xm.n > kMost - kLocalTile || p.ym.c > kMost - kLocalTile) return "there are more than 2^31 samples or channels";
  return nullptr;
}

View view_of(const Map& m) { return {m.sn, m.sc, m.sh, m.sw, int(m.h), int(m.w)}; }

Params params_of(const LocalConv2dParams& p) {
  Params k{};
  k.x = p.x, k.w = p.w, k.b = p.b, k.g = p.g, k.out = p.out, k.dw = p.dw, k.db = p.db;
  k.xv = view_of(p.xm), k.yv = view_of(p.ym);
  k.samples = int(p.xm.n), k.channels = int(p.xm.c), k.outputs = int(p.ym.c), k.filter = int(p.xm.c * p.kh * p.kw);
  k.kh = int(p.kh), k.kw = int(p.kw), k.sh = int(p.sh), k.sw = int(p.sw), k.ph = int(p.ph), k.pw = int(p.pw);
  k.dilation_h = int(p.dilation_h), k.dilation_w = int(p.dilation_w);
  k.by_sh = Divisor(p.sh), k.by_sw = Divisor(p.sw), k.by_taps = Divisor(p.kh * p.kw), k.by_kw = Divisor(p.kw);
  return k;
}

// f(element, launch) of a grid's tiles.
template <class F>
const char* start(const LocalConv2dParams& p, const Grid& grid, void* stream, const F& f) {
  if (grid.blocks > kMostBlocks) return "the tensors are too large for one grid";
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using A = Acc<decltype(element)>;
    error = f(element, Launch{dim3(unsigned(grid.blocks)), dim3(kLocalThreads), sizeof(Operands<A>), stream});
  });
  return error;
}

}  // namespace

const char* local_conv2d(const LocalConv2dParams& p, void* stream) {
  if (const char* error = refused(p)) return error;
  const Grid grid(p.ym.h, p.ym.w, p.ym.c, p.ym.n);
  return start(p, grid, stream, [&](auto t, const Launch& l) {
    return launch<local_conv2d_kernel<decltype(t)>>(l, params_of(p), grid);
  });
}

const char* local_conv2d_backward_input(const LocalConv2dParams& p, void* stream) {
  if (const char* error = refused(p)) return error;
  const Grid grid(p.xm.h, p.xm.w, p.xm.c, p.xm.n);
  return start(p, grid, stream, [&](auto t, const Launch& l) {
    return launch<local_conv2d_backward_input_kernel<decltype(t)>>(l, params_of(p), grid);
  });
}

const char* local_conv2d_backward_weight(const LocalConv2dParams& p, void* stream) {
  if (const char* error = refused(p)) return error;
  const int64_t biases = p.ym.c * p.ym.h * p.ym.w;
  if (biases > kMost - kLocalThreads) return "there are more than 2^31 biases";
  const Grid grid(p.ym.h, p.ym.w, p.ym.c, p.xm.c * p.kh * p.kw);
  return start(p, grid, stream, [&](auto t, const Launch& l) {
    using T = decltype(t);
    if (const char* error = launch<local_conv2d_backward_weight_kernel<T>>(l, params_of(p), grid)) return error;
    const Launch bias{dim3(unsigned(ceil_div(biases, kLocalThreads))), dim3(kLocalThreads), 0, stream};
    return launch<local_conv2d_bias_kernel<T>>(bias, params_of(p), Divisor(p.ym.w), Divisor(p.ym.h), uint32_t(biases));
  });
}

}  // namespace fastcnn::cuda
