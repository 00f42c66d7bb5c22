// Mean and variance of every channel: of each slot for itself, then over all of them (Chan et al. 1983).
#include "cuda/batch_norm_slots.cuh"

namespace fastcnn::cuda {
namespace {

// A slot's elements stay in registers, so that their deviations are taken from their own mean: a difference of two sums
// of squares would lose the digits of a variance that is small beside the mean.
template <class T, int V, bool kNhwc>
__global__ void __launch_bounds__(kAffineThreads, 2) slot_moments(BatchNormReluArgs p, SlotCut cut, void* moments) {
  using A = Acc<T>;
  using Share = SlotShare<T, V, kNhwc>;
  constexpr int kChannels = Share::kChannels;
  const Share share(cut);
  Vec<T, V> in[Share::kVectors];
#pragma unroll
  for (int u = 0; u < Share::kVectors; ++u) in[u] = share.vector(p.x, u);
  A mean[kChannels] = {}, squares[kChannels] = {};
#pragma unroll
  for (int u = 0; u < Share::kVectors; ++u)
#pragma unroll
    for (int v = 0; v < V; ++v) mean[v % kChannels] += to_acc(in[u].v[v]);
  share.total(mean);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) mean[v] /= A(share.pixels);
#pragma unroll
  for (int u = 0; u < Share::kVectors; ++u) {
    if (!share.holds(u)) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A off = to_acc(in[u].v[v]) - mean[v % kChannels];
      squares[v % kChannels] += off * off;
    }
  }
  share.total(squares);
  if (!share.first) return;
  A* out = static_cast<A*>(moments) + share.channel * cut.slots.count + share.slot;
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    store(out + v * cut.slots.count, mean[v]);
    store(out + (cut.c + v) * cut.slots.count, squares[v]);
  }
}

struct Statistics {
  const void* moments;
  void *mean, *var;
  int slots, last;  // last: pixels of a row's last slot
  int64_t piece;
  Divisor by_row;

  __device__ __forceinline__ double pixels(int slot) const {
    uint32_t at;
    by_row.divide(slot, at);
    return at + 1 == by_row.d ? last : piece;
  }
};

template <class A>
__global__ void __launch_bounds__(kStatisticsThreads) channel_statistics(BatchNormReluArgs p, Statistics s) {
  FASTCNN_SHARED(double, memory);
  const int64_t c = blockIdx.x;
  const A* means = static_cast<const A*>(s.moments) + c * s.slots;
  const A* squares = means + p.c * s.slots;
  const double count = double(p.n * p.pixels);
  double mean[1] = {}, var[1] = {};
  for (int slot = threadIdx.x; slot < s.slots; slot += kStatisticsThreads)
    mean[0] += s.pixels(slot) * load(means + slot);
  total_of_block(memory, mean);
  mean[0] /= count;
  for (int slot = threadIdx.x; slot < s.slots; slot += kStatisticsThreads) {
    const double off = load(means + slot) - mean[0];
    var[0] += load(squares + slot) + s.pixels(slot) * off * off;
  }
  total_of_block(memory, var);
  if (threadIdx.x) return;
  // As wide as backward gets them: another factor could put the sign of ReLU's input on the other side of zero there.
  const A rounded_mean = A(mean[0]), rounded_var = A(var[0] / count);
  store(static_cast<A*>(s.mean) + c, rounded_mean);
  store(static_cast<A*>(s.var) + c, rounded_var);
  store_affine<A>(p, c, rounded_mean, rounded_var);
}

// f(element, vector, layout, cut)
template <class F>
auto with_cut(const BatchNormReluArgs& p, const F& f) {
  return with_layout(p, aligned(p.x, 16), [&](auto element, auto vector, auto layout) {
    return f(element, vector, layout, SlotCut(p, decltype(layout)::value, decltype(vector)::value, 1));
  });
}

}  // namespace

ChannelSlots moment_slots(const BatchNormReluArgs& p) {
  ChannelSlots slots{};
  with_cut(p, [&](auto, auto, auto, const SlotCut& cut) {
    slots = cut.slots;
    return nullptr;
  });
  return slots;
}

const char* batch_norm_moments(const BatchNormReluArgs& p, void* moments, void* stream) {
  return with_cut(p, [&](auto element, auto vector, auto layout, const SlotCut& cut) -> const char* {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    constexpr bool kNhwc = decltype(layout)::value;
    if (const char* error = cut.refused()) return error;
    return launch<slot_moments<T, V, kNhwc>>(slot_launch<T, V, kNhwc>(cut, stream), p, cut, moments);
  });
}

const char* batch_norm_statistics(const BatchNormReluArgs& p, const ChannelSlots& slots, const void* moments,
                                  void* mean, void* var, void* stream) {
  if (slots.count > kMostBlocks || p.c > kMostBlocks) return "the tensor is too large for one grid";
  const int64_t last = slots.row - (slots.per_row - 1) * slots.piece;
  const Statistics s{moments, mean, var, int(slots.count), int(last), slots.piece, Divisor(slots.per_row)};
  const Launch l = statistics_launch(p.c, 1, stream);
  return p.dtype == Dtype::f64 ? launch<channel_statistics<double>>(l, p, s)
                               : launch<channel_statistics<float>>(l, p, s);
}

}  // namespace fastcnn::cuda
