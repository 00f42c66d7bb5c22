// Convolution as its formula: each thread sums a few outputs straight from global memory. It takes every type, layout
// and geometry, and is what serves where no faster kernel fits.
#include "cuda/conv2d_epilogue.cuh"
#include "cuda/divisor.h"
#include "cuda/reduce.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

struct Params {
  Conv2d conv;
  int pixels, rows;  // rows: of a block's threads, each row `lanes` threads wide
  int lanes, parts;  // parts: runs of neighbouring output channels of one group, one run a thread
  Divisor by_h, by_w, by_parts, by_blocks, by_lanes, by_sh, by_sw;
};

// The position along one axis that output `at` reads through tap offset `reach`, or -1.
template <bool kAdjoint>
__device__ __forceinline__ int position(int at, int stride, int pad, int reach, int size, const Divisor& by_stride) {
  if constexpr (kAdjoint) {
    const int from = at + pad - reach;
    if (from < 0) return -1;
    uint32_t rest;
    const int q = int(by_stride.divide(from, rest));
    return rest == 0 && q < size ? q : -1;
  } else {
    const int h = at * stride - pad + reach;
    return h < size ? h : -1;  // h < 0 is no position either
  }
}

// kPixels pixels times kOut channels a thread. Neighbouring threads take neighbouring channels of NHWC, neighbouring
// pixels of NCHW.
template <class T, int kOut, bool kAdjoint>
__global__ void __launch_bounds__(kConvThreads, 3) conv2d_direct_kernel(Params p) {
  using A = Acc<T>;
  constexpr int kPixels = kDirectPixels;
  const Conv2d& c = p.conv;
  uint32_t lane, part_block, first;
  const int row = int(p.by_lanes.divide(threadIdx.x, lane));
  const int pixel0 = int(p.by_blocks.divide(blockIdx.x, part_block)) * p.rows * kPixels + row;
  const int part = int(part_block) * p.lanes + int(lane);
  if (part >= p.parts) return;
  const int group = int(p.by_parts.divide(part, first));
  first *= kOut;
  const int outs = int(c.g.group_out) - int(first);  // that many of kOut exist, if not all

  int n[kPixels], oh[kPixels], ow[kPixels];
  A sum[kPixels][kOut] = {};
#pragma unroll
  for (int u = 0; u < kPixels; ++u) {
    uint32_t h, w;
    const int pixel = pixel0 + u * p.rows;
    n[u] = int(p.by_h.divide(p.by_w.divide(pixel < p.pixels ? pixel : 0, w), h)), oh[u] = int(h), ow[u] = int(w);
  }
  const T* x = static_cast<const T*>(c.x) + int64_t(group) * c.g.group_in * c.xm.sc;
  const T* w = static_cast<const T*>(c.w) + group * c.ws.g + first * c.ws.o;
  for (int i = 0; i < c.g.kh; ++i)
    for (int j = 0; j < c.g.kw; ++j) {
      const T* in[kPixels];
      bool valid[kPixels], any = false;
#pragma unroll
      for (int u = 0; u < kPixels; ++u) {
        const int h = position<kAdjoint>(oh[u], c.g.sh, c.g.ph, i * c.g.dh, int(c.xm.h), p.by_sh);
        const int v = position<kAdjoint>(ow[u], c.g.sw, c.g.pw, j * c.g.dw, int(c.xm.w), p.by_sw);
        valid[u] = h >= 0 && v >= 0 && pixel0 + u * p.rows < p.pixels;
        any = any || valid[u];
        in[u] = valid[u] ? x + n[u] * c.xm.sn + h * c.xm.sh + v * c.xm.sw : x;
      }
      if (!any) continue;
      const T* tap = w + i * c.ws.i + j * c.ws.j;
      for (int k = 0; k < c.g.group_in; ++k) {
        A a[kPixels];
#pragma unroll
        for (int u = 0; u < kPixels; ++u) a[u] = to_acc(load_if(valid[u], in[u] + k * c.xm.sc));
#pragma unroll
        for (int o = 0; o < kOut; ++o) {
          const A b = to_acc(load_if(o < outs, tap + k * c.ws.c + o * c.ws.o));
#pragma unroll
          for (int u = 0; u < kPixels; ++u) sum[u][o] += a[u] * b;
        }
      }
    }
  const int64_t channel = int64_t(group) * c.g.group_out + first;
#pragma unroll
  for (int u = 0; u < kPixels; ++u) {
    if (pixel0 + u * p.rows >= p.pixels) continue;
#pragma unroll
    for (int o = 0; o < kOut; ++o) {
      if (o >= outs) continue;
      A v = sum[u][o] + bias_of<T>(c, channel + o);
      if (c.residual)
        v += to_acc(load(static_cast<const T*>(c.residual) + n[u] * c.rm.sn + (channel + o) * c.rm.sc +
                         oh[u] * c.rm.sh + ow[u] * c.rm.sw));
      store(static_cast<T*>(c.y) + n[u] * c.ym.sn + (channel + o) * c.ym.sc + oh[u] * c.ym.sh + ow[u] * c.ym.sw,
            from_acc<T>(activated(v, c.relu)));
    }
  }
}

