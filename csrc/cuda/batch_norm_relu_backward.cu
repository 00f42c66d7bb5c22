// Gradients of batch normalization with residual and ReLU, in two passes: the sums S and Q of every channel, then dx.
// Where the ReLU was open is found from its input, recomputed, or from y.
#include "cuda/batch_norm_slots.cuh"

namespace fastcnn::cuda {
namespace {

using Grad = BatchNormReluGrad;

// The gradient behind the activation: zero where ReLU let nothing through.
template <class T>
__device__ __forceinline__ Acc<T> through(const Grad& p, T grad, T x, T y, Acc<T> factor, Acc<T> term) {
  if (!p.norm.relu) return to_acc(grad);
  const Acc<T> out = p.out ? to_acc(y) : multiply_add(to_acc(x), factor, term);
  return out <= 0 ? Acc<T>(0) : to_acc(grad);
}

// The slots' sums of g, and of g (x - mean).
template <class T, int V, bool kNhwc>
__global__ void __launch_bounds__(kAffineThreads, 2) slot_gradients(Grad p, SlotCut cut) {
  using A = Acc<T>;
  using Share = SlotShare<T, V, kNhwc>;
  constexpr int kChannels = Share::kChannels;
  const Share share(cut);
  const BatchNormReluArgs& norm = p.norm;
  A factor[kChannels] = {}, term[kChannels] = {}, mean[kChannels] = {};
  if (share.exists) {
    const A* affine = static_cast<const A*>(norm.affine) + share.channel;
    load_neighbours(affine, factor);
    load_neighbours(affine + cut.c, term);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) mean[v] = A(value_of(norm.mean, share.channel + v));
  }
  A sum[2 * kChannels] = {};
  constexpr int kAhead = Share::kVectors / 4;
#pragma unroll 1
  for (int u0 = 0; u0 < Share::kVectors * cut.turns; u0 += kAhead) {
    Vec<T, V> grad[kAhead], x[kAhead], y[kAhead] = {};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      grad[u] = share.vector(p.grad, u0 + u), x[u] = share.vector(norm.x, u0 + u);
      if (p.out) y[u] = share.vector(p.out, u0 + u);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (!share.holds(u0 + u)) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int c = v % kChannels;
        const A g = through<T>(p, grad[u].v[v], x[u].v[v], y[u].v[v], factor[c], term[c]);
        sum[c] += g, sum[kChannels + c] += g * (to_acc(x[u].v[v]) - mean[c]);
      }
    }
  }
  share.total(sum);
  if (!share.first) return;
  A* out = static_cast<A*>(p.sums) + share.channel * cut.slots.count + share.slot;
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    store(out + v * cut.slots.count, sum[v]);
    store(out + (cut.c + v) * cut.slots.count, sum[kChannels + v]);
  }
}

// dx = g * affine[0] + x * affine[2] + affine[3]
template <class A>
__global__ void __launch_bounds__(kStatisticsThreads) channel_gradients(Grad p, int slots) {
  FASTCNN_SHARED(double, memory);
  const BatchNormReluArgs& norm = p.norm;
  const int64_t c = blockIdx.x;
  const A* sums = static_cast<const A*>(p.sums) + c * slots;
  double total[2] = {};
  for (int slot = threadIdx.x; slot < slots; slot += kStatisticsThreads)
    total[0] += load(sums + slot), total[1] += load(sums + norm.c * slots + slot);
  total_of_block(memory, total);
  if (threadIdx.x) return;
  const double count = double(norm.n * norm.pixels), invvar = 1 / (value_of(norm.var, c) + norm.eps);
  const double invstd = ::sqrt(invvar), factor = value_of(norm.weight, c) * invstd;
  const double of_x = -factor * invvar * total[1] / count;
  A* affine = static_cast<A*>(norm.affine) + c;
  store(affine + 2 * norm.c, A(of_x));
  store(affine + 3 * norm.c, A(-factor * total[0] / count - of_x * value_of(norm.mean, c)));
  store(static_cast<A*>(p.dbias) + c, A(total[0]));
  store(static_cast<A*>(p.dweight) + c, A(total[1] * invstd));
}

