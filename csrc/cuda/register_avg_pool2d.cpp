#include "cuda/avg_pool2d.cuh"
#include "cuda/registration.h"
#include "ops/avg_pool2d_plan.h"

namespace fastcnn {
namespace {

using cuda::AvgPool2dArgs;
using cuda::AvgPoolAxis;

// What differs between the two ops.
struct Windows2d {
  AvgPoolAxis rows, columns;
  bool count_include_pad;
  double divisor;
};

constexpr const char* kAvg = "avg_pool2d";
constexpr const char* kAdaptive = "adaptive_avg_pool2d";

Windows2d avg_windows(int64_t h, int64_t w, const Ints& kernel, const Ints& stride, const Ints& padding, bool ceil_mode,
                      bool count_include_pad, std::optional<int64_t> divisor_override) {
  const auto [g, out] = avg_geometry(kAvg, h, w, kernel, stride, padding, ceil_mode, divisor_override);
  return {{h, out.h, g.k.h, g.s.h, g.p.h},
          {w, out.w, g.k.w, g.s.w, g.p.w},
          count_include_pad,
          double(divisor_override.value_or(0))};
}

Windows2d adaptive_windows(int64_t h, int64_t w, Pair out) {
  // where the sizes divide, windows of one size
  const auto axis = [](int64_t in, int64_t out) {
    const int64_t k = out > 0 && in % out == 0 ? in / out : 0;
    return AvgPoolAxis{in, out, k, k, 0};
  };
  return {axis(h, out.h), axis(w, out.w), false, 0};
}

// y is empty, as large and laid out as the result.
Tensor run(const char* op, const Tensor& x, Tensor y, const Windows2d& windows, bool channels_last, bool backward) {
  AvgPool2dArgs a{};
  a.x = x.const_data_ptr(), a.y = y.mutable_data_ptr(), a.dtype = dtype_of(op, x);
  a.channels_last = channels_last && x.size(1) > 1, a.backward = backward;
  a.count_include_pad = windows.count_include_pad, a.divisor = windows.divisor;
  a.n = x.size(0), a.c = x.size(1), a.rows = windows.rows, a.columns = windows.columns;
  launched(op, x, [&](void* stream) { return cuda::avg_pool2d(a, stream); });
  return y;
}

Tensor forward(const char* op, const Tensor& input, const Windows2d& windows) {
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Ints size{x.size(0), x.size(1), windows.rows.out, windows.columns.out};
  check_numel(op, size);
  const Tensor y = empty(size, x, format);
  return y.numel() ? run(op, x, y, windows, format == MemoryFormat::ChannelsLast, false) : y;
}

Tensor backward(const char* op, const Tensor& grad, const Ints& size, bool channels_last, const Windows2d& windows) {
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor g = torch::stable::contiguous(grad, format);
  check_numel(op, size);
  Tensor gx = empty(size, g, format);
  if (!gx.numel()) return gx;
  if (!g.numel()) return torch::stable::fill_(gx, 0.0);
  return run(op, g, gx, windows, channels_last, true);
}

Tensor avg_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding, bool ceil_mode,
                  bool count_include_pad, std::optional<int64_t> divisor_override) {
  dtype_of(kAvg, x);
  pool_geometry(kAvg, kernel, stride, padding, {1, 1});
  check_pool_input(kAvg, x);
  return forward(
      kAvg, x,
      avg_windows(x.size(2), x.size(3), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override));
}

Tensor avg_pool2d_backward(const Tensor& grad, const Ints& size, bool channels_last, const Ints& kernel,
                           const Ints& stride, const Ints& padding, bool ceil_mode, bool count_include_pad,
                           std::optional<int64_t> divisor_override) {
  dtype_of(kAvg, grad);
  check_pool_size(kAvg, size);
  const Windows2d windows =
      avg_windows(size[2], size[3], kernel, stride, padding, ceil_mode, count_include_pad, divisor_override);
  check_avg_grad(kAvg, grad, size, {windows.rows.out, windows.columns.out});
  return backward(kAvg, grad, size, channels_last, windows);
}

Tensor adaptive_avg_pool2d(const Tensor& x, const Ints& output_size) {
  const Pair out = adaptive_output(kAdaptive, output_size);
  check_adaptive_input(kAdaptive, x, out);
  return forward(kAdaptive, x, adaptive_windows(x.size(2), x.size(3), out));
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad, const Ints& size, bool channels_last, const Ints& output_size) {
  const Pair out = adaptive_output(kAdaptive, output_size);
  dtype_of(kAdaptive, grad);
  check_pool_size(kAdaptive, size);
  check_avg_grad(kAdaptive, grad, size, out);
  return backward(kAdaptive, grad, size, channels_last, adaptive_windows(size[2], size[3], out));
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("avg_pool2d", TORCH_BOX(&fastcnn::avg_pool2d));
  m.impl("_avg_pool2d", TORCH_BOX(&fastcnn::avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_BOX(&fastcnn::avg_pool2d_backward));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&fastcnn::adaptive_avg_pool2d));
  m.impl("_adaptive_avg_pool2d", TORCH_BOX(&fastcnn::adaptive_avg_pool2d));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&fastcnn::adaptive_avg_pool2d_backward));
}