struct GradParams {
  Conv2dWeightGrad conv;
  int pixels, chunk;                // chunk: pixels of a split
  int lanes, rows, parts, weights;  // weights: taps times channels of a group
  Divisor by_h, by_w, by_parts, by_lanes, by_part_blocks, by_weight_blocks, by_group_in, by_kw;
};

// kOut output channels times kWeights weights of each a thread, over one split's pixels in their order. Neighbouring
// threads take neighbouring weights, of which channels are innermost.
template <class T, int kOut>
__global__ void __launch_bounds__(kConvThreads, 3) conv2d_weight_grad_direct_kernel(GradParams p) {
  using A = Acc<T>;
  constexpr int kWeights = kDirectPixels;
  const Conv2dWeightGrad& c = p.conv;
  uint32_t lane, part_block, weight_block, first;
  const int row = int(p.by_lanes.divide(threadIdx.x, lane));
  const int split = int(p.by_weight_blocks.divide(p.by_part_blocks.divide(blockIdx.x, part_block), weight_block));
  const int part = int(part_block) * p.rows + row;
  if (part >= p.parts) return;
  const int group = int(p.by_parts.divide(part, first));
  first *= kOut;
  const int outs = int(c.g.group_out) - int(first);

  int weight[kWeights], down[kWeights], across[kWeights];
  const T* x[kWeights];
#pragma unroll
  for (int u = 0; u < kWeights; ++u) {
    uint32_t channel, j;
    weight[u] = (int(weight_block) * kWeights + u) * p.lanes + int(lane);
    const int i = int(p.by_kw.divide(p.by_group_in.divide(weight[u] < p.weights ? weight[u] : 0, channel), j));
    down[u] = i * c.g.dh - c.g.ph, across[u] = int(j) * c.g.dw - c.g.pw;
    x[u] = static_cast<const T*>(c.x) + (int64_t(group) * c.g.group_in + channel) * c.xm.sc;
  }
  const T* grad = static_cast<const T*>(c.grad) + (int64_t(group) * c.g.group_out + first) * c.gm.sc;

  A sum[kOut][kWeights] = {};
  const int begin = split * p.chunk, end = p.pixels - begin < p.chunk ? p.pixels : begin + p.chunk;
  uint32_t h, w;
  int n = int(p.by_h.divide(p.by_w.divide(begin, w), h)), oh = int(h), ow = int(w);
  for (int pixel = begin; pixel < end; ++pixel) {
    const T* g = grad + n * c.gm.sn + oh * c.gm.sh + ow * c.gm.sw;
    A a[kOut];
#pragma unroll
    for (int o = 0; o < kOut; ++o) a[o] = to_acc(load_if(o < outs, g + o * c.gm.sc));
#pragma unroll
    for (int u = 0; u < kWeights; ++u) {
      const int ih = oh * c.g.sh + down[u], iw = ow * c.g.sw + across[u];
      const bool valid = weight[u] < p.weights && ih >= 0 && ih < c.xm.h && iw >= 0 && iw < c.xm.w;
      const A b = to_acc(load_if(valid, x[u] + n * c.xm.sn + ih * c.xm.sh + iw * c.xm.sw));
#pragma unroll
      for (int o = 0; o < kOut; ++o) sum[o][u] += a[o] * b;
    }
    if (++ow == c.gm.w) {
      ow = 0;
      if (++oh == c.gm.h) oh = 0, ++n;
    }
  }
  A* out =
      static_cast<A*>(c.partial) + (split * c.g.groups * c.g.group_out + group * c.g.group_out + first) * p.weights;
#pragma unroll
  for (int o = 0; o < kOut; ++o)
#pragma unroll
    for (int u = 0; u < kWeights; ++u)
      if (o < outs && weight[u] < p.weights) store(out + o * int64_t(p.weights) + weight[u], sum[o][u]);
}

