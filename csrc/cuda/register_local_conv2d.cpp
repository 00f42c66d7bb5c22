#include "cuda/local_conv2d.cuh"
#include "cuda/registration.h"
#include "ops/local_conv2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_conv2d";

Tensor local_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                    const Ints& padding, const Ints& dilation) {
  check_one_device(kOp, input, weight, bias);
  check_4d(kOp, "input", input);
  LocalConv2dParams p = local_geometry(kOp, sizes(input), input, weight, stride, padding, dilation);
  Tensor b;
  if (bias) {
    b = local_bias(kOp, input, *bias, p);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input), w = torch::stable::contiguous(weight);
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::local_conv2d(p, stream); });
  return y;
}

Tensor backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                      const Ints& padding, const Ints& dilation) {
  check_one_device(kOp, grad, weight);
  LocalConv2dParams p = local_geometry(kOp, size, grad, weight, stride, padding, dilation);
  check_local_grad(kOp, grad, p);
  const Tensor g = dense(grad), w = torch::stable::contiguous(weight);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  launched(kOp, g, [&](void* stream) { return cuda::local_conv2d_backward_input(p, stream); });
  return dx;
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                           const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_one_device(kOp, input, grad);
  check_4d(kOp, "input", input);
  check_same_dtype(kOp, "grad", input, grad);
  FASTCNN_CHECK(grad.dim() == 4, kOp, ": expected 4D grad, but got grad of size ", str(grad));
  LocalConv2dParams p = local_geometry(kOp, sizes(input), input, grad.size(1), kernel, stride, padding, dilation);
  check_local_grad(kOp, grad, p);
  Tensor dw = empty({p.ym.h, p.ym.w, p.ym.c, p.xm.c, p.kh, p.kw}, input, MemoryFormat::Contiguous);
  Tensor db = empty({p.ym.c, p.ym.h, p.ym.w}, input, MemoryFormat::Contiguous);
  if (!grad.numel()) return {torch::stable::fill_(dw, 0.0), torch::stable::fill_(db, 0.0)};
  const Tensor g = dense(grad), x = dense(input);
  p.xm = map_of(x), p.ym = map_of(g);
  p.x = x.const_data_ptr(), p.g = g.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::local_conv2d_backward_weight(p, stream); });
  return {dw, db};
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("local_conv2d", TORCH_BOX(&fastcnn::local_conv2d));
  m.impl("_local_conv2d", TORCH_BOX(&fastcnn::local_conv2d));
  m.impl("local_conv2d_backward_input", TORCH_BOX(&fastcnn::backward_input));
  m.impl("local_conv2d_backward_weight", TORCH_BOX(&fastcnn::backward_weight));
}
