// Trainable subsampling's arguments, checked: what the CPU's and the CUDA op share.
#pragma once
#include "ops/subsample2d.h"
#include "ops/tensor.h"

namespace fastcnn {

inline Subsample2dParams subsample_geometry(const char* op, const Ints& x, const Tensor& like, const Ints& kernel,
                                            const Ints& stride, double scale) {
  FASTCNN_CHECK(x.size() == 4, op, ": expected 4D input (N, C, H, W), but got ", x.size(), "D");
  const Pair k = pair(op, "kernel_size", kernel, 1), s = pair(op, "stride", stride, 1);
  FASTCNN_CHECK(x[2] >= k.h && x[3] >= k.w, op, ": expected input of at least kernel_size (", k.h, ", ", k.w,
                "), but got height and width (", x[2], ", ", x[3], ")");
  Subsample2dParams p{};
  p.dtype = dtype_of(op, like);
  p.kh = k.h, p.kw = k.w, p.sh = s.h, p.sw = s.w, p.scale = scale;
  p.ym = {x[0], x[1], (x[2] - k.h) / s.h + 1, (x[3] - k.w) / s.w + 1, 0, 0, 0, 0};
  return p;
}

// One value a channel, contiguous.
inline Tensor per_channel(const char* op, const char* argument, const Tensor& like, const Tensor& t, int64_t channels) {
  check_same_dtype(op, argument, like, t);
  FASTCNN_CHECK(t.dim() == 1 && t.size(0) == channels, op, ": expected ", argument, " of size [", channels,
                "], but got ", argument, " of size ", str(t));
  return made_dense(t);
}

inline void check_subsample_grad(const char* op, const Tensor& g, const Subsample2dParams& p) {
  FASTCNN_CHECK(
      g.dim() == 4 && g.size(0) == p.ym.n && g.size(1) == p.ym.c && g.size(2) == p.ym.h && g.size(3) == p.ym.w, op,
      ": expected grad of size [", p.ym.n, ", ", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got grad of size ",
      str(g));
}

}  // namespace fastcnn