struct FinishParams {
  const void* partial;
  void* dw;
  int elements, splits, group_in, taps, rows;  // rows: threads that share an element
  Divisor by_taps, by_group_in, by_columns;
};

template <class T>
__global__ void __launch_bounds__(kConvThreads) weight_grad_finish_kernel(FinishParams p) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, memory);
  const int columns = kConvThreads / p.rows;
  uint32_t column, tap, channel;
  const int row = int(p.by_columns.divide(threadIdx.x, column));
  const int e = int(blockIdx.x) * columns + int(column);  // [o][c][tap]
  const int o = int(p.by_group_in.divide(p.by_taps.divide(e, tap), channel));
  const A* partial = static_cast<const A*>(p.partial) + (int64_t(o) * p.taps + tap) * p.group_in + channel;
  A sum[1] = {0};
  for (int s = row; s < p.splits && e < p.elements; s += p.rows) sum[0] += load(partial + int64_t(s) * p.elements);
  sum_rows(memory, p.rows, columns, sum);
  if (row == 0 && e < p.elements) store(static_cast<T*>(p.dw) + e, from_acc<T>(sum[0]));
}

bool too_large(const Map& m) { return m.n * m.h * m.w > kMostIndex; }

// The smallest power of two that is at least n, at most `most`, itself one.
int lanes_for(int64_t n, int most) {
  int lanes = 1;
  while (lanes < n && lanes < most) lanes *= 2;
  return lanes;
}

constexpr int kRun = 4;  // neighbouring output channels of a thread, where a group has some

struct GradGrid {
  int64_t parts, weights, part_blocks, weight_blocks;
  int lanes, rows;

  explicit GradGrid(const ConvGeometry& g) {
    parts = g.groups * ceil_div(g.group_out, g.group_out > 1 ? kRun : 1);
    weights = int64_t{g.kh} * g.kw * g.group_in;
    lanes = lanes_for(ceil_div(weights, kDirectPixels), kWarp), rows = kConvThreads / lanes;
    part_blocks = ceil_div(parts, rows), weight_blocks = ceil_div(weights, lanes * kDirectPixels);
  }
};

}  // namespace

const char* conv2d_direct(const Conv2d& c, void* stream) {
  if (too_large(c.ym)) return "the output has too many pixels for one grid";
  if (too_long(c.adjoint ? c.ym : c.xm, c.g)) return "an axis exceeds 2^31 positions";
  const bool runs = c.g.group_out > 1;
  Params p{};
  p.conv = c;
  const int64_t parts_of_group = ceil_div(c.g.group_out, runs ? kRun : 1), parts = c.g.groups * parts_of_group;
  if (parts > kMostIndex) return "the output has too many channels for one grid";
  p.pixels = int(c.ym.n * c.ym.h * c.ym.w), p.parts = int(parts);
  p.lanes = c.ym.sc == 1 && c.ym.sw != 1 ? lanes_for(parts, kWarp) : 1, p.rows = kConvThreads / p.lanes;
  p.by_h = Divisor(c.ym.h), p.by_w = Divisor(c.ym.w), p.by_parts = Divisor(parts_of_group);
  p.by_lanes = Divisor(p.lanes), p.by_sh = Divisor(c.g.sh), p.by_sw = Divisor(c.g.sw);
  const int64_t part_blocks = ceil_div(parts, p.lanes), pixel_blocks = ceil_div(p.pixels, p.rows * kDirectPixels);
  if (part_blocks * pixel_blocks > kMostBlocks || pixel_blocks * p.rows * kDirectPixels > kMostIndex)
    return "the output is too large for one grid";
  p.by_blocks = Divisor(part_blocks);
  const Launch l{dim3(unsigned(part_blocks * pixel_blocks)), dim3(kConvThreads), 0, stream};
  const char* error = nullptr;
  switch_dtype(c.dtype, [&](auto element) {
    using T = decltype(element);
    if (c.adjoint)
      error = runs ? launch<conv2d_direct_kernel<T, kRun, true>>(l, p) : launch<conv2d_direct_kernel<T, 1, true>>(l, p);
    else
      error =
          runs ? launch<conv2d_direct_kernel<T, kRun, false>>(l, p) : launch<conv2d_direct_kernel<T, 1, false>>(l, p);
  });
  return error;
}

