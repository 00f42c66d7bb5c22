// Transposed convolution: the adjoint of conv2d, which its kernels compute as they do conv2d's input gradient.
//   y[n,o,p,q] = b[o] + sum over c in the group of o, i, j, and h, v with h*sh-ph+i*dh = p and v*sw-pw+j*dw = q, of
//                w[c,o,i,j] * x[n,c,h,v]
#include "ops/conv_transpose2d_checks.h"

namespace fastcnn {
namespace {

Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups) {
  Conv2dArgs a;
  const Ints size = conv_transpose_output(x, weight, bias, stride, padding, output_padding, dilation, groups, a);
  return transposed_conv2d(kConvTranspose2d, x, weight, bias, size, a);
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
