#include "ops/batch_norm_relu.h"

#include <cmath>

#include "ops/tensor.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Doubles = std::vector<double>;

constexpr const char* kOp = "batch_norm_relu";

// Elements below which waking the pool costs more than a second thread saves.
constexpr int64_t kSerialElements = 16 * 1024;

template <class T>
Doubles widened(const Tensor& t, int64_t channels) {
  const T* v = static_cast<const T*>(t.const_data_ptr());
  Doubles wide(channels);
  for (int64_t c = 0; c < channels; ++c) wide[c] = double(v[c * t.stride(0)]);
  return wide;
}

// One value a channel, of any floating dtype; `missing` where there is no tensor.
Doubles per_channel(const char* argument, const OptionalTensor& t, int64_t channels, double missing) {
  if (!t) return Doubles(channels, missing);
  FASTCNN_CHECK(t->dim() == 1 && t->size(0) == channels, kOp, ": expected ", argument, " to have ", channels,
                " elements, but got ", argument, " of size ", str(*t));
  switch (dtype_of(kOp, *t)) {
    case Dtype::f32:
      return widened<float>(*t, channels);
    case Dtype::f64:
      return widened<double>(*t, channels);
    default:
      return widened<double>(torch::stable::to(*t, ScalarType::Double), channels);
  }
}

template <class A>
void run(BatchNormReluParams p, int64_t units, const Doubles& scale, const Doubles& shift) {
  const std::vector<A> factors(scale.begin(), scale.end()), terms(shift.begin(), shift.end());
  p.scale = factors.data(), p.shift = terms.data();
  const int64_t per_unit = p.channels_last ? kNormPixels * p.channels : p.pixels;
  parallel_for(units, 1 + kSerialElements / per_unit,
               [&](int64_t b, int64_t e) { FASTCNN_CPU(batch_norm_relu)(p, b, e); });
}

Tensor batch_norm_relu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool relu) {
  check_4d(kOp, "input", input);
  const Dtype dtype = dtype_of(kOp, input);
  const int64_t n = input.size(0), channels = input.size(1), plane = input.size(2) * input.size(3);
  const Doubles mean = per_channel("running_mean", running_mean, channels, 0);
  Doubles scale = per_channel("weight", weight, channels, 1), shift = per_channel("bias", bias, channels, 0);
  const Doubles var = per_channel("running_var", running_var, channels, 1);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] /= std::sqrt(var[c] + eps);
    shift[c] -= mean[c] * scale[c];
  }
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Tensor y = empty({n, channels, input.size(2), input.size(3)}, x, format);
  if (!y.numel()) return y;
  BatchNormReluParams p{};
  p.z = x.const_data_ptr(), p.out = y.mutable_data_ptr();
  p.dtype = dtype, p.relu = relu;
  p.channels = channels, p.channels_last = format == MemoryFormat::ChannelsLast;
  p.pixels = p.channels_last ? n * plane : plane;
  const int64_t units = p.channels_last ? (p.pixels + kNormPixels - 1) / kNormPixels : n * channels;
  dtype == Dtype::f64 ? run<double>(p, units, scale, shift) : run<float>(p, units, scale, shift);
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