int64_t direct_weight_grad_splits(const Conv2dWeightGrad& c) {
  const GradGrid grid(c.g);
  return weight_grad_splits(c.gm.n * c.gm.h * c.gm.w, grid.part_blocks * grid.weight_blocks);
}

const char* conv2d_weight_grad_direct(const Conv2dWeightGrad& c, void* stream) {
  if (too_large(c.gm)) return "the output has too many pixels for one grid";
  if (too_long(c.xm, c.g)) return "an axis exceeds 2^31 positions";
  const GradGrid grid(c.g);
  const int64_t blocks = grid.part_blocks * grid.weight_blocks * c.splits;
  if (blocks > kMostBlocks || grid.parts > kMostIndex || grid.weights > kMostIndex - kConvThreads * kDirectPixels)
    return "the weight is too large for one grid";
  GradParams p{};
  p.conv = c;
  p.pixels = int(c.gm.n * c.gm.h * c.gm.w), p.chunk = int(ceil_div(p.pixels, c.splits));
  p.lanes = grid.lanes, p.rows = grid.rows, p.parts = int(grid.parts), p.weights = int(grid.weights);
  p.by_h = Divisor(c.gm.h), p.by_w = Divisor(c.gm.w), p.by_parts = Divisor(grid.parts / c.g.groups);
  p.by_lanes = Divisor(grid.lanes), p.by_part_blocks = Divisor(grid.part_blocks);
  p.by_weight_blocks = Divisor(grid.weight_blocks), p.by_group_in = Divisor(c.g.group_in), p.by_kw = Divisor(c.g.kw);
  const Launch l{dim3(unsigned(blocks)), dim3(kConvThreads), 0, stream};
  const char* error = nullptr;
  switch_dtype(c.dtype, [&](auto element) {
    using T = decltype(element);
    error = c.g.group_out > 1 ? launch<conv2d_weight_grad_direct_kernel<T, kRun>>(l, p)
                              : launch<conv2d_weight_grad_direct_kernel<T, 1>>(l, p);
  });
  return error;
}

const char* conv2d_weight_grad_finish(const Conv2dWeightGrad& c, void* stream) {
  const int64_t taps = int64_t{c.g.kh} * c.g.kw, elements = c.g.groups * c.g.group_out * c.g.group_in * taps;
  if (elements > kMostIndex - kConvThreads) return "the weight is too large for one grid";
  const int rows = weight_grad_rows(elements, c.splits), columns = kConvThreads / rows;
  const FinishParams p{c.partial, c.dw, int(elements), int(c.splits),         int(c.g.group_in),
                       int(taps), rows, Divisor(taps), Divisor(c.g.group_in), Divisor(columns)};
  const Launch l{dim3(unsigned(ceil_div(elements, columns))), dim3(kConvThreads),
                 size_t(kConvThreads * accumulator_size(c.dtype)), stream};
  const char* error = nullptr;
  switch_dtype(c.dtype, [&](auto element) { error = launch<weight_grad_finish_kernel<decltype(element)>>(l, p); });
  return error;
}

}  // namespace fastcnn::cuda
