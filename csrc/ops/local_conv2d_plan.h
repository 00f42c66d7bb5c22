// Locally connected convolution's arguments, checked: what the CPU's and the CUDA op share.
#pragma once
#include "ops/local_conv2d.h"
#include "ops/tensor.h"

namespace fastcnn {

inline int64_t local_output(const char* op, int64_t in, int64_t k, int64_t s, int64_t p, int64_t d) {
  const int64_t window = d * (k - 1) + 1;
  FASTCNN_CHECK(in + 2 * p >= window, op, ": Calculated padded input size per channel: ", in + 2 * p,
                ". Kernel size: ", window, ". Kernel size can't be greater than actual input size");
  return (in + 2 * p - window) / s + 1;
}

// x: the size of the input; kernel: channels, height, width.
inline LocalConv2dParams local_geometry(const char* op, const Ints& x, const Tensor& like, int64_t outputs,
                                        const Ints& kernel, const Ints& stride, const Ints& padding,
                                        const Ints& dilation) {
  FASTCNN_CHECK(x.size() == 4, op, ": expected 4D input (N, C, H, W), but got ", x.size(), "D");
  FASTCNN_CHECK(kernel.size() == 3, op, ": expected kernel to have 3 values, but got ", kernel.size());
  const Pair s = pair(op, "stride", stride, 1), pad = pair(op, "padding", padding, 0),
             d = pair(op, "dilation", dilation, 1), k = pair(op, "kernel_size", {kernel[1], kernel[2]}, 1);
  for (const int64_t size : x)
    FASTCNN_CHECK(size >= 0 && size < kSizeLimit, op, ": expected input sizes from 0 to 2^31, but got ", size);
  FASTCNN_CHECK(kernel[0] == x[1], op, ": expected input to have ", kernel[0], " channels, but got ", x[1],
                " channels instead");
  LocalConv2dParams p{};
  p.dtype = dtype_of(op, like);
  p.kh = k.h, p.kw = k.w, p.sh = s.h, p.sw = s.w, p.ph = pad.h, p.pw = pad.w, p.dilation_h = d.h, p.dilation_w = d.w;
  p.xm = {x[0], x[1], x[2], x[3], 0, 0, 0, 0};
  p.ym = {
      x[0], outputs, local_output(op, x[2], k.h, s.h, pad.h, d.h), local_output(op, x[3], k.w, s.w, pad.w, d.w), 0, 0,
      0,    0};
  check_numel(op, {std::max<int64_t>(1, x[0]), x[1], std::max<int64_t>(1, x[2]), std::max<int64_t>(1, x[3])});
  check_numel(op, {p.ym.h, p.ym.w, outputs, std::max<int64_t>(1, x[0])});
  check_numel(op, {p.ym.h, p.ym.w, std::max<int64_t>(1, outputs), x[1], k.h, k.w});
  return p;
}

// Of a weight [p][q][o][c][i][j].
inline LocalConv2dParams local_geometry(const char* op, const Ints& x, const Tensor& like, const Tensor& w,
                                        const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_same_dtype(op, "weight", like, w);
  FASTCNN_CHECK(w.dim() == 6, op,
                ": expected 6D weight (output height, output width, output channels, input channels, kernel height, "
                "kernel width), but got weight of size ",
                str(w));
  const LocalConv2dParams p =
      local_geometry(op, x, like, w.size(2), {w.size(3), w.size(4), w.size(5)}, stride, padding, dilation);
  FASTCNN_CHECK(w.size(0) == p.ym.h && w.size(1) == p.ym.w, op, ": expected weight of size [", p.ym.h, ", ", p.ym.w,
                ", ...], one filter an output position, but got weight of size ", str(w));
  return p;
}

inline void check_local_grad(const char* op, const Tensor& g, const LocalConv2dParams& p) {
  FASTCNN_CHECK(
      g.dim() == 4 && g.size(0) == p.ym.n && g.size(1) == p.ym.c && g.size(2) == p.ym.h && g.size(3) == p.ym.w, op,
      ": expected grad of size [", p.ym.n, ", ", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got grad of size ",
      str(g));
}

inline Tensor local_bias(const char* op, const Tensor& like, const Tensor& bias, const LocalConv2dParams& p) {
  check_same_dtype(op, "bias", like, bias);
  FASTCNN_CHECK(bias.dim() == 3 && bias.size(0) == p.ym.c && bias.size(1) == p.ym.h && bias.size(2) == p.ym.w, op,
                ": expected bias of size [", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got bias of size ", str(bias));
  return made_dense(bias);
}

}  // namespace fastcnn
