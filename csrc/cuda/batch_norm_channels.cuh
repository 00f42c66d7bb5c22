// What the batch normalization kernels share: the values of a channel, and vectors of elements with theirs.
#pragma once
#include <cmath>
#include <type_traits>

#include "cuda/batch_norm_relu.cuh"
#include "cuda/device.cuh"
#include "cuda/divisor.h"

namespace fastcnn::cuda {
namespace {

__device__ __forceinline__ double value_of(const ChannelValues& v, int64_t c) {
  if (!v.data) return v.missing;
  const int64_t at = c * v.stride;
  switch (v.dtype) {
    case Dtype::f32:
      return load(static_cast<const float*>(v.data) + at);
    case Dtype::f64:
      return load(static_cast<const double*>(v.data) + at);
    case Dtype::f16:
      return to_float(load(static_cast<const half_t*>(v.data) + at));
    case Dtype::bf16:
      break;
  }
  return to_float(load(static_cast<const bfloat16_t*>(v.data) + at));
}

// a * b + c, rounded once. Left to the compiler, forward might round the product and backward not, and then a gradient
// passes a ReLU that was closed.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }

// In double: factor and term round once.
template <class A>
__device__ __forceinline__ void store_affine(const BatchNormReluArgs& p, int64_t c, double mean, double var) {
  const double factor = value_of(p.weight, c) / ::sqrt(var + p.eps);
  store(static_cast<A*>(p.affine) + c, A(factor));
  store(static_cast<A*>(p.affine) + p.c + c, A(multiply_add(-mean, factor, value_of(p.bias, c))));
}

// A thread a channel.
template <class A>
__global__ void __launch_bounds__(kAffineThreads) find_affine(BatchNormReluArgs p) {
  const int64_t c = int64_t(blockIdx.x) * kAffineThreads + threadIdx.x;
  if (c < p.c) store_affine<A>(p, c, value_of(p.mean, c), value_of(p.var, c));
}

template <class A>
const char* start_affine(const BatchNormReluArgs& p, void* stream) {
  if (p.c > kMostBlocks) return "there are more than 2^31 channels";
  return launch<find_affine<A>>({dim3(unsigned(ceil_div(p.c, kAffineThreads))), dim3(kAffineThreads), 0, stream}, p);
}

// Images from `first` on, `vectors` of V elements: neighbouring channels (NHWC), or pixels of a plane (NCHW).
struct Elements {
  int64_t first, c;
  uint32_t vectors;
  Divisor by_run, by_channels;  // a run: the vectors of a pixel, or of a plane
};

// V neighbours, a multiple of V from the start of an allocation or of a row of channels in it.
template <int V, class A>
__device__ __forceinline__ void load_neighbours(const A* from, A (&to)[V]) {
  constexpr int kPart = V * sizeof(A) > 16 ? 16 / sizeof(A) : V;
#pragma unroll
  for (int k = 0; k < V; k += kPart) {
    const Vec<A, kPart> part = load(reinterpret_cast<const Vec<A, kPart>*>(from + k));
#pragma unroll
    for (int v = 0; v < kPart; ++v) to[k + v] = part.v[v];
  }
}

// The per-channel values of vector i.
template <int V, bool kNhwc, class A>
__device__ __forceinline__ void load_channels(const A* values, const Elements& e, uint32_t i, A (&to)[V]) {
  uint32_t c;
  if constexpr (kNhwc) {
    e.by_run.divide(i, c);
    load_neighbours(values + int64_t(c) * V, to);
  } else {
    e.by_channels.divide(e.by_run.divide(i), c);
    const A value = load(values + c);
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = value;
  }
}

// start(launch, elements) for as many images at a time as 31 bits count, kAhead vectors of V elements a thread.
template <int V, bool kNhwc, int kAhead, class Start>
const char* over_images(const BatchNormReluArgs& p, void* stream, const Start& start) {
  constexpr int64_t kBlock = kAffineThreads * kAhead, kMost = (int64_t{1} << 31) - kBlock;
  const int64_t size = p.c * p.pixels, an_image = size / V, at_once = kMost / an_image;
  if (at_once == 0) return "an image is too large for one grid";
  Elements e{0, p.c, 0, Divisor((kNhwc ? p.c : p.pixels) / V), Divisor(p.c)};
  for (int64_t n = 0; n < p.n; n += at_once) {
    e.first = n * size, e.vectors = uint32_t((p.n - n < at_once ? p.n - n : at_once) * an_image);
    const Launch l{dim3(unsigned(ceil_div(e.vectors, kBlock))), dim3(kAffineThreads), 0, stream};
    if (const char* error = start(l, e)) return error;
  }
  return nullptr;
}

// f(element, vector, layout) for p's type, its layout as std::bool_constant (NHWC?), and vectors of 16 bytes or, where
// the tensors do not consist of them, single elements.
template <class F>
const char* with_layout(const BatchNormReluArgs& p, bool all_aligned, const F& f) {
  if (p.c > kMostBlocks) return "there are more than 2^31 channels";
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    constexpr int V = 16 / sizeof(element);
    const bool nhwc = p.channels_last && p.c > 1, vectors = all_aligned && (nhwc ? p.c : p.pixels) % V == 0;
    const auto of_layout = [&](auto layout) {
      error = vectors ? f(element, std::integral_constant<int, V>{}, layout)
                      : f(element, std::integral_constant<int, 1>{}, layout);
    };
    nhwc ? of_layout(std::true_type{}) : of_layout(std::false_type{});
  });
  return error;
}

}  // namespace
}  // namespace fastcnn::cuda
