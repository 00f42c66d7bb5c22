// The weight gradient of float32 tensors in either layout as a matrix product in exact float32: output channels times
// weights (taps and, within each, channels), summed over pixels. Each split of the pixels leaves its sums to
// conv2d_weight_grad_finish.
#include <climits>

#include "cuda/conv2d.cuh"
#include "cuda/divisor.h"
#include "cuda/ffma_tile.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

// From an output pixel to the one kFfmaDepth further on: elements, and what a step to the next row of pixels or to the
// next image adds to them. sh, sw: what the tensor moves by when an output pixel does.
struct PixelSteps {
  int64_t next, row, image;

  PixelSteps() = default;
  PixelSteps(const Map& out, int64_t sn, int64_t sh, int64_t sw) {
    const int64_t rows = kFfmaDepth / out.w;
    next = rows / out.h * sn + rows % out.h * sh + kFfmaDepth % out.w * sw;
    row = sh - out.w * sw, image = sn - out.h * sh;
  }
};

struct Params {
  Conv2dWeightGrad conv;
  int pixels, chunk, weights;  // chunk: pixels of a split, a multiple of the depth; weights: of an output channel
  // In rows and columns of x: its size, where output pixels end, and how far the pixel kFfmaDepth further on lies.
  int h, w, end_h, end_w, next_h, next_w, sh, sw;
  int next_channel;  // of grad
  PixelSteps by_x, by_grad;
  Divisor by_h, by_w, by_group_in, by_kw, by_columns, by_rows;
};

// A block's: which of the splits, its first output channel and weight.
struct Tile {
  int split, m0, n0;

  __device__ __forceinline__ Tile(const Params& p, int side) {
    int block = blockIdx.x;
    keep(block);  // else what is computed here would stay in registers from the loop's one end to the other
    uint32_t row, column;
    split = int(p.by_rows.divide(p.by_columns.divide(block, column), row));
    m0 = int(row) * side, n0 = int(column) * side;
  }
};

// kVector: four channels a copy, neighbouring threads copy neighbouring channels. Else one a copy, and neighbouring
// threads copy neighbouring pixels.
template <int kSide, bool kVector>
__global__ void __launch_bounds__(FfmaTile<kSide, kSide>::kThreads, FfmaTile<kSide, kSide>::kBlocks)
    conv2d_ffma_weight_grad_kernel(Params p) {
  using S = FfmaTile<kSide, kSide>;
  using Stage = typename S::Stage;
  FASTCNN_SHARED(Stage, stages);
  const Conv2dWeightGrad& c = p.conv;
  const int thread = threadIdx.x, group = blockIdx.y, outputs = int(c.g.group_out);
  const auto [split, m0, n0] = Tile(p, kSide);

  // What this thread copies of every step: of some pixels some channels of the gradient, and as many weights' inputs.
  constexpr int kWidth = kVector ? 4 : 1, kCopies = S::kDepth * kSide / kWidth / S::kThreads;
  constexpr int kPixels = kVector ? kCopies : 1, kElements = kVector ? 1 : kCopies;
  constexpr int kNextPixel = S::kThreads / (kSide / kWidth), kNextElement = S::kThreads / S::kDepth;
  const int row = kVector ? thread / (kSide / kWidth) : thread % S::kDepth;
  const int element = kVector ? thread % (kSide / kWidth) * kWidth : thread / S::kDepth;
  int offset[kElements], down[kElements], across[kElements];  // from what a window begins with to what the tap reads
#pragma unroll
  for (int k = 0; k < kElements; ++k) {
    const int weight = n0 + element + k * kNextElement;
    uint32_t channel, j;
    const uint32_t i = p.by_kw.divide(p.by_group_in.divide(weight < p.weights ? weight : 0, channel), j);
    down[k] = int(i) * c.g.dh - c.g.ph, across[k] = int(j) * c.g.dw - c.g.pw;
    offset[k] = int(channel * c.xm.sc + down[k] * c.xm.sh + across[k] * c.xm.sw);
    if (weight >= p.weights) down[k] = INT_MIN;  // above every input
  }
  const int begin = split * p.chunk, end = p.pixels - begin < p.chunk ? p.pixels : begin + p.chunk;
  int h[kPixels], w[kPixels];  // in x, where the pixel's window begins but for the padding
  const float *x[kPixels], *grad[kPixels];
#pragma unroll
  for (int u = 0; u < kPixels; ++u) {
    uint32_t oh, ow;
    const int64_t n = p.by_h.divide(p.by_w.divide(begin + row + u * kNextPixel, ow), oh);
    h[u] = int(oh) * p.sh, w[u] = int(ow) * p.sw;
    grad[u] = static_cast<const float*>(c.grad) + n * c.gm.sn + oh * c.gm.sh + ow * c.gm.sw +
              (int64_t(group) * outputs + m0 + element) * c.gm.sc;
    x[u] = static_cast<const float*>(c.x) + int64_t(group) * c.g.group_in * c.xm.sc + n * c.xm.sn + h[u] * c.xm.sh +
           w[u] * c.xm.sw + (kElements > 1 ? 0 : offset[0]);
  }
  int pixels_left = end - begin - row;
  const int outputs_left = outputs - m0 - element;

  // Conditions are joined by &: nvcc would jump at every &&. Offsets stay 32 bits wide, which one IMAD.WIDE adds to x:
  // nvcc would widen them ahead of the loop, and add in two.
  const auto fetch = [&](Stage& stage) {
#pragma unroll
    for (int u = 0; u < kPixels; ++u) {
      const bool exists = u * kNextPixel < pixels_left;
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const int at = element + k * kNextElement;
        cp_async<4 * kWidth>(&stage.a[row + u * kNextPixel][at], grad[u] + int64_t(p.next_channel) * (k * kNextElement),
                             exists & (k * kNextElement < outputs_left));
        const bool valid =
            exists & (uint32_t(h[u] + down[k]) < uint32_t(p.h)) & (uint32_t(w[u] + across[k]) < uint32_t(p.w));
        const float* from = x[u];
        if (kElements > 1) keep(offset[k]), from += offset[k];
        cp_async<4 * kWidth>(&stage.b[row + u * kNextPixel][at], from, valid);
      }
      h[u] += p.next_h, w[u] += p.next_w, x[u] += p.by_x.next, grad[u] += p.by_grad.next;
      if (w[u] >= p.end_w) w[u] -= p.end_w, h[u] += p.sh, x[u] += p.by_x.row, grad[u] += p.by_grad.row;
      if (h[u] >= p.end_h) h[u] -= p.end_h, x[u] += p.by_x.image, grad[u] += p.by_grad.image;
    }
    pixels_left -= S::kDepth;
  };

  float sum[8][8] = {};
  const ThreadPlace at = S::place(thread);
  run_stages<S>(stages, (end - begin + S::kDepth - 1) / S::kDepth, fetch, sum, at);

  const Tile tile(p, kSide);
  float* out = static_cast<float*>(c.partial) + (int64_t(tile.split) * c.g.groups + group) * outputs * p.weights;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int o = tile.m0 + at.row(i), weight = tile.n0 + at.column(half * 4);
      if (o >= outputs) continue;
      float* to = out + int64_t(o) * p.weights + weight;
      const float* v = &sum[i][half * 4];
      if (p.weights % 4 == 0) {
        if (weight < p.weights) store(reinterpret_cast<Vec<float, 4>*>(to), Vec<float, 4>{v[0], v[1], v[2], v[3]});
        continue;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (weight + k < p.weights) store(to + k, v[k]);
    }
}

