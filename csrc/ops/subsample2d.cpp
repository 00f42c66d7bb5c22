#include "ops/subsample2d.h"

#include <algorithm>

#include "ops/tensor.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "subsample2d";

Subsample2dParams geometry(const Ints& x, const Tensor& like, const Ints& kernel, const Ints& stride, double scale) {
  FASTCNN_CHECK(x.size() == 4, kOp, ": expected 4D input (N, C, H, W), but got ", x.size(), "D");
  const Pair k = pair(kOp, "kernel_size", kernel, 1), s = pair(kOp, "stride", stride, 1);
  FASTCNN_CHECK(x[2] >= k.h && x[3] >= k.w, kOp, ": expected input of at least kernel_size (", k.h, ", ", k.w,
                "), but got height and width (", x[2], ", ", x[3], ")");
  Subsample2dParams p{};
  p.dtype = dtype_of(kOp, like);
  p.kh = k.h, p.kw = k.w, p.sh = s.h, p.sw = s.w, p.scale = scale;
  p.ym = {x[0], x[1], (x[2] - k.h) / s.h + 1, (x[3] - k.w) / s.w + 1, 0, 0, 0, 0};
  return p;
}

// One value a channel, contiguous.
Tensor per_channel(const char* argument, const Tensor& like, const Tensor& t, int64_t channels) {
  check_same_dtype(kOp, argument, like, t);
  FASTCNN_CHECK(t.dim() == 1 && t.size(0) == channels, kOp, ": expected ", argument, " of size [", channels,
                "], but got ", argument, " of size ", str(t));
  return torch::stable::contiguous(t);
}

void check_grad(const Tensor& g, const Subsample2dParams& p) {
  FASTCNN_CHECK(
      g.dim() == 4 && g.size(0) == p.ym.n && g.size(1) == p.ym.c && g.size(2) == p.ym.h && g.size(3) == p.ym.w, kOp,
      ": expected grad of size [", p.ym.n, ", ", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got grad of size ",
      str(g));
}

template <class Kernel>
void run(const Subsample2dParams& p, int64_t units, int64_t elements, const Kernel& kernel) {
  parallel_for(units, 1 + 32768 / elements, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

Ints sizes(const Tensor& t) { return Ints(t.sizes().begin(), t.sizes().end()); }

Tensor subsample2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& kernel,
                   const Ints& stride, double scale) {
  check_4d(kOp, "input", input);
  Subsample2dParams p = geometry(sizes(input), input, kernel, stride, scale);
  const Tensor w = per_channel("weight", input, weight, p.ym.c);
  Tensor b;
  if (bias) {
    b = per_channel("bias", input, *bias, p.ym.c);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input);
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  run(p, p.ym.n * p.ym.h, p.ym.c * p.ym.w * p.kh * p.kw, FASTCNN_CPU(subsample2d));
  return y;
}

Tensor subsample2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& kernel,
                                  const Ints& stride, double scale) {
  Subsample2dParams p = geometry(size, grad, kernel, stride, scale);
  check_grad(grad, p);
  const Tensor w = per_channel("weight", grad, weight, p.ym.c);
  const Tensor g = dense(grad);
  check_numel(kOp, size);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  run(p, p.xm.n * p.xm.h, p.xm.c * p.xm.w, FASTCNN_CPU(subsample2d_backward_input));
  return dx;
}

std::tuple<Tensor, Tensor> subsample2d_backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                                       const Ints& stride, double scale) {
  check_4d(kOp, "input", input);
  Subsample2dParams p = geometry(sizes(input), input, kernel, stride, scale);
  check_same_dtype(kOp, "grad", input, grad);
  check_grad(grad, p);
  const Tensor x = dense(input), g = torch::stable::contiguous(grad, format_of(x));
  Tensor dw = empty({p.ym.c}, x, MemoryFormat::Contiguous), db = empty({p.ym.c}, x, MemoryFormat::Contiguous);
  p.xm = map_of(x), p.ym = map_of(g);
  p.x = x.const_data_ptr(), p.g = g.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  std::vector<double> partial(2 * p.xm.n * p.xm.c);
  p.partial = partial.data();
  run(p, p.xm.n, std::max<int64_t>(p.ym.c * p.ym.h * p.ym.w * p.kh * p.kw, 1),
      FASTCNN_CPU(subsample2d_backward_weight));
  FASTCNN_CPU(subsample2d_sum_partials)(p);
  return {dw, db};
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY "SymInt[2] kernel_size, SymInt[2] stride, float scale"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("subsample2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");
  m.def("_subsample2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");  // without autograd
  m.def("subsample2d_backward_input(Tensor grad, Tensor weight, SymInt[] size, " GEOMETRY ") -> Tensor");
  m.def("subsample2d_backward_weight(Tensor grad, Tensor x, " GEOMETRY ") -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("_subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("subsample2d_backward_input", TORCH_BOX(&fastcnn::subsample2d_backward_input));
  m.impl("subsample2d_backward_weight", TORCH_BOX(&fastcnn::subsample2d_backward_weight));
}
