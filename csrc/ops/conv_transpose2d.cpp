// Transposed convolution: the adjoint of conv2d, which its kernels compute as they do conv2d's input gradient.
//   y[n,o,p,q] = b[o] + sum over c in the group of o, i, j, and h, v with h*sh-ph+i*dh = p and v*sw-pw+j*dw = q, of
//                w[c,o,i,j] * x[n,c,h,v]
#include "ops/conv2d_args.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "conv_transpose2d";
constexpr int64_t kMost = int64_t{1} << 31;

// (in-1)*s - 2*p + d*(k-1) + output_padding + 1; at least 1 and below 2^31, as conv2d's sizes are.
Pair output_size(const Tensor& x, const Tensor& w, const Conv2dArgs& a, const Pair& extra) {
  const auto along = [&](int d, int64_t s, int64_t p, int64_t dilation, int64_t more) {
    return __int128{x.size(d) - 1} * s - 2 * p + __int128{dilation} * (w.size(d) - 1) + more + 1;
  };
  const __int128 h = along(2, a.stride.h, a.padding.h, a.dilation.h, extra.h);
  const __int128 v = along(3, a.stride.w, a.padding.w, a.dilation.w, extra.w);
  FASTCNN_CHECK(h < kMost && v < kMost, kOp, ": Given input size per channel: (", x.size(2), " x ", x.size(3),
                "). The output size overflows: expected fewer than 2^31 rows and columns");
  FASTCNN_CHECK(h > 0 && v > 0, kOp, ": Given input size per channel: (", x.size(2), " x ", x.size(3),
                "). Calculated output size per channel: (", int64_t(h), " x ", int64_t(v),
                "). Output size is too small");
  return {int64_t(h), int64_t(v)};
}

void check_tensors(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t groups) {
  check_4d(kOp, "input", x);
  check_4d(kOp, "weight", w);
  check_same_dtype(kOp, "weight", x, w);
  FASTCNN_CHECK(w.size(0) >= groups && w.size(0) % groups == 0, kOp, ": Given groups=", groups,
                ", expected weight to be at least ", groups,
                " at dimension 0 and divisible by it, but got weight of size ", str(w));
  FASTCNN_CHECK(w.size(1) > 0 && w.size(2) > 0 && w.size(3) > 0, kOp, ": expected a non-empty weight (", w.size(0),
                ", output channels per group, kernel height, kernel width), but got weight of size ", str(w));
  FASTCNN_CHECK(x.size(1) == w.size(0), kOp, ": Given transposed=1, weight of size ", str(w), ", expected input",
                str(x), " to have ", w.size(0), " channels, but got ", x.size(1), " channels instead");
  FASTCNN_CHECK(x.size(2) > 0 && x.size(3) > 0, kOp,
                ": Only zero batch or zero channel inputs are supported, but got input shape: ", str(x));
  FASTCNN_CHECK(x.size(2) < kMost && x.size(3) < kMost && groups < kMost && w.size(1) < kMost, kOp,
                ": tensor sizes must be below 2^31");
  if (!bias) return;
  check_same_dtype(kOp, "bias", x, *bias);
  FASTCNN_CHECK(bias->dim() == 1 && bias->size(0) == w.size(1) * groups, kOp, ": Given transposed=1, weight of size ",
                str(w), ", expected bias to be 1-dimensional with ", w.size(1) * groups,
                " elements, but got bias of size ", str(*bias));
}

Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups) {
  dtype_of(kOp, x);
  const Conv2dArgs a = read_args(kOp, stride, padding, dilation, groups);
  for (const int64_t extra : output_padding)
    FASTCNN_CHECK(extra >= 0, kOp, ": negative output_padding is not supported, but got output_padding with ", extra);
  const Pair extra = pair(kOp, "output_padding", output_padding, 0);
  check_tensors(x, weight, bias, groups);
  FASTCNN_CHECK((extra.h < a.stride.h || extra.h < a.dilation.h) && (extra.w < a.stride.w || extra.w < a.dilation.w),
                kOp, ": output padding must be smaller than either stride or dilation, but got output_padding (",
                extra.h, ", ", extra.w, "), stride (", a.stride.h, ", ", a.stride.w, ") and dilation (", a.dilation.h,
                ", ", a.dilation.w, ")");
  const Pair out = output_size(x, weight, a, extra);
  const Ints size{x.size(0), weight.size(1) * groups, out.h, out.w};
  check_numel(kOp, size);
  return transposed_conv2d(kOp, x, weight, bias, size, a);
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY "SymInt[2] stride, SymInt[2] padding, SymInt[2] output_padding, SymInt[2] dilation, SymInt groups"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("conv_transpose2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");
  m.def("_conv_transpose2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");  // without autograd
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv_transpose2d", TORCH_BOX(&fastcnn::conv_transpose2d));
  m.impl("_conv_transpose2d", TORCH_BOX(&fastcnn::conv_transpose2d));
}
