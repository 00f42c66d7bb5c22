// Adaptive average pooling to a fixed output size.
//   y[n,c,p,q] = mean of x[n,c,h,w] over floor(p*H/OH) <= h < ceil((p+1)*H/OH) and the same for w.
#include "ops/avg_windows.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "adaptive_avg_pool2d";

AvgAxis axis(int64_t in, int64_t out) {
  AvgAxis a{Windows(out), std::vector<double>(out)};
  for (int64_t q = 0; q < out; ++q) {
    const int64_t begin = q * in / out, end = ((q + 1) * in + out - 1) / out;
    a.windows[q] = {begin, end, begin};
    a.divisors[q] = end - begin;
  }
  if (out > 0 && in % out == 0) a.k = a.s = in / out;
  return a;
}

Tensor adaptive_avg_pool2d(const Tensor& x, const Ints& output_size) {
  const Pair out = adaptive_output(kOp, output_size);
  check_adaptive_input(kOp, x, out);
  return avg_windows(kOp, x, axis(x.size(2), out.h), axis(x.size(3), out.w));
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad, const Ints& size, bool channels_last, const Ints& output_size) {
  const Pair out = adaptive_output(kOp, output_size);
  check_pool_size(kOp, size);
  check_avg_grad(kOp, grad, size, out);
  return avg_windows_backward(kOp, grad, size, channels_last, axis(size[2], out.h), axis(size[3], out.w));
}

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("adaptive_avg_pool2d(Tensor x, SymInt[2] output_size) -> Tensor");
  m.def("_adaptive_avg_pool2d(Tensor x, SymInt[2] output_size) -> Tensor");  // without autograd
  m.def(
      "adaptive_avg_pool2d_backward(Tensor grad, SymInt[] size, bool channels_last, SymInt[2] output_size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&fastcnn::adaptive_avg_pool2d));
  m.impl("_adaptive_avg_pool2d", TORCH_BOX(&fastcnn::adaptive_avg_pool2d));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&fastcnn::adaptive_avg_pool2d_backward));
}
