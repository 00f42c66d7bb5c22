// Which kernel computes a convolution, in which tiles and how many parts of a sum: functions of sizes, types and, of
// the parts, the chip's number of processors, so that a call's bits depend on nothing else.
#pragma once
#include <cstdlib>

#include "cuda/conv2d.cuh"
#include "cuda/conv2d_first_tile.h"
#include "cuda/conv2d_grouped_tile.h"
#include "cuda/conv2d_plane_tile.h"
#include "cuda/tiles.h"

namespace fastcnn::cuda {

enum class ConvKernel { direct, grouped, grouped_mma, ffma, mma, first_ffma, first_mma };

// Among the matrix products and the kernel that takes everything. tf32: float32 may be rounded to it.
inline ConvKernel choose_gemm(const ConvGeometry& g, Dtype dtype, bool tf32) {
  if (dtype == Dtype::f64 || g.kh > kMostTaps || g.kw > kMostTaps) return ConvKernel::direct;
  // Copies of 16 bytes; tensors in NCHW are copied to NHWC first.
  const int64_t chunk = 16 / size_of(dtype);
  const bool chunks = g.group_in > 0 && g.group_in % chunk == 0 && g.group_out % chunk == 0;
  if (size_of(dtype) == 2) return chunks ? ConvKernel::mma : ConvKernel::direct;
  if (tf32 && chunks && g.group_in >= 8 && g.group_out >= 16) return ConvKernel::mma;
  // A step takes 8 channels and a block 64 outputs, there or not; the direct kernel does with a quarter of the rate.
  return g.group_in >= 3 && g.group_out >= 16 ? ConvKernel::ffma : ConvKernel::direct;
}

// What halo tiles take. Of 8 or 16 channels per group in either layout, since copies to NHWC cost less than what other
// kernels waste on such groups; so do weight gradients.
inline bool in_planes(const ConvGeometry& g, Dtype dtype) {
  return size_of(dtype) == 2 && g.groups > 1 && g.group_in == g.group_out && (g.group_in == 8 || g.group_in == 16);
}
inline bool in_chunks(const ConvGeometry& g, Dtype dtype) {
  return few_channels(g, dtype) && g.groups * g.group_in * size_of(dtype) % 16 == 0;
}

// g: channels per group of the sum's input and output, its taps. h, w: of the output. channels_last: x and y both are.
inline ConvKernel choose_kernel(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last,
                                bool tf32) {
  if (in_planes(g, dtype) && plane_tile(g, h, w).rows > 0) return ConvKernel::grouped_mma;
  if (in_chunks(g, dtype) && (channels_last || g.group_in > 4) && grouped_tile(g, h, w, dtype).rows > 0)
    return ConvKernel::grouped;
  return choose_gemm(g, dtype, tf32);
}

// How conv2d_mma cuts its matrix product: the first `whole` tiles fall to a block each, of the others the sum falls to
// `pieces` blocks of `chunk` steps, the last of which may have fewer.
struct MmaPlan {
  MmaTile tile;
  bool planes;                          // of channels: each step keeps to one tap
  int64_t m, n, rows, columns, groups;  // sizes of a tile; tiles of a group; groups
  int64_t channel_steps, steps, whole, pieces, chunk;

