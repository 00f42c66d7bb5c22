#include <algorithm>

#include "ops/subsample2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "subsample2d";

template <class Kernel>
void run(const Subsample2dParams& p, int64_t units, int64_t elements, const Kernel& kernel) {
  parallel_for(units, 1 + 32768 / elements, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

Tensor subsample2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& kernel,
                   const Ints& stride, double scale) {
  check_4d(kOp, "input", input);
  Subsample2dParams p = subsample_geometry(kOp, sizes(input), input, kernel, stride, scale);
  const Tensor w = per_channel(kOp, "weight", input, weight, p.ym.c);
  Tensor b;
  if (bias) {
    b = per_channel(kOp, "bias", input, *bias, p.ym.c);
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
  Subsample2dParams p = subsample_geometry(kOp, size, grad, kernel, stride, scale);
  check_subsample_grad(kOp, grad, p);
  const Tensor w = per_channel(kOp, "weight", grad, weight, p.ym.c);
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
  Subsample2dParams p = subsample_geometry(kOp, sizes(input), input, kernel, stride, scale);
  check_same_dtype(kOp, "grad", input, grad);
  check_subsample_grad(kOp, grad, p);
  const Tensor x = dense(input), g = dense(grad, format_of(x));
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
