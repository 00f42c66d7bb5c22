#include "ops/local_response_norm_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_response_norm";
using KernelFn = void (*)(const LocalResponseNormParams&, int64_t, int64_t, void*);

// x is dense, and p.g where it is used, in x's format.
Tensor run(const Tensor& x, LocalResponseNormParams& p, bool backward) {
  Tensor out = empty(sizes(x), x, format_of(x));
  if (!out.numel()) return out;
  p.x = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  set_units(p, backward);
  const KernelFn kernel = backward ? FASTCNN_CPU(local_response_norm_backward) : FASTCNN_CPU(local_response_norm);
  const int64_t work = p.channels * std::min(p.length, p.inner == 1 ? p.outer : p.inner);  // elements a unit
  parallel_for(p.units, 1 + 16384 / work, [&](int64_t b, int64_t e) {
    std::vector<double> scratch((scratch_bytes(p) + 7) / 8);
    kernel(p, b, e, scratch.data());
  });
  return out;
}

Tensor local_response_norm(const Tensor& input, int64_t size, double alpha, double beta, double k, int64_t groups,
                           bool relu) {
  LocalResponseNormParams p = norm_geometry(kOp, input, size, alpha, beta, k, groups, relu);
  return run(dense(input), p, false);
}

Tensor local_response_norm_backward(const Tensor& grad, const Tensor& input, int64_t size, double alpha, double beta,
                                    double k, int64_t groups, bool relu) {
  LocalResponseNormParams p = norm_geometry(kOp, input, size, alpha, beta, k, groups, relu);
  check_norm_grad(kOp, grad, input);
  const Tensor x = dense(input), g = dense(grad, format_of(x));
  p.g = g.const_data_ptr();
  return run(x, p, true);
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY "SymInt size, float alpha, float beta, float k, SymInt groups, bool relu"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("local_response_norm(Tensor x, " GEOMETRY ") -> Tensor");
  m.def("_local_response_norm(Tensor x, " GEOMETRY ") -> Tensor");  // without autograd
  m.def("local_response_norm_backward(Tensor grad, Tensor x, " GEOMETRY ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("local_response_norm", TORCH_BOX(&fastcnn::local_response_norm));
  m.impl("_local_response_norm", TORCH_BOX(&fastcnn::local_response_norm));
  m.impl("local_response_norm_backward", TORCH_BOX(&fastcnn::local_response_norm_backward));
}
