#include "ops/batch_norm_args.h"

namespace fastcnn {

Tensor normalized(const char* op, const Tensor& z, const Affine& a, const std::optional<Tensor>& residual, bool relu) {
  if (residual) check_like(op, "residual", *residual, z);
  const MemoryFormat format = format_of(z);
  const Tensor y = empty(sizes(z), z, format);
  if (!y.numel()) return y;
  BatchNormReluParams p = params_of(op, z, format, relu);
  const Channels scale(a.scale, p.dtype), shift(a.shift, p.dtype);
  p.scale = scale.data(), p.shift = shift.data(), p.out = y.mutable_data_ptr();
  const Tensor r = residual ? dense(*residual, format) : z;
  if (residual) p.residual = r.const_data_ptr();
  over_units(p, z, kPassPixels, [&](int64_t b, int64_t e) { FASTCNN_CPU(batch_norm_relu)(p, b, e); });
  return y;
}

namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "batch_norm_relu";

Tensor batch_norm_relu(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_4d(kOp, "input", x);
  dtype_of(kOp, x);  // refuses integers before anything is said of the vectors
  const int64_t channels = x.size(1);
  const Doubles mean = values(kOp, "running_mean", running_mean, channels, 0);
  const Doubles gamma = values(kOp, "weight", weight, channels, 1), beta = values(kOp, "bias", bias, channels, 0);
  const Doubles var = values(kOp, "running_var", running_var, channels, 1);
  return normalized(kOp, dense(x), affine(mean, var, gamma, beta, eps), std::nullopt, relu);
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
