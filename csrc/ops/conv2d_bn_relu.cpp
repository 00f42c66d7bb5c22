// Convolution, batch normalization over the batch's own statistics, residual and ReLU: the training half of
// conv2d_bn_relu (in inference the normalization is folded into the convolution's weight).
#include <cmath>

#include "ops/batch_norm_args.h"
#include "ops/conv2d.h"
#include "ops/conv2d_args.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "conv2d_bn_relu";

// Mean and variance over all pixels from those of the slots, in double and in the slots' order (Chan et al. 1983).
template <class A>
void combine(const Moments& m, int64_t channels, Doubles& mean, Doubles& var) {
  const A* data = reinterpret_cast<const A*>(m.data.get());
  const int64_t per_row = (m.row + kMomentPixels - 1) / kMomentPixels, rest = m.row - (per_row - 1) * kMomentPixels;
  const auto count = [&](int64_t slot) { return double(slot % per_row + 1 < per_row ? kMomentPixels : rest); };
  parallel_for(channels, 1 + kSerialNormElements / m.slots, [&](int64_t c0, int64_t c1) {
    for (int64_t s = 0; s < m.slots; ++s)
      for (int64_t c = c0; c < c1; ++c) mean[c] += count(s) * double(data[s * 2 * channels + c]);
    for (int64_t c = c0; c < c1; ++c) mean[c] /= double(m.pixels);
    for (int64_t s = 0; s < m.slots; ++s)
      for (int64_t c = c0; c < c1; ++c) {
        const double d = double(data[s * 2 * channels + c]) - mean[c];
        var[c] += double(data[(s * 2 + 1) * channels + c]) + count(s) * d * d;
      }
    for (int64_t c = c0; c < c1; ++c) var[c] /= double(m.pixels);
  });
}

void round_to_float(Doubles& v) {
  for (double& x : v) x = float(x);
}

Tensor tensor_of(const Doubles& v, const Tensor& like, ScalarType type) {
  Tensor t = empty({int64_t(v.size())}, like, MemoryFormat::Contiguous, type);
  if (type == ScalarType::Double)
    std::copy(v.begin(), v.end(), static_cast<double*>(t.mutable_data_ptr()));
  else
    std::copy(v.begin(), v.end(), static_cast<float*>(t.mutable_data_ptr()));
  return t;
}

Tensor by_statistics(const Tensor& z, const Doubles& mean, const Doubles& var, const OptionalTensor& bn_weight,
                     const OptionalTensor& bn_bias, const OptionalTensor& residual, double eps, bool relu) {
  return normalized(kOp, z,
                    affine(mean, var, values(kOp, "bn_weight", bn_weight, z.size(1), 1),
                           values(kOp, "bn_bias", bn_bias, z.size(1), 0), eps),
                    residual, relu);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                   const OptionalTensor& residual, const OptionalTensor& bn_weight,
                                                   const OptionalTensor& bn_bias, const Ints& stride,
                                                   const Ints& padding, const Ints& dilation, int64_t groups,
                                                   double eps, bool relu, int64_t accuracy) {
  Moments moments{};
  const Tensor z =
      conv2d_with_moments(x, weight, bias, read_args(kOp, stride, padding, dilation, groups), accuracy, moments);
  const int64_t channels = z.size(1);
  const Dtype dtype = dtype_of(kOp, z);
  Doubles mean(channels, 0.0), var(channels, 0.0);
  if (z.numel()) {
    dtype == Dtype::f64 ? combine<double>(moments, channels, mean, var) : combine<float>(moments, channels, mean, var);
    // As wide as backward gets them: another scale could put the sign of ReLU's input on the other side of zero there.
    if (dtype != Dtype::f64) round_to_float(mean), round_to_float(var);
  }
  const Tensor y = by_statistics(z, mean, var, bn_weight, bn_bias, residual, eps, relu);
  return {y, z, tensor_of(mean, z, accumulator_type(dtype)), tensor_of(var, z, accumulator_type(dtype))};
}

Tensor normalize(const Tensor& conv, const Tensor& mean, const Tensor& var, const OptionalTensor& bn_weight,
                 const OptionalTensor& bn_bias, const OptionalTensor& residual, double eps, bool relu) {
  check_4d(kOp, "z", conv);
  const Tensor z = dense(conv);
  const int64_t channels = z.size(1);
  return by_statistics(z, values(kOp, "mean", mean, channels, 0), values(kOp, "var", var, channels, 1), bn_weight,
                       bn_bias, residual, eps, relu);
}

