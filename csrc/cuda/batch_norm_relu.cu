#include <cmath>

#include "cuda/batch_norm_relu.cuh"
#include "cuda/device.cuh"
#include "cuda/divisor.h"
#include "cuda/tiles.h"

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

// A thread a channel, in double: factor and term round once.
template <class A>
__global__ void __launch_bounds__(kAffineThreads) find_affine(BatchNormReluArgs p) {
  const int64_t c = int64_t(blockIdx.x) * kAffineThreads + threadIdx.x;
  if (c >= p.c) return;
  const double factor = value_of(p.weight, c) / ::sqrt(value_of(p.var, c) + p.eps);
  store(static_cast<A*>(p.affine) + c, A(factor));
  store(static_cast<A*>(p.affine) + p.c + c, A(value_of(p.bias, c) - value_of(p.mean, c) * factor));
}

// V values for the channels from c on.
template <int V, class A>
__device__ __forceinline__ void load_channels(const A* from, A (&to)[V]) {
  constexpr int kPart = V * sizeof(A) > 16 ? 16 / sizeof(A) : V;
#pragma unroll
  for (int i = 0; i < V; i += kPart) {
    const Vec<A, kPart> part = load(reinterpret_cast<const Vec<A, kPart>*>(from + i));
#pragma unroll
    for (int v = 0; v < kPart; ++v) to[i + v] = part.v[v];
  }
}

// Images from `first` on, `vectors` of V elements: neighbouring channels (NHWC), or pixels of a plane (NCHW).
template <class T, int V, bool kNhwc>
__global__ void __launch_bounds__(kAffineThreads)
    normalize(BatchNormReluArgs p, int64_t first, uint32_t vectors, Divisor by_run, Divisor by_channels) {
  using A = Acc<T>;
  const uint32_t start = blockIdx.x * kAffineThreads * kAffineAhead + threadIdx.x;
  const Vec<T, V>* x = reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(p.x) + first);
  Vec<T, V>* y = reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + first);
  const A* affine = static_cast<const A*>(p.affine);
  Vec<T, V> in[kAffineAhead];
#pragma unroll
  for (int u = 0; u < kAffineAhead; ++u)
    in[u] = load_if(start + u * kAffineThreads < vectors, x + start + u * kAffineThreads);
#pragma unroll
  for (int u = 0; u < kAffineAhead; ++u) {
    const uint32_t i = start + u * kAffineThreads;
    if (i >= vectors) break;
    uint32_t c;
    A factor[V], term[V];
    if constexpr (kNhwc) {
      by_run.divide(i, c);  // a run: the vectors of a pixel
      load_channels(affine + int64_t(c) * V, factor);
      load_channels(affine + p.c + int64_t(c) * V, term);
    } else {
      by_channels.divide(by_run.divide(i), c);  // a run: the vectors of a plane
      const A f = load(affine + c), t = load(affine + p.c + c);
#pragma unroll
      for (int v = 0; v < V; ++v) factor[v] = f, term[v] = t;
    }
    Vec<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A value = to_acc(in[u].v[v]) * factor[v] + term[v];
      out.v[v] = from_acc<T>(p.relu && value < 0 ? A(0) : value);  // a NaN stays
    }
    store(y + i, out);
  }
}

template <class T, int V, bool kNhwc>
const char* run(const BatchNormReluArgs& p, void* stream) {
  constexpr int64_t kBlock = kAffineThreads * kAffineAhead, kMost = (int64_t{1} << 31) - kBlock;
  const int64_t size = p.c * p.pixels, an_image = size / V, at_once = kMost / an_image;
  if (at_once == 0) return "an image is too large for one grid";
  const Divisor by_run((kNhwc ? p.c : p.pixels) / V), by_channels(p.c);
  for (int64_t n = 0; n < p.n; n += at_once) {
    const int64_t vectors = (p.n - n < at_once ? p.n - n : at_once) * an_image;
    const Launch l{dim3(unsigned(ceil_div(vectors, kBlock))), dim3(kAffineThreads), 0, stream};
    if (const char* error = launch<normalize<T, V, kNhwc>>(l, p, n * size, uint32_t(vectors), by_run, by_channels))
      return error;
  }
  return nullptr;
}

}  // namespace

const char* batch_norm_relu(const BatchNormReluArgs& p, void* stream) {
  const Launch channels{dim3(unsigned(ceil_div(p.c, kAffineThreads))), dim3(kAffineThreads), 0, stream};
  const char* error = p.c > kMostBlocks ? "there are more than 2^31 channels" : nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / sizeof(T);
    if (!error) error = launch<find_affine<Acc<T>>>(channels, p);
    if (error) return;
    const bool nhwc = p.channels_last && p.c > 1;
    const bool vectors = (nhwc ? p.c : p.pixels) % V == 0 && aligned(p.x, 16) && aligned(p.y, 16);
    if (nhwc)
      error = vectors ? run<T, V, true>(p, stream) : run<T, 1, true>(p, stream);
    else
      error = vectors ? run<T, V, false>(p, stream) : run<T, 1, false>(p, stream);
  });
  return error;
}

}  // namespace fastcnn::cuda
