// Checks of the convolutions' tensors, and the geometry that follows from them; the CPU's and the GPU's ops share them.
#pragma once
#include "ops/conv2d.h"
#include "ops/conv2d_args.h"

namespace fastcnn {

using OptionalTensor = std::optional<Tensor>;

// Geometry of a convolution of x [n, c, ..] with a weight [o, c/groups, kh, kw].
inline ConvGeometry conv_geometry(const char* op, const Tensor& x, const Tensor& w, const Conv2dArgs& a) {
  check_4d(op, "input", x);
  check_4d(op, "weight", w);
  check_same_dtype(op, "weight", x, w);
  for (int d = 0; d < 4; ++d)
    FASTCNN_CHECK(w.size(d) < kSizeLimit && x.size(d) < kSizeLimit, op, ": tensor sizes must be below 2^31");
  FASTCNN_CHECK(w.size(2) > 0 && w.size(3) > 0, op, ": expected a kernel of at least 1x1, but got weight of size ",
                str(w));
  FASTCNN_CHECK(w.size(0) % a.groups == 0 && w.size(0) > 0, op, ": Given groups=", a.groups,
                ", expected weight to be at least ", a.groups,
                " at dimension 0 and divisible by it, but got weight of size ", str(w));
  FASTCNN_CHECK(x.size(1) == w.size(1) * a.groups, op, ": Given groups=", a.groups, ", weight of size ", str(w),
                ", expected input", str(x), " to have ", w.size(1) * a.groups, " channels, but got ", x.size(1),
                " channels instead");
  // A window's rows and columns are counted in 32 bits; a padded image's bytes, twice over, in 64.
  const int64_t reach_h = (w.size(2) - 1) * a.dilation.h + 1, reach_w = (w.size(3) - 1) * a.dilation.w + 1;
  FASTCNN_CHECK(reach_h < kSizeLimit && reach_w < kSizeLimit && w.size(2) * w.size(3) < kSizeLimit, op,
                ": expected weight of size ", str(w), " with dilation (", a.dilation.h, ", ", a.dilation.w,
                ") to span fewer than 2^31 rows and columns");
  const int64_t padded_h = x.size(2) + 2 * a.padding.h, padded_w = x.size(3) + 2 * a.padding.w;
  FASTCNN_CHECK(__int128{x.size(1)} * padded_h * padded_w < __int128{1} << 56, op, ": input", str(x), " with padding (",
                a.padding.h, ", ", a.padding.w, "): its padded size overflows");
  ConvGeometry g{};
  g.groups = a.groups, g.group_in = w.size(1), g.group_out = w.size(0) / a.groups;
  g.kh = int32_t(w.size(2)), g.kw = int32_t(w.size(3));
  g.sh = int32_t(a.stride.h), g.sw = int32_t(a.stride.w), g.dh = int32_t(a.dilation.h), g.dw = int32_t(a.dilation.w);
  g.ph = int32_t(a.padding.h), g.pw = int32_t(a.padding.w);
  g.zh = g.zw = 1;
  return g;
}

// stride, padding and dilation (two each), groups and maybe a padding mode.
inline Conv2dArgs read_flat_args(const Ints& geometry, Padding& mode) {
  FASTCNN_CHECK(geometry.size() == 7 || geometry.size() == 8,
                "_conv2d: expected geometry to have 7 or 8 values, but got ", geometry.size());
  const int64_t given = geometry.size() == 8 ? geometry[7] : 0;
  FASTCNN_CHECK(given >= 0 && given <= 3, "_conv2d: expected a padding mode from 0 to 3, but got ", given);
  mode = Padding(given);
  const auto at = geometry.begin();
  return read_args("conv2d", {at, at + 2}, {at + 2, at + 4}, {at + 4, at + 6}, geometry[6]);
}

inline void check_accuracy(const char* op, int64_t accuracy) {
  FASTCNN_CHECK(accuracy >= 0 && accuracy <= 2, op, ": expected accuracy 0 (strict), 1 (default) or 2 (fast), but got ",
                accuracy);
}

inline int64_t conv_output_size(const char* op, int64_t in, int64_t k, int64_t s, int64_t p, int64_t d) {
  const int64_t window = d * (k - 1) + 1;
  FASTCNN_CHECK(in + 2 * p >= window, op, ": Calculated padded input size per channel: ", in + 2 * p,
                ". Kernel size: ", window, ". Kernel size can't be greater than actual input size");
  return (in + 2 * p - window) / s + 1;
}

// The size of y.
inline Ints conv_output(const char* op, const Tensor& x, const Tensor& w, const ConvGeometry& g) {
  return {x.size(0), w.size(0), conv_output_size(op, x.size(2), g.kh, g.sh, g.ph, g.dh),
          conv_output_size(op, x.size(3), g.kw, g.sw, g.pw, g.dw)};
}

// How far beyond the input a padding that repeats it may reach: torch's rule.
inline void check_reach(const char* op, const Tensor& x, const Conv2dArgs& a, Padding mode) {
  if (mode == Padding::zeros) return;
  const int64_t edge = mode == Padding::reflect ? 1 : 0;
  const bool inside = a.padding.h <= x.size(2) - edge && a.padding.w <= x.size(3) - edge;
  FASTCNN_CHECK(mode == Padding::replicate ? x.size(2) > 0 && x.size(3) > 0 : inside, op, ": Padding size should be ",
                edge ? "less than" : "at most", " the corresponding input dimension, but got padding (", a.padding.h,
                ", ", a.padding.w, ") for input", str(x));
}

inline void check_bias(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       bool packed) {
  if (!bias) return;
  FASTCNN_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), op, ": Given weight of size ", str(weight),
                ", expected bias to be 1-dimensional with ", weight.size(0), " elements, but got bias of size ",
                str(*bias));
  // Beside a packed weight, which is of the accumulator type, the bias may be, too.
  const ScalarType wide = accumulator_type(dtype_of(op, input));
  if (!packed || bias->scalar_type() != wide) check_same_dtype(op, "bias", input, *bias);
}

