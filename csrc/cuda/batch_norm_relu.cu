#include "cuda/batch_norm_channels.cuh"

namespace fastcnn::cuda {
namespace {

template <class T, int V, bool kNhwc, bool kResidual>
__global__ void __launch_bounds__(kAffineThreads) normalize(BatchNormReluArgs p, Elements e) {
  using A = Acc<T>;
  using Vector = Vec<T, V>;
  const uint32_t start = blockIdx.x * kAffineThreads * kAffineAhead + threadIdx.x;
  const Vector* x = reinterpret_cast<const Vector*>(static_cast<const T*>(p.x) + e.first);
  const Vector* residual = reinterpret_cast<const Vector*>(static_cast<const T*>(p.residual) + e.first);
  Vector* y = reinterpret_cast<Vector*>(static_cast<T*>(p.y) + e.first);
  const A* affine = static_cast<const A*>(p.affine);
  Vector in[kAffineAhead], more[kAffineAhead];
#pragma unroll
  for (int u = 0; u < kAffineAhead; ++u) {
    const uint32_t i = start + u * kAffineThreads;
    in[u] = load_if(i < e.vectors, x + i);
    if constexpr (kResidual) more[u] = load_if(i < e.vectors, residual + i);
  }
#pragma unroll
  for (int u = 0; u < kAffineAhead; ++u) {
    const uint32_t i = start + u * kAffineThreads;
    if (i >= e.vectors) break;
    A factor[V], term[V];
    load_channels<V, kNhwc>(affine, e, i, factor);
    load_channels<V, kNhwc>(affine + e.c, e, i, term);
    Vector out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A value = multiply_add(to_acc(in[u].v[v]), factor[v], term[v]);
      if constexpr (kResidual) value += to_acc(more[u].v[v]);
      out.v[v] = from_acc<T>(p.relu && value < 0 ? A(0) : value);  // a NaN stays
    }
    store(y + i, out);
  }
}

}  // namespace

const char* batch_norm_relu_by_affine(const BatchNormReluArgs& p, void* stream) {
  const bool all_aligned = aligned(p.x, 16) && aligned(p.residual, 16) && aligned(p.y, 16);
  return with_layout(p, all_aligned, [&](auto element, auto vector, auto layout) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    constexpr bool kNhwc = decltype(layout)::value;
    return over_images<V, kNhwc, kAffineAhead>(p, stream, [&](const Launch& l, const Elements& e) {
      return p.residual ? launch<normalize<T, V, kNhwc, true>>(l, p, e)
                        : launch<normalize<T, V, kNhwc, false>>(l, p, e);
    });
  });
}

const char* batch_norm_relu(const BatchNormReluArgs& p, void* stream) {
  const char* error = p.dtype == Dtype::f64 ? start_affine<double>(p, stream) : start_affine<float>(p, stream);
  return error ? error : batch_norm_relu_by_affine(p, stream);
}

}  // namespace fastcnn::cuda
