// Which CUDA kernel a convolution would start, by the functions that choose it at the launch. Needs neither CUDA nor a
// GPU.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "cuda/conv2d_dispatch.h"
#include "engine/explain.h"

namespace fastcnn {

struct KernelText {
  const char* name;
  const char* why;
};

// No default: a new kernel without a text is a warning of the compiler's.
inline KernelText text_of(cuda::ConvKernel kernel) {
  switch (kernel) {
    case cuda::ConvKernel::direct:
      return {"direct", "takes any geometry, type and layout: sums in registers, tensors read by their strides"};
    case cuda::ConvKernel::grouped:
      return {"grouped", "few channels per group: a tile of the input and its border in shared memory serves all taps"};
    case cuda::ConvKernel::grouped_mma:
      return {"grouped_mma", "8 or 16 channels per group: a halo tile in shared memory, products on tensor cores"};
    case cuda::ConvKernel::first_ffma:
      return {"first_ffma", "few input channels: the image's part stays in shared memory, fused multiply-adds"};
    case cuda::ConvKernel::first_mma:
      return {"first_mma", "few input channels: the image's part stays in shared memory, products on tensor cores"};
    case cuda::ConvKernel::ffma:
      return {"ffma", "a matrix product of pixels and output channels by fused multiply-adds, in exact float32"};
    case cuda::ConvKernel::mma:
      return {"mma", "a matrix product of pixels and output channels on tensor cores (mma.sync)"};
  }
  return {"unknown", ""};
}

inline const char* text_of(cuda::GemmTile tile) {
  switch (tile) {
    case cuda::GemmTile::k128x128:
      return "128 pixels x 128 output channels";
    case cuda::GemmTile::k128x64:
      return "128 pixels x 64 output channels";
    case cuda::GemmTile::k64x64:
      return "64 pixels x 64 output channels";
  }
  return "";
}

inline const char* text_of(cuda::MmaTile tile) {
  switch (tile) {
    case cuda::MmaTile::k128x192:
      return "128 pixels x 192 output channels";
    case cuda::MmaTile::k128x128:
      return "128 pixels x 128 output channels";
    case cuda::MmaTile::k128x64:
      return "128 pixels x 64 output channels";
    case cuda::MmaTile::k64x64:
      return "64 pixels x 64 output channels";
  }
  return "";
}

inline std::string tile_text(cuda::ConvKernel kernel, const Conv2dParams& p) {
  const int64_t pixels = p.ym.n * p.ym.h * p.ym.w;
  if (kernel == cuda::ConvKernel::ffma) return text_of(cuda::gemm_tile(pixels, p.g.group_out, p.g.groups));
  if (kernel == cuda::ConvKernel::mma) return text_of(cuda::mma_tile(pixels, p.g.group_out, p.g.groups));
  if (kernel != cuda::ConvKernel::grouped) return "";
  const cuda::GroupedTile t = cuda::grouped_tile(p.g, p.ym.h, p.ym.w, p.dtype);
  const auto s = [](int64_t n) { return std::to_string(n); };
  return s(t.rows) + "x" + s(t.columns) + " pixels x " + s(int64_t{t.chunks} * 16 / size_of(p.dtype)) + " channels";
}

// x, weight: of the convolution, or, transposed, of the one whose input gradient it is: x then is the output.
// channels_last: input and output both are.
inline pybind11::dict explain_cuda_conv2d(const Sizes& x, const Sizes& weight, const Geometry& geometry,
                                          int element_size, bool is_double, bool is_bfloat16, bool channels_last,
                                          bool transposed, bool tf32) {
  const Dtype dtype = dtype_named(element_size, is_double, is_bfloat16);
  Conv2dParams p = conv2d_sizes(x, weight, geometry, dtype, channels_last);
  if (transposed) std::swap(p.g.group_in, p.g.group_out), p.ym = p.xm;
  const auto choose = [&](Dtype type, bool last, bool round) {
    return (transposed ? cuda::choose_adjoint_kernel : cuda::choose_forward)(p.g, type, p.ym.h, p.ym.w, last, round);
  };
  const cuda::ConvKernel kernel = choose(dtype, channels_last, tf32);
  std::vector<std::pair<std::string, std::string>> others;
  const auto consider = [&](const char* condition, cuda::ConvKernel other) {
    if (other != kernel) others.emplace_back(text_of(other).name, condition);
  };
  if (!channels_last) consider("of channels_last tensors", choose(dtype, true, tf32));
  if (size_of(dtype) != 2) consider("in float16 and bfloat16", choose(Dtype::f16, channels_last, false));
  if (dtype == Dtype::f32 && !tf32 && !transposed)
    consider("where torch allows TF32", choose(dtype, channels_last, true));
  pybind11::dict d;
  // The gradient of a strided convolution is one product a phase of the stride, each of which has a tile of its own.
  const bool phases = transposed && (p.g.sh > 1 || p.g.sw > 1);
  d["kernel"] = text_of(kernel).name, d["why"] = text_of(kernel).why, d["tile"] = phases ? "" : tile_text(kernel, p);
  d["copies"] = cuda::reads_nhwc(kernel, dtype, channels_last) && !channels_last;
  d["others"] = others;
  return d;
}

}  // namespace fastcnn
