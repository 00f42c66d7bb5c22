// Trainable subsampling around its kernels: what the CPU's and the CUDA op share.
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

// start(params, x) computes what params point to, on x's device.
template <class Start>
Tensor run_subsample2d(const char* op, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Ints& kernel, const Ints& stride, double scale, const Start& start) {
  check_4d(op, "input", input);
  Subsample2dParams p = subsample_geometry(op, sizes(input), input, kernel, stride, scale);
  const Tensor w = per_channel(op, "weight", input, weight, p.ym.c);
  Tensor b;
  if (bias) {
    b = per_channel(op, "bias", input, *bias, p.ym.c);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input);
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  start(p, x);
  return y;
}

template <class Start>
Tensor run_subsample2d_backward_input(const char* op, const Tensor& grad, const Tensor& weight, const Ints& size,
                                      const Ints& kernel, const Ints& stride, double scale, const Start& start) {
  Subsample2dParams p = subsample_geometry(op, size, grad, kernel, stride, scale);
  check_subsample_grad(op, grad, p);
  const Tensor w = per_channel(op, "weight", grad, weight, p.ym.c);
  const Tensor g = dense(grad);
  check_numel(op, size);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  start(p, g);
  return dx;
}

template <class Start>
std::tuple<Tensor, Tensor> run_subsample2d_backward_weight(const char* op, const Tensor& grad, const Tensor& input,
                                                           const Ints& kernel, const Ints& stride, double scale,
                                                           const Start& start) {
  check_4d(op, "input", input);
  Subsample2dParams p = subsample_geometry(op, sizes(input), input, kernel, stride, scale);
  check_same_dtype(op, "grad", input, grad);
  check_subsample_grad(op, grad, p);
  const Tensor x = dense(input), g = dense(grad, format_of(x));
  Tensor dw = empty({p.ym.c}, x, MemoryFormat::Contiguous), db = empty({p.ym.c}, x, MemoryFormat::Contiguous);
  p.xm = map_of(x), p.ym = map_of(g);
  p.x = x.const_data_ptr(), p.g = g.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  start(p, x);
  return {dw, db};
}

}  // namespace fastcnn
