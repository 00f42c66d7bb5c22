// The plan of a convolution, for people: fastcnn.explain prints it.
#pragma once
#include <pybind11/pybind11.h>

#include <array>

#include "ops/conv2d.h"
#include "ops/parallel.h"

namespace fastcnn {

// x: n, c, h, w; weight: o, c/groups, kh, kw; geometry: stride, padding, dilation (two each), groups.
using Sizes = std::array<int64_t, 4>;
using Geometry = std::array<int64_t, 7>;

inline Conv2dParams conv2d_sizes(const Sizes& x, const Sizes& weight, const Geometry& geometry, Dtype dtype,
                                 bool channels_last) {
  const auto map = [&](int64_t n, int64_t c, int64_t h, int64_t w) {
    return channels_last ? Map{n, c, h, w, c * h * w, 1, w * c, c} : Map{n, c, h, w, c * h * w, h * w, w, 1};
  };
  const auto i32 = [](int64_t v) { return int32_t(v); };
  Conv2dParams p{};
  p.dtype = dtype;
  p.g = {geometry[6],
         weight[1],
         weight[0] / geometry[6],
         i32(weight[2]),
         i32(weight[3]),
         i32(geometry[0]),
         i32(geometry[1]),
         i32(geometry[2]),
         i32(geometry[3]),
         i32(geometry[4]),
         i32(geometry[5]),
         1,
         1,
         Padding::zeros};
  const auto out = [](int64_t in, int64_t k, int64_t s, int64_t p, int64_t d) {
    return (in + 2 * p - d * (k - 1) - 1) / s + 1;
  };
  p.xm = map(x[0], x[1], x[2], x[3]);
  p.ym = map(x[0], weight[0], out(x[2], weight[2], geometry[0], geometry[2], geometry[4]),
             out(x[3], weight[3], geometry[1], geometry[3], geometry[5]));
  return p;
}

inline Conv2dParams conv2d_params(const Sizes& x, const Sizes& weight, const Geometry& geometry, Dtype dtype,
                                  bool channels_last, int64_t accuracy, bool packed) {
  Conv2dParams p = conv2d_sizes(x, weight, geometry, dtype, channels_last);
  p.algorithm = choose_conv2d(p.g, p.ym, p.dtype, cpu_isa(), accuracy, packed);
  flatten_pixels(p);
  return p;
}

// Whether the call takes a weight packed for Winograd's kernel.
inline bool conv2d_is_winograd(const Sizes& x, const Sizes& weight, const Geometry& geometry, int64_t accuracy) {
  const bool valid = geometry[0] > 0 && geometry[1] > 0 && geometry[6] > 0;  // else the call will raise
  return valid &&
         conv2d_params(x, weight, geometry, Dtype::f32, true, accuracy, true).algorithm == ConvAlgorithm::winograd;
}

inline Dtype dtype_named(int element_size, bool is_double, bool is_bfloat16) {
  return is_double ? Dtype::f64 : is_bfloat16 ? Dtype::bf16 : element_size == 4 ? Dtype::f32 : Dtype::f16;
}

inline pybind11::dict explain_conv2d(const Sizes& x, const Sizes& weight, const Geometry& geometry, int element_size,
                                     bool is_double, bool is_bfloat16, bool channels_last, int64_t accuracy,
                                     bool packed) {
  const Dtype dtype = dtype_named(element_size, is_double, is_bfloat16);
  const Conv2dParams p = conv2d_params(x, weight, geometry, dtype, channels_last, accuracy, packed);
  const Conv2dPlan plan = plan_conv2d(p, cpu_isa(), num_threads());
  pybind11::dict d;
  d["algorithm"] = p.algorithm == ConvAlgorithm::lane_grouped  ? "lane_grouped"
                   : p.algorithm == ConvAlgorithm::direct_bf16 ? "direct_bf16"
                   : p.algorithm == ConvAlgorithm::winograd    ? "winograd"
                                                               : "direct";
  d["staged"] = plan.staged;
  d["one_row"] = p.ym.h == 1 && p.ym.n == 1 && x[0] * x[2] > 1;
  d["lanes"] = plan.lanes, d["panels"] = plan.panels, d["panels_per_task"] = plan.panels_per_task;
  d["rows"] = plan.rows, d["cols"] = plan.cols, d["tasks"] = plan.tasks;
  d["scratch_bytes"] = plan.scratch_stage * (is_double ? 8 : 4);
  return d;
}

}  // namespace fastcnn
