// Average pooling over windows that are products of a row range and a column range: avg_pool2d's and
// adaptive_avg_pool2d's, forward and backward alike.
//   forward:  y[n,c,p,q] = 1/(rd[p]*cd[q]) * sum over h in rows[p], w in columns[q] of x[n,c,h,w]
//   backward: gx[n,c,h,w] = sum over p in rows[h], q in columns[w] of g[n,c,p,q] / (rd[p]*cd[q]),
// where rows[h] are the windows that hold row h: the same sum with the divisors at the other end.
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"
#include "ops/window.h"

namespace fastcnn {

// Plain data: the same struct serves CPU, CUDA and the inference plan. Tensors are dense NHWC or NCHW.
struct AvgPool2dParams {
  const void* x;  // (n, c, h, w); of backward: g
  void* y;        // (n, c, oh, ow); of backward: gx
  Dtype dtype;
  bool channels_last;
  bool backward;
  bool global;  // one window over the whole plane, which is one row of w columns (NCHW) or one column (NHWC)
  int64_t n, c, h, w, oh, ow;
  const Window* rows;          // of each row of y the rows of x that it sums
  const Window* columns;       // the same for columns
  const double* row_scale;     // of each row of y, rd; of backward: of each row of x, 1/rd
  const double* column_scale;  // the same for columns, cd
  int64_t kw, sw, pw;          // columns of equal windows, stride 1 or 2; else sw is 0 and only `columns` says
  int64_t longest;             // of columns
  int64_t channel_block;       // NHWC: channels a task

  int64_t blocks() const { return (c + channel_block - 1) / channel_block; }
  // Independent tasks: rows of y in every plane (NCHW) or in every image and channel block (NHWC).
  int64_t tasks() const { return channels_last ? n * oh * blocks() : n * c * oh; }
  PhasedRow row() const { return backward ? PhasedRow(ow, w, kw, sw, pw, 1) : PhasedRow(w, ow, kw, sw, pw, 1); }
  // Bytes of scratch that a call of the kernel needs.
  int64_t scratch_bytes() const {
    constexpr int64_t kWord = 8, kParts = 8 * 64;
    if (channels_last) return kWord * (w + longest * channel_block) + kParts;
    return kWord * ((sw ? 3 * row().size() + kw : 0) + 2 * (w + ow + kw + 4 * kMostLanes)) + kParts;
  }
};

// Tasks [begin, end).
FASTCNN_DECLARE_KERNEL(void avg_pool2d(const AvgPool2dParams&, char* scratch, int64_t begin, int64_t end))

}  // namespace fastcnn