// S and Q of every channel: the units' sums in their order, in double.
template <class A>
void total(const std::vector<char>& sums, const BatchNormReluParams& p, int64_t units, Doubles& s, Doubles& q) {
  const A* at = reinterpret_cast<const A*>(sums.data());
  for (int64_t unit = 0; unit < units; ++unit) {
    if (p.channels_last) {
      for (int64_t c = 0; c < p.channels; ++c, ++at) s[c] += double(*at);
      for (int64_t c = 0; c < p.channels; ++c, ++at) q[c] += double(*at);
    } else {
      s[unit % p.channels] += double(*at++);
      q[unit % p.channels] += double(*at++);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& conv, const OptionalTensor& y,
                                                    const Tensor& mean, const Tensor& var,
                                                    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                                    double eps, bool relu, bool masked) {
  check_4d(kOp, "z", conv);
  check_like(kOp, "grad", grad, conv);
  if (y) check_like(kOp, "y", *y, conv);
  const Tensor z = dense(conv);
  const MemoryFormat format = format_of(z);
  const Ints size{z.size(0), z.size(1), z.size(2), z.size(3)};
  const Dtype dtype = dtype_of(kOp, z);
  const int64_t channels = z.size(1);
  const Doubles gamma = values(kOp, "bn_weight", bn_weight, channels, 1),
                beta = values(kOp, "bn_bias", bn_bias, channels, 0);
  const Doubles m = values(kOp, "mean", mean, channels, 0), v = values(kOp, "var", var, channels, 1);
  Doubles s(channels, 0.0), q(channels, 0.0);
  const Affine a = affine(m, v, gamma, beta, eps);
  const Tensor dz = empty(size, z, format), dr = empty(masked ? size : Ints{0}, z, format);
  if (z.numel()) {
    const Tensor g = dense(grad, format);
    const Tensor out = y ? dense(*y, format) : z;
    BatchNormReluParams p = params_of(kOp, z, format, relu);
    const int64_t units = units_of(p, z, kNormPixels);
    const Channels scale(a.scale, dtype), shift(a.shift, dtype), centre(m, dtype);
    p.scale = scale.data(), p.shift = shift.data(), p.mean = centre.data();
    p.grad = g.const_data_ptr();
    if (y) p.y = out.const_data_ptr();
    std::vector<char> sums(units * 2 * (p.channels_last ? channels : 1) * accumulator_size(dtype));
    p.sums = sums.data();
    over_units(p, z, kNormPixels, [&](int64_t b, int64_t e) { FASTCNN_CPU(batch_norm_relu_sums)(p, b, e); });
    dtype == Dtype::f64 ? total<double>(sums, p, units, s, q) : total<float>(sums, p, units, s, q);
    const double count = double(z.numel() / channels);
    Doubles of_z(channels), constant(channels);
    for (int64_t c = 0; c < channels; ++c) {
      of_z[c] = -a.scale[c] * a.invstd[c] * a.invstd[c] * q[c] / count;
      constant[c] = -a.scale[c] * s[c] / count - of_z[c] * m[c];
    }
    const Channels by_z(of_z, dtype), rest(constant, dtype);
    p.of_grad = scale.data(), p.of_z = by_z.data(), p.constant = rest.data();
    p.out = dz.mutable_data_ptr();
    if (masked) p.masked = dr.mutable_data_ptr();
    over_units(p, z, kPassPixels, [&](int64_t b, int64_t e) { FASTCNN_CPU(batch_norm_relu_backward)(p, b, e); });
  }
  for (int64_t c = 0; c < channels; ++c) q[c] *= a.invstd[c];
  return {dz, dr, tensor_of(q, z, accumulator_type(dtype)), tensor_of(s, z, accumulator_type(dtype))};
}

}  // namespace
}  // namespace fastcnn

#define ARGUMENTS                                                                                                   \
  "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? bn_weight, Tensor? bn_bias, SymInt[2] stride, " \
  "SymInt[2] padding, SymInt[2] dilation, SymInt groups, float eps, bool relu, int accuracy=1"
#define NORMALIZED \
  "Tensor z, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, Tensor? residual, float eps, bool relu"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  // y, the convolution's output z, and its channels' mean and variance (biased) over the batch.
  m.def("conv2d_bn_relu(" ARGUMENTS ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("_conv2d_bn_relu(" ARGUMENTS ") -> (Tensor, Tensor, Tensor, Tensor)");  // without autograd
  // Such a y where the convolution and its statistics are there: mean and var are z's own.
  m.def("normalize_conv2d(" NORMALIZED ") -> Tensor");
  m.def("_normalize_conv2d(" NORMALIZED ") -> Tensor");  // without autograd
  // Gradients of z, of the residual (empty unless `masked`), of bn_weight and of bn_bias. y: needed where a residual
  // went into the ReLU, else its sign is recomputed.
  m.def(
      "_batch_norm_relu_backward(Tensor grad, Tensor z, Tensor? y, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? "
      "bn_bias, float eps, bool relu, bool masked) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv2d_bn_relu", TORCH_BOX(&fastcnn::forward));
  m.impl("_conv2d_bn_relu", TORCH_BOX(&fastcnn::forward));
  m.impl("normalize_conv2d", TORCH_BOX(&fastcnn::normalize));
  m.impl("_normalize_conv2d", TORCH_BOX(&fastcnn::normalize));
  m.impl("_batch_norm_relu_backward", TORCH_BOX(&fastcnn::backward));
}