  int64_t tiles() const { return rows * columns * groups; }
  int64_t rest() const { return tiles() - whole; }
  int64_t blocks() const { return whole + rest() * pieces; }
  int64_t partial_elements() const { return pieces > 1 ? rest() * pieces * m * n : 0; }
  MmaPlan unsplit() const {
    MmaPlan p = *this;
    p.whole = tiles(), p.pieces = 1, p.chunk = steps;
    return p;
  }
};

// The tiles that are left when all processors have had as many: in pieces, where that saves 3% of the time.
inline void split_rest(MmaPlan& p, int64_t processors) {
  const int64_t rest = p.tiles() % processors;
  p.whole = p.tiles(), p.pieces = 1, p.chunk = p.steps;
  if (rest == 0) return;
  // In steps of a processor, times their number.
  const int64_t finish = kFinishSteps * 128 * 128 / (p.m * p.n) * processors;
  int64_t best = p.steps * processors - p.tiles() * p.steps / 32;
  for (int64_t wanted = 2; wanted <= kMostPieces && wanted <= p.steps; ++wanted) {
    const int64_t chunk = ceil_div(p.steps, wanted), pieces = ceil_div(p.steps, chunk), blocks = rest * pieces;
    const int64_t cost =
        ceil_div(blocks, processors) * (chunk + kPieceSteps) * processors + kPartialSteps * blocks + finish;
    if (cost < best) best = cost, p.whole = p.tiles() - rest, p.pieces = pieces, p.chunk = chunk;
  }
}

inline MmaPlan mma_plan(const ConvGeometry& g, Dtype dtype, bool planes, int64_t pixels, int64_t processors) {
  MmaPlan p{};
  const int64_t depth = 64 / int64_t(size_of(dtype)), taps = int64_t{g.kh} * g.kw;
  p.tile = mma_tile(pixels, g.group_out, g.groups), p.planes = planes;
  p.m = p.tile == MmaTile::k64x64 ? 64 : 128;
  p.n = p.tile == MmaTile::k128x192 ? 192 : p.tile == MmaTile::k128x128 ? 128 : 64;
  p.rows = ceil_div(pixels, p.m), p.columns = ceil_div(g.group_out, p.n), p.groups = g.groups;
  p.channel_steps = ceil_div(g.group_in, depth);
  p.steps = planes ? p.channel_steps * taps : ceil_div(g.group_in * taps, depth);
  split_rest(p, processors);
  return p;
}

// Pixels of the slots over which the kernel's epilogue takes the moments of y: its tile's. 0: it takes none. From four
// tiles a processor on, the pass over y that they spare outlasts what processors idle under the last, unsplit tiles.
inline int64_t moment_pixels(ConvKernel kernel, const ConvGeometry& g, Dtype dtype, bool planes, int64_t pixels,
                             int64_t processors) {
  if (kernel == ConvKernel::ffma) return gemm_tile(pixels, g.group_out, g.groups) == GemmTile::k64x64 ? 64 : 128;
  if (kernel != ConvKernel::mma) return 0;
  const MmaPlan p = mma_plan(g, dtype, planes, pixels, processors);
  return p.pieces == 1 || p.tiles() >= 4 * processors ? p.m : 0;
}

// Of a convolution as it is called.
inline ConvKernel choose_forward(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last,
                                 bool tf32) {
  if (is_first_layer(g, dtype, h, w)) return dtype == Dtype::f32 ? ConvKernel::first_ffma : ConvKernel::first_mma;
  return choose_kernel(g, dtype, h, w, channels_last, tf32);
}

// Whether conv2d_weight_grad_ffma can count in 32 bits what its loop adds to: twice the positions of an axis of x, and
// offsets from where a window would begin without padding to what its taps read.
inline bool fits_ffma_weight_grad(const ConvGeometry& g, int64_t x_h, int64_t x_w) {
  const auto span = [](int64_t size, int64_t padding, int64_t stride) {
    return double(size) + 2.0 * double(std::abs(padding)) + double(stride);
  };
  const double rows = span(x_h, g.ph, g.sh), columns = span(x_w, g.pw, g.sw), most = double(kMostIndex);
  return 2 * rows <= most && 2 * columns <= most && (rows * double(x_w) + columns) * g.groups * g.group_in <= most;
}

// Of the weight gradient, in either layout; h, w: of grad; x_h, x_w: of x. Products over pixels have weights, taps and
// channels alike, for columns.
inline ConvKernel choose_weight_grad(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, int64_t x_h, int64_t x_w,
                                     bool tf32) {
  const bool few = has_few_inputs(g) && g.group_out >= 16;
  if (few && size_of(dtype) == 2 && g.group_out % 8 == 0 && first_weight_grad_bytes(g, dtype) <= kMostSharedBytes)
    return ConvKernel::first_mma;
  const ConvKernel exact = fits_ffma_weight_grad(g, x_h, x_w) ? ConvKernel::ffma : ConvKernel::direct;
  if (few && dtype == Dtype::f32 && g.kh * g.kw * g.group_in >= 16) return exact;
  if (in_planes(g, dtype) && plane_grad_tile(g, h, w).rows > 0) return ConvKernel::grouped_mma;
  if (in_chunks(g, dtype) && grouped_grad_tile(g, h, w, dtype).rows > 0) return ConvKernel::grouped;
  const ConvKernel gemm = choose_gemm(g, dtype, tf32);
  return gemm == ConvKernel::ffma ? exact : gemm;
}

// Of an input gradient, whose g has the convolution's strides and dilations, but swapped channels.
inline ConvKernel choose_adjoint_kernel(const ConvGeometry& g, Dtype dtype, int64_t h, int64_t w, bool channels_last,
                                        bool tf32) {
  const bool strided = g.sh > 1 || g.sw > 1, dilated = g.dh > 1 || g.dw > 1;
  return strided && dilated ? ConvKernel::direct : choose_kernel(g, dtype, h, w, channels_last, tf32);
}

// Whether a kernel takes x, residual and y in NHWC alone, to which NCHW tensors are copied; float32 comes to tensor
// cores in its own layout. channels_next: channels of x are neighbours, as they are in NHWC, and in both layouts of
// single pixels, whose other strides then mean nothing.
inline bool reads_nhwc(ConvKernel kernel, Dtype dtype, bool channels_next) {
  return kernel == ConvKernel::grouped || kernel == ConvKernel::grouped_mma ||
         (kernel == ConvKernel::mma && (size_of(dtype) == 2 || channels_next));
}

}  // namespace fastcnn::cuda