template <class T, int V, bool kNhwc>
__global__ void __launch_bounds__(kAffineThreads, 2) input_gradients(Grad p, Elements e) {
  using A = Acc<T>;
  using Vector = Vec<T, V>;
  const BatchNormReluArgs& norm = p.norm;
  const uint32_t start = blockIdx.x * kAffineThreads * kGradAhead + threadIdx.x;
  const auto vectors = [&](const void* t) {
    return reinterpret_cast<const Vector*>(static_cast<const T*>(t) + e.first);
  };
  const A* affine = static_cast<const A*>(norm.affine);
  Vector grad[kGradAhead], x[kGradAhead], y[kGradAhead] = {};
#pragma unroll
  for (int u = 0; u < kGradAhead; ++u) {
    const uint32_t i = start + u * kAffineThreads;
    grad[u] = load_if(i < e.vectors, vectors(p.grad) + i), x[u] = load_if(i < e.vectors, vectors(norm.x) + i);
    if (p.out) y[u] = load_if(i < e.vectors, vectors(p.out) + i);
  }
#pragma unroll
  for (int u = 0; u < kGradAhead; ++u) {
    const uint32_t i = start + u * kAffineThreads;
    if (i >= e.vectors) break;
    A factor[V], term[V], of_x[V], constant[V];
    load_channels<V, kNhwc>(affine, e, i, factor);
    load_channels<V, kNhwc>(affine + e.c, e, i, term);
    load_channels<V, kNhwc>(affine + 2 * e.c, e, i, of_x);
    load_channels<V, kNhwc>(affine + 3 * e.c, e, i, constant);
    Vector dx, masked;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A g = through<T>(p, grad[u].v[v], x[u].v[v], y[u].v[v], factor[v], term[v]);
      dx.v[v] = from_acc<T>(multiply_add(g, factor[v], multiply_add(to_acc(x[u].v[v]), of_x[v], constant[v])));
      masked.v[v] = from_acc<T>(g);
    }
    store(reinterpret_cast<Vector*>(static_cast<T*>(p.dx) + e.first) + i, dx);
    if (p.masked) store(reinterpret_cast<Vector*>(static_cast<T*>(p.masked) + e.first) + i, masked);
  }
}

// f(element, vector, layout, cut)
template <class F>
const char* with_cut(const Grad& p, const F& f) {
  bool all_aligned = true;
  for (const void* t : {p.grad, p.norm.x, p.out, static_cast<const void*>(p.dx), static_cast<const void*>(p.masked)})
    all_aligned = all_aligned && aligned(t, 16);
  return with_layout(p.norm, all_aligned, [&](auto element, auto vector, auto layout) {
    return f(element, vector, layout, SlotCut(p.norm, decltype(layout)::value, decltype(vector)::value, 4));
  });
}

}  // namespace

ChannelSlots gradient_slots(const Grad& p) {
  ChannelSlots slots{};
  with_cut(p, [&](auto, auto, auto, const SlotCut& cut) {
    slots = cut.slots;
    return nullptr;
  });
  return slots;
}

const char* batch_norm_relu_backward(const Grad& p, void* stream) {
  return with_cut(p, [&](auto element, auto vector, auto layout, const SlotCut& cut) -> const char* {
    using T = decltype(element);
    using A = Acc<T>;
    constexpr int V = decltype(vector)::value;
    constexpr bool kNhwc = decltype(layout)::value;
    if (const char* error = cut.refused()) return error;
    if (const char* error = start_affine<A>(p.norm, stream)) return error;
    if (const char* error = launch<slot_gradients<T, V, kNhwc>>(slot_launch<T, 2 * V, kNhwc>(cut, stream), p, cut))
      return error;
    const Launch channels = statistics_launch(p.norm.c, 2, stream);
    if (const char* error = launch<channel_gradients<A>>(channels, p, int(cut.slots.count))) return error;
    return over_images<V, kNhwc, kGradAhead>(p.norm, stream, [&](const Launch& l, const Elements& e) {
      return launch<input_gradients<T, V, kNhwc>>(l, p, e);
    });
  });
}

}  // namespace fastcnn::cuda
