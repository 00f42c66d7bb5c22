// Trainable subsampling (LeCun et al. 1998, layers S2 and S4).
//   y[n,c,p,q] = b[c] + w[c] * scale * sum over 0<=i<kh, 0<=j<kw of x[n, c, p*sh+i, q*sw+j].
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

struct Subsample2dParams {
  const void* x;
  const void* w;
  const void* b;  // may be null
  const void* g;  // backward: the gradient of y
  void* out;      // y, or dx
  void* dw;
  void* db;
  Dtype dtype;
  Map xm, ym;
  int64_t kh, kw, sh, sw;
  double scale;
  double* partial;  // backward_weight: [n][2][c], a sample's sums for dw and db
};

// Rows [begin, end) of the n*oh, or of the n*ih, all channels; backward_weight: samples [begin, end).
FASTCNN_DECLARE_KERNEL(void subsample2d(const Subsample2dParams&, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void subsample2d_backward_input(const Subsample2dParams&, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void subsample2d_backward_weight(const Subsample2dParams&, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void subsample2d_sum_partials(const Subsample2dParams&))

}  // namespace fastcnn
