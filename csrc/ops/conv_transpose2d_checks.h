// The arguments of conv_transpose2d, checked; the CPU's and the GPU's op share them.
#pragma once
#include "ops/conv2d_args.h"

namespace fastcnn {

constexpr const char* kConvTranspose2d = "conv_transpose2d";

// (in-1)*s - 2*p + d*(k-1) + output_padding + 1; at least 1 and below 2^31, as conv2d's sizes are.
inline Pair conv_transpose_output_size(const Tensor& x, const Tensor& w, const Conv2dArgs& a, const Pair& extra) {
  const auto along = [&](int d, int64_t s, int64_t p, int64_t dilation, int64_t more) {
    return __int128{x.size(d) - 1} * s - 2 * p + __int128{dilation} * (w.size(d) - 1) + more + 1;
  };
  const __int128 h = along(2, a.stride.h, a.padding.h, a.dilation.h, extra.h);
  const __int128 v = along(3, a.stride.w, a.padding.w, a.dilation.w, extra.w);
  FASTCNN_CHECK(h < kSizeLimit && v < kSizeLimit, kConvTranspose2d, ": Given input size per channel: (", x.size(2),
                " x ", x.size(3), "). The output size overflows: expected fewer than 2^31 rows and columns");
  FASTCNN_CHECK(h > 0 && v > 0, kConvTranspose2d, ": Given input size per channel: (", x.size(2), " x ", x.size(3),
                "). Calculated output size per channel: (", int64_t(h), " x ", int64_t(v),
                "). Output size is too small");
  return {int64_t(h), int64_t(v)};
}

inline void check_conv_transpose(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t groups) {
  check_4d(kConvTranspose2d, "input", x);
  check_4d(kConvTranspose2d, "weight", w);
  check_same_dtype(kConvTranspose2d, "weight", x, w);
  FASTCNN_CHECK(w.size(0) >= groups && w.size(0) % groups == 0, kConvTranspose2d, ": Given groups=", groups,
                ", expected weight to be at least ", groups,
                " at dimension 0 and divisible by it, but got weight of size ", str(w));
  FASTCNN_CHECK(w.size(1) > 0 && w.size(2) > 0 && w.size(3) > 0, kConvTranspose2d, ": expected a non-empty weight (",
                w.size(0), ", output channels per group, kernel height, kernel width), but got weight of size ",
                str(w));
  FASTCNN_CHECK(x.size(1) == w.size(0), kConvTranspose2d, ": Given transposed=1, weight of size ", str(w),
                ", expected input", str(x), " to have ", w.size(0), " channels, but got ", x.size(1),
                " channels instead");
  FASTCNN_CHECK(x.size(2) > 0 && x.size(3) > 0, kConvTranspose2d,
                ": Only zero batch or zero channel inputs are supported, but got input shape: ", str(x));
  FASTCNN_CHECK(x.size(2) < kSizeLimit && x.size(3) < kSizeLimit && groups < kSizeLimit && w.size(1) < kSizeLimit,
                kConvTranspose2d, ": tensor sizes must be below 2^31");
  if (!bias) return;
  check_same_dtype(kConvTranspose2d, "bias", x, *bias);
  FASTCNN_CHECK(bias->dim() == 1 && bias->size(0) == w.size(1) * groups, kConvTranspose2d,
                ": Given transposed=1, weight of size ", str(w), ", expected bias to be 1-dimensional with ",
                w.size(1) * groups, " elements, but got bias of size ", str(*bias));
}

// The output's size, and a.
inline Ints conv_transpose_output(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  const Ints& stride, const Ints& padding, const Ints& output_padding,
                                  const Ints& dilation, int64_t groups, Conv2dArgs& a) {
  dtype_of(kConvTranspose2d, x);
  a = read_args(kConvTranspose2d, stride, padding, dilation, groups);
  for (const int64_t extra : output_padding)
    FASTCNN_CHECK(extra >= 0, kConvTranspose2d,
                  ": negative output_padding is not supported, but got output_padding with ", extra);
  const Pair extra = pair(kConvTranspose2d, "output_padding", output_padding, 0);
  check_conv_transpose(x, weight, bias, groups);
  FASTCNN_CHECK((extra.h < a.stride.h || extra.h < a.dilation.h) && (extra.w < a.stride.w || extra.w < a.dilation.w),
                kConvTranspose2d,
                ": output padding must be smaller than either stride or dilation, but got output_padding (", extra.h,
                ", ", extra.w, "), stride (", a.stride.h, ", ", a.stride.w, ") and dilation (", a.dilation.h, ", ",
                a.dilation.w, ")");
  const Pair out = conv_transpose_output_size(x, weight, a, extra);
  const Ints size{x.size(0), weight.size(1) * groups, out.h, out.w};
  check_numel(kConvTranspose2d, size);
  return size;
}

}  // namespace fastcnn
