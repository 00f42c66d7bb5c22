// Convolution with a channel link table (LeCun et al. 1998, Table I): output map o reads `counts[o]` input maps, the
// next ones of `indices`; link l has weights w[l, kh, kw], and absent links have none.
//   y[n,o,p,q] = b[o] + sum over links l of o, i, j of w[l,i,j] * x[n, indices[l], p*sh-ph+i, q*sw-pw+j].
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

struct SparseConv2dParams {
  const void* x;
  const void* w;
  const void* b;  // may be null
  const void* g;  // backward: the gradient of y
  void* out;      // y, or dx
  void* dw;
  void* db;
  Dtype dtype;
  Map xm, ym;
  const int64_t* counts;   // [ym.c]
  const int64_t* indices;  // [links]
  int64_t links;
  int64_t kh, kw, sh, sw, ph, pw;
  // Kernels read a sample as planes without strides: phase (a, b) of a channel holds the padded input's rows a, a+sh,
  // ... and columns b, b+sw, ..., `rows` by `pitch`; tap (i, j) is the phase (i%sh, j%sw), shifted by i/sh rows and
  // j/sw columns. Outputs and their gradients take the same pitch.
  int64_t phases_h, phases_w, rows, pitch;
  int64_t scratch;  // elements of the accumulator type that a thread needs, zeroed
  int64_t chunk;    // backward_weight: samples a partial sum; fixed by the shape, so that threads change no bit
  void* partial;    // [chunks][links*kh*kw + ym.c] of the accumulator type
};

// Samples [begin, end).
FASTCNN_DECLARE_KERNEL(void sparse_conv2d(const SparseConv2dParams&, int64_t begin, int64_t end, void* scratch))
FASTCNN_DECLARE_KERNEL(void sparse_conv2d_backward_input(const SparseConv2dParams&, int64_t begin, int64_t end,
                                                         void* scratch))
// Chunks of samples [begin, end) into their partial sums; then all partial sums into dw and db.
FASTCNN_DECLARE_KERNEL(void sparse_conv2d_backward_weight(const SparseConv2dParams&, int64_t begin, int64_t end,
                                                          void* scratch))
FASTCNN_DECLARE_KERNEL(void sparse_conv2d_sum_partials(const SparseConv2dParams&, int64_t chunks))

}  // namespace fastcnn
