#include "ops/local_response_norm.h"

#include <algorithm>

#include "ops/tensor.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_response_norm";
constexpr int64_t kSlack = 16;  // lanes of the widest vector: reads of scratch are whole vectors

LocalResponseNormParams geometry(const Tensor& x, int64_t size, double alpha, double beta, double k, int64_t groups,
                                 bool relu) {
  check_4d(kOp, "input", x);
  FASTCNN_CHECK(size > 0, kOp, ": expected size of at least 1, but got ", size);
  FASTCNN_CHECK(groups > 0 && x.size(1) % groups == 0, kOp, ": expected groups to divide the channels of input (",
                x.size(1), "), but got groups ", groups);
  LocalResponseNormParams p{};
  p.dtype = dtype_of(kOp, x);
  p.relu = relu, p.alpha = alpha, p.beta = beta, p.k = k;
  p.channels = x.size(1) / groups;
  const bool rows = format_of(x) == MemoryFormat::ChannelsLast;
  const int64_t pixels = x.size(2) * x.size(3);
  p.inner = rows ? 1 : pixels;
  p.outer = x.size(0) * groups * (rows ? pixels : 1);
  p.before = std::min(size / 2, std::max<int64_t>(p.channels - 1, 0));
  p.after = std::min((size - 1) / 2, std::max<int64_t>(p.channels - 1, 0));
  return p;
}

using KernelFn = void (*)(const LocalResponseNormParams&, int64_t, int64_t, void*);

// x is dense, and p.g where it is used, in x's format.
Tensor run(const Tensor& x, LocalResponseNormParams& p, bool backward) {
  Tensor out = empty(Ints(x.sizes().begin(), x.sizes().end()), x, format_of(x));
  if (!out.numel()) return out;
  p.x = x.const_data_ptr(), p.out = out.mutable_data_ptr();
  const int64_t count = p.before + p.after + 1, pitch = p.channels + count - 1;
  if (p.inner == 1) {
    p.length = std::clamp<int64_t>(2048 / pitch, 1, 64);  // a buffer of 8 KiB: several fit the first-level cache
    p.units = (p.outer + p.length - 1) / p.length;
    p.scratch = (backward ? 3 : 1) * (p.length * pitch + kSlack);
  } else {
    p.length = std::clamp<int64_t>(2560 / count, 64, 512);
    p.units = p.outer * std::max<int64_t>(p.inner / p.length, 1);
    p.scratch = backward ? 2 * count * (2 * p.length + kSlack) : 0;
  }
  const KernelFn kernel = backward ? FASTCNN_CPU(local_response_norm_backward) : FASTCNN_CPU(local_response_norm);
  const int64_t work = p.channels * std::min(p.length, p.inner == 1 ? p.outer : p.inner);  // elements a unit
  parallel_for(p.units, 1 + 16384 / work, [&](int64_t b, int64_t e) {
    std::vector<double> scratch((p.scratch * (p.dtype == Dtype::f64 ? 8 : 4) + 7) / 8);
    kernel(p, b, e, scratch.data());
  });
  return out;
}

Tensor local_response_norm(const Tensor& input, int64_t size, double alpha, double beta, double k, int64_t groups,
                           bool relu) {
  LocalResponseNormParams p = geometry(input, size, alpha, beta, k, groups, relu);
  return run(dense(input), p, false);
}

Tensor local_response_norm_backward(const Tensor& grad, const Tensor& input, int64_t size, double alpha, double beta,
                                    double k, int64_t groups, bool relu) {
  LocalResponseNormParams p = geometry(input, size, alpha, beta, k, groups, relu);
  check_same_dtype(kOp, "grad", input, grad);
  FASTCNN_CHECK(grad.dim() == 4 && std::equal(grad.sizes().begin(), grad.sizes().end(), input.sizes().begin()), kOp,
                ": expected grad of size ", str(input), ", but got grad of size ", str(grad));
  const Tensor x = dense(input), g = torch::stable::contiguous(grad, format_of(x));
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
