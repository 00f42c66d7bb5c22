#include "cuda/batch_norm_args.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "batch_norm_relu";

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_one_device(kOp, input, running_mean, running_var, weight, bias);
  check_4d(kOp, "input", input);
  dtype_of(kOp, input);
  return normalized(kOp, {"running_mean", "running_var", "weight", "bias"}, input, running_mean, running_var, weight,
                    bias, std::nullopt, eps, relu);
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
  m.impl("_batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
}
