// What the ops on the batch normalization kernels share on torch's side: vectors of one value a channel, and the
// kernels' view of the tensor that they normalize.
#pragma once
#include <cmath>
#include <vector>

#include "ops/batch_norm_relu.h"
#include "ops/tensor.h"

namespace fastcnn {

using Doubles = std::vector<double>;

// Elements below which waking the pool costs more than a second thread saves.
constexpr int64_t kSerialNormElements = 16 * 1024;

template <class T>
Doubles widened(const Tensor& t, int64_t channels) {
  const T* v = static_cast<const T*>(t.const_data_ptr());
  const int64_t stride = t.stride(0);
  Doubles wide(channels);
  for (int64_t c = 0; c < channels; ++c) wide[c] = double(v[c * stride]);
  return wide;
}

inline void check_values(const char* op, const char* argument, const Tensor& t, int64_t channels) {
  FASTCNN_CHECK(t.dim() == 1 && t.size(0) == channels, op, ": expected ", argument, " to have ", channels,
                " elements, but got ", argument, " of size ", str(t));
}

// One value a channel, of any floating dtype; `missing` where there is no tensor.
inline Doubles values(const char* op, const char* argument, const std::optional<Tensor>& t, int64_t channels,
                      double missing) {
  if (!t) return Doubles(channels, missing);
  check_values(op, argument, *t, channels);
  switch (dtype_of(op, *t)) {
    case Dtype::f32:
      return widened<float>(*t, channels);
    case Dtype::f64:
      return widened<double>(*t, channels);
    default:
      return widened<double>(torch::stable::to(*t, ScalarType::Double), channels);
  }
}

// A tensor as z is.
inline void check_like(const char* op, const char* argument, const Tensor& t, const Tensor& z) {
  check_same_dtype(op, argument, z, t);
  FASTCNN_CHECK(str(t) == str(z), op, ": expected ", argument, " to have the output's size ", str(z), ", but got ",
                str(t));
}

// Values in the accumulator type.
class Channels {
 public:
  Channels(const Doubles& v, Dtype dtype) {
    if (dtype == Dtype::f64)
      wide_ = v;
    else
      narrow_.assign(v.begin(), v.end());
  }
  const void* data() const {
    return wide_.empty() ? static_cast<const void*>(narrow_.data()) : static_cast<const void*>(wide_.data());
  }

 private:
  std::vector<float> narrow_;
  Doubles wide_;
};

// The kernels' view of z, which is dense in `format`.
inline BatchNormReluParams params_of(const char* op, const Tensor& z, MemoryFormat format, bool relu) {
  BatchNormReluParams p{};
  p.z = z.const_data_ptr();
  p.dtype = dtype_of(op, z), p.relu = relu;
  p.channels = z.size(1);
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.pixels = z.size(2) * z.size(3) * (p.channels_last ? z.size(0) : 1);
  return p;
}

// Blocks of so many pixels (channels_last), else planes.
inline int64_t units_of(const BatchNormReluParams& p, const Tensor& z, int64_t pixels) {
  return p.channels_last ? (p.pixels + pixels - 1) / pixels : z.size(0) * z.size(1);
}

// kernel(begin, end) over these units.
template <class F>
void over_units(const BatchNormReluParams& p, const Tensor& z, int64_t pixels, const F& kernel) {
  const int64_t elements = p.channels_last ? pixels * p.channels : p.pixels;
  parallel_for(units_of(p, z, pixels), 1 + kSerialNormElements / elements, kernel);
}

struct Affine {
  Doubles scale, shift, invstd;
};
inline Affine affine(const Doubles& mean, const Doubles& var, const Doubles& weight, const Doubles& bias, double eps) {
  Affine a{mean, mean, mean};
  for (size_t c = 0; c < mean.size(); ++c) {
    a.invstd[c] = 1 / std::sqrt(var[c] + eps);
    a.scale[c] = weight[c] * a.invstd[c];
    a.shift[c] = bias[c] - mean[c] * a.scale[c];
  }
  return a;
}

// act(z * scale + shift + residual), on the CPU; z dense.
Tensor normalized(const char* op, const Tensor& z, const Affine& a, const std::optional<Tensor>& residual, bool relu);

}  // namespace fastcnn
