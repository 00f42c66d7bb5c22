#include <algorithm>

#include "ops/subsample2d_plan.h"

namespace fastcnn {
namespace {

using Params = Subsample2dParams;

constexpr const char* kOp = "subsample2d";

template <class Kernel>
void run(const Params& p, int64_t units, int64_t elements, const Kernel& kernel) {
  parallel_for(units, 1 + 32768 / elements, [&](int64_t b, int64_t e) { kernel(p, b, e); });
}

Tensor subsample2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& kernel,
                   const Ints& stride, double scale) {
  return run_subsample2d(kOp, input, weight, bias, kernel, stride, scale, [](const Params& p, const Tensor&) {
    run(p, p.ym.n * p.ym.h, p.ym.c * p.ym.w * p.kh * p.kw, FASTCNN_CPU(subsample2d));
  });
}

Tensor subsample2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& kernel,
                                  const Ints& stride, double scale) {
  const auto start = [](const Params& p, const Tensor&) {
    run(p, p.xm.n * p.xm.h, p.xm.c * p.xm.w, FASTCNN_CPU(subsample2d_backward_input));
  };
  return run_subsample2d_backward_input(kOp, grad, weight, size, kernel, stride, scale, start);
}

std::tuple<Tensor, Tensor> subsample2d_backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                                       const Ints& stride, double scale) {
  return run_subsample2d_backward_weight(kOp, grad, input, kernel, stride, scale, [](Params& p, const Tensor&) {
    std::vector<double> partial(2 * p.xm.n * p.xm.c);
    p.partial = partial.data();
    run(p, p.xm.n, std::max<int64_t>(p.ym.c * p.ym.h * p.ym.w * p.kh * p.kw, 1),
        FASTCNN_CPU(subsample2d_backward_weight));
    FASTCNN_CPU(subsample2d_sum_partials)(p);
  });
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
