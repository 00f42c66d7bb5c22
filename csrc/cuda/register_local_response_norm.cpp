#include "cuda/local_response_norm.cuh"
#include "cuda/registration.h"
#include "ops/local_response_norm_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_response_norm";

Tensor local_response_norm(const Tensor& input, int64_t size, double alpha, double beta, double k, int64_t groups,
                           bool relu) {
  LocalResponseNormParams p = norm_geometry(kOp, input, size, alpha, beta, k, groups, relu);
  const Tensor x = dense(input), y = empty(sizes(x), x, format_of(x));
  if (!y.numel()) return y;
  p.x = x.const_data_ptr(), p.out = y.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::local_response_norm(p, stream); });
  return y;
}

Tensor local_response_norm_backward(const Tensor& grad, const Tensor& input, int64_t size, double alpha, double beta,
                                    double k, int64_t groups, bool relu) {
  LocalResponseNormParams p = norm_geometry(kOp, input, size, alpha, beta, k, groups, relu);
  check_one_device(kOp, input, grad);
  check_norm_grad(kOp, grad, input);
  const Tensor x = dense(input), g = torch::stable::contiguous(grad, format_of(x));
  const Tensor gx = empty(sizes(x), x, format_of(x));
  if (!gx.numel()) return gx;
  p.x = x.const_data_ptr(), p.g = g.const_data_ptr(), p.out = gx.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::local_response_norm_backward(p, stream); });
  return gx;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("local_response_norm", TORCH_BOX(&fastcnn::local_response_norm));
  m.impl("_local_response_norm", TORCH_BOX(&fastcnn::local_response_norm));
  m.impl("local_response_norm_backward", TORCH_BOX(&fastcnn::local_response_norm_backward));
}
