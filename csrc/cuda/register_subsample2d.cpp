#include "cuda/registration.h"
#include "cuda/subsample2d.cuh"
#include "ops/subsample2d_plan.h"

namespace fastcnn {
namespace {

using Params = Subsample2dParams;

constexpr const char* kOp = "subsample2d";

Tensor subsample2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& kernel,
                   const Ints& stride, double scale) {
  check_one_device(kOp, input, weight, bias);
  return run_subsample2d(kOp, input, weight, bias, kernel, stride, scale, [](const Params& p, const Tensor& x) {
    launched(kOp, x, [&](void* stream) { return cuda::subsample2d(p, stream); });
  });
}

Tensor backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& kernel,
                      const Ints& stride, double scale) {
  check_one_device(kOp, grad, weight);
  const auto start = [](const Params& p, const Tensor& g) {
    launched(kOp, g, [&](void* stream) { return cuda::subsample2d_backward_input(p, stream); });
  };
  return run_subsample2d_backward_input(kOp, grad, weight, size, kernel, stride, scale, start);
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                           const Ints& stride, double scale) {
  check_one_device(kOp, input, grad);
  return run_subsample2d_backward_weight(kOp, grad, input, kernel, stride, scale, [](Params& p, const Tensor& x) {
    Tensor partial = empty({cuda::subsample2d_units(p), 2, p.ym.c}, x, MemoryFormat::Contiguous, ScalarType::Double);
    p.partial = static_cast<double*>(partial.mutable_data_ptr());
    launched(kOp, x, [&](void* stream) { return cuda::subsample2d_backward_weight(p, stream); });
  });
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("_subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("subsample2d_backward_input", TORCH_BOX(&fastcnn::backward_input));
  m.impl("subsample2d_backward_weight", TORCH_BOX(&fastcnn::backward_weight));
}
