#include "ops/avg_windows.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "avg_pool2d";

// ATen's divisor: the window's size with the padding that it reaches, at most p behind the input (ceil mode's windows
// may reach further); without count_include_pad the positions inside the input.
AvgAxis axis(int64_t in, int64_t out, int64_t k, int64_t s, int64_t p, bool count_include_pad) {
  AvgAxis a{pool_windows(in, out, k, s, p, 1), std::vector<double>(out), k, s, p};
  for (int64_t q = 0; q < out; ++q) {
    const int64_t start = q * s - p, stop = start + k < in + p ? start + k : in + p;
    a.divisors[q] = count_include_pad ? stop - start : a.windows[q].end - a.windows[q].begin;
  }
  return a;
}

struct Axes {
  AvgAxis rows, columns;
};

Axes axes(int64_t h, int64_t w, const Ints& kernel, const Ints& stride, const Ints& padding, bool ceil_mode,
          bool count_include_pad, std::optional<int64_t> divisor_override) {
  const auto [g, out] = avg_geometry(kOp, h, w, kernel, stride, padding, ceil_mode, divisor_override);
  Axes a{axis(h, out.h, g.k.h, g.s.h, g.p.h, count_include_pad),
         axis(w, out.w, g.k.w, g.s.w, g.p.w, count_include_pad)};
  if (divisor_override) {
    a.rows.divisors.assign(out.h, double(*divisor_override));
    a.columns.divisors.assign(out.w, 1);
  }
  return a;
}

Tensor avg_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding, bool ceil_mode,
                  bool count_include_pad, std::optional<int64_t> divisor_override) {
  dtype_of(kOp, x);
  pool_geometry(kOp, kernel, stride, padding, {1, 1});
  check_pool_input(kOp, x);
  Axes a = axes(x.size(2), x.size(3), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override);
  return avg_windows(kOp, x, std::move(a.rows), std::move(a.columns));
}

Tensor avg_pool2d_backward(const Tensor& grad, const Ints& size, bool channels_last, const Ints& kernel,
                           const Ints& stride, const Ints& padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  check_pool_size(kOp, size);
  const PoolGeometry g = pool_geometry(kOp, kernel, stride, padding, {1, 1});
  check_avg_grad(kOp, grad, size, pool_output(kOp, g, size[2], size[3], ceil_mode));
  Axes a = axes(size[2], size[3], kernel, stride, padding, ceil_mode, count_include_pad, divisor_override);
  return avg_windows_backward(kOp, grad, size, channels_last, std::move(a.rows), std::move(a.columns));
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY(Int)                                         \
  Int "[2] kernel_size, " Int "[2] stride, " Int              \
      "[2] padding, bool ceil_mode, bool count_include_pad, " \
      "int? divisor_override) -> Tensor"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("avg_pool2d(Tensor x, " GEOMETRY("SymInt"));
  m.def("_avg_pool2d(Tensor x, " GEOMETRY("int"));  // without autograd; torch reads an int faster than a SymInt
  m.def("avg_pool2d_backward(Tensor grad, SymInt[] size, bool channels_last, " GEOMETRY("SymInt"));
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("avg_pool2d", TORCH_BOX(&fastcnn::avg_pool2d));
  m.impl("_avg_pool2d", TORCH_BOX(&fastcnn::avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_BOX(&fastcnn::avg_pool2d_backward));
}