int64_t weights_of(const ConvGeometry& g) { return int64_t{g.kh} * g.kw * g.group_in; }

// 128x128 where the weight fills it, else 64x64.
int64_t side_of(const ConvGeometry& g) { return g.group_out > 64 && weights_of(g) > 64 ? 128 : 64; }

// Pixels of a split, whole steps of the kernel.
int64_t chunk_of(int64_t pixels, int64_t splits) { return ceil_div(ceil_div(pixels, splits), kFfmaDepth) * kFfmaDepth; }

template <int kSide>
const char* run(Params p, void* stream) {
  using S = FfmaTile<kSide, kSide>;
  const Conv2dWeightGrad& c = p.conv;
  const int64_t columns = ceil_div(p.weights, kSide), rows = ceil_div(c.g.group_out, kSide);
  const int64_t blocks = columns * rows * c.splits;
  if (blocks > kMostBlocks || c.g.groups > 65535) return "the weight is too large for one grid";
  p.by_columns = Divisor(columns), p.by_rows = Divisor(rows);
  const Launch l{dim3(unsigned(blocks), unsigned(c.g.groups)), dim3(S::kThreads),
                 sizeof(typename S::Stage) * S::kStages, stream};
  return c.g.group_in % 4 == 0 && c.g.group_out % 4 == 0 && in_runs(c.x, c.xm, 4) && in_runs(c.grad, c.gm, 4)
             ? launch<conv2d_ffma_weight_grad_kernel<kSide, true>>(l, p)
             : launch<conv2d_ffma_weight_grad_kernel<kSide, false>>(l, p);
}

}  // namespace

int64_t ffma_weight_grad_splits(const Conv2dWeightGrad& c) {
  const int64_t side = side_of(c.g), pixels = c.gm.n * c.gm.h * c.gm.w;
  const int64_t blocks = ceil_div(c.g.group_out, side) * ceil_div(weights_of(c.g), side) * c.g.groups;
  return ceil_div(pixels, chunk_of(pixels, weight_grad_splits(pixels, blocks)));
}

const char* conv2d_weight_grad_ffma(const Conv2dWeightGrad& c, void* stream) {
  const int64_t pixels = c.gm.n * c.gm.h * c.gm.w, weights = weights_of(c.g);
  if (pixels > kMostIndex - 2 * kFfmaDepth) return "the output has too many pixels for one grid";
  if (weights > kMostIndex - 128 || c.g.group_out > kMostIndex - 128) return "the weight is too large for one grid";
  Params p{};
  p.conv = c, p.pixels = int(pixels), p.chunk = int(chunk_of(pixels, c.splits)), p.weights = int(weights);
  p.h = int(c.xm.h), p.w = int(c.xm.w), p.sh = c.g.sh, p.sw = c.g.sw;
  p.end_h = int(c.gm.h * c.g.sh), p.end_w = int(c.gm.w * c.g.sw);
  p.next_h = int(kFfmaDepth / c.gm.w % c.gm.h * c.g.sh), p.next_w = int(kFfmaDepth % c.gm.w * c.g.sw);
  p.next_channel = int(c.gm.sc);
  p.by_x = PixelSteps(c.gm, c.xm.sn, c.g.sh * c.xm.sh, c.g.sw * c.xm.sw);
  p.by_grad = PixelSteps(c.gm, c.gm.sn, c.gm.sh, c.gm.sw);
  p.by_h = Divisor(c.gm.h), p.by_w = Divisor(c.gm.w), p.by_group_in = Divisor(c.g.group_in), p.by_kw = Divisor(c.g.kw);
  return side_of(c.g) == 128 ? run<128>(p, stream) : run<64>(p, stream);
}

}  // namespace fastcnn::cuda