inline void check_residual(const char* op, const Tensor& input, const OptionalTensor& residual, const Ints& size) {
  if (!residual) return;
  check_same_dtype(op, "residual", input, *residual);
  bool same = residual->dim() == 4;
  for (int d = 0; same && d < 4; ++d) same = residual->size(d) == size[d];
  FASTCNN_CHECK(same, op, ": expected residual to have the output's size [", size[0], ", ", size[1], ", ", size[2],
                ", ", size[3], "], but got ", str(*residual));
}

inline void check_input_grad_args(const char* op, const Tensor& grad, const Tensor& weight, const Ints& size) {
  FASTCNN_CHECK(size.size() == 4, op, ": expected input_size to have 4 values, but got ", size.size());
  check_4d(op, "grad", grad);
  check_4d(op, "weight", weight);
  check_same_dtype(op, "weight", grad, weight);
  check_numel(op, size);
  for (const int64_t s : size) FASTCNN_CHECK(s >= 0, op, ": expected input_size of at least 0, but got ", s);
}

inline void check_weight_grad_args(const char* op, const Tensor& grad, const Tensor& input, const Ints& size) {
  FASTCNN_CHECK(size.size() == 4, op, ": expected weight_size to have 4 values, but got ", size.size());
  for (const int64_t n : size) FASTCNN_CHECK(n >= 0, op, ": expected weight_size of at least 0, but got ", n);
  check_4d(op, "grad", grad);
  check_4d(op, "input", input);
  check_same_dtype(op, "input", grad, input);
  check_numel(op, size);
}

// output: the size of the convolution's
inline void check_grad(const char* op, const Tensor& grad, const Ints& output) {
  bool same = true;
  for (int d = 0; d < 4; ++d) same = same && grad.size(d) == output[d];
  FASTCNN_CHECK(same, op, ": expected grad to have the size of the convolution's output, but got ", str(grad));
}

// The output's layout: channels_last where either is.
inline MemoryFormat conv_format(const Tensor& x, const Tensor& weight) {
  return is_channels_last(x) || is_channels_last(weight) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

}  // namespace fastcnn
