#include <cmath>

#include "ops/batch_norm_args.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "batch_norm_relu";

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_4d(kOp, "input", input);
  const Dtype dtype = dtype_of(kOp, input);
  const int64_t channels = input.size(1);
  const Doubles mean = values(kOp, "running_mean", running_mean, channels, 0);
  Doubles scale = values(kOp, "weight", weight, channels, 1), shift = values(kOp, "bias", bias, channels, 0);
  const Doubles var = values(kOp, "running_var", running_var, channels, 1);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] /= std::sqrt(var[c] + eps);
    shift[c] -= mean[c] * scale[c];
  }
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Tensor y = empty({input.size(0), channels, input.size(2), input.size(3)}, x, format);
  if (!y.numel()) return y;
  BatchNormReluParams p = params_of(kOp, x, format, relu);
  const Channels factors(scale, dtype), terms(shift, dtype);
  p.scale = factors.data(), p.shift = terms.data(), p.out = y.mutable_data_ptr();
  parallel_for(units_of(p, x), grain(p), [&](int64_t b, int64_t e) { FASTCNN_CPU(batch_norm_relu)(p, b, e); });
  return y;
}

}  // namespace
}  // namespace fastcnn

#define ARGUMENTS \
  "Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight, Tensor? bias, float eps, bool relu"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  // y = act((x - running_mean) / sqrt(running_var + eps) * weight + bias)
  m.def("batch_norm_relu(" ARGUMENTS ") -> Tensor");
  m.def("_batch_norm_relu(" ARGUMENTS ") -> Tensor");  // without autograd
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
  m.impl("_batch_norm_relu", TORCH_BOX(&fastcnn::batch_norm_relu));
}
