#include "cuda/divisor.h"
#include "cuda/lane_order.cuh"
#include "cuda/local_response_norm.cuh"
#include "cuda/local_response_norm_math.cuh"
#include "cuda/local_response_norm_pixels.cuh"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

using Params = LocalResponseNormParams;

// The pixels of a thread that walks, and where its row of channel 0 begins.
template <class Pixels>
struct Walk {
  int64_t outer, at;
  Pixels pixels;

  __device__ static Walk start(const Params& p, const Divisor& chunks) {
    uint32_t chunk;
    const int64_t outer = chunks.divide((blockIdx.x * kNormThreads + threadIdx.x) / Pixels::kThreads, chunk);
    const int64_t first = int64_t(chunk) * (Pixels::V * Pixels::kThreads);
    return {outer, outer * p.channels * p.inner + first, Pixels(p.inner - first)};
  }
};

// NCHW, a window of `before` + 1 + `after` channels known to the compiler: a thread walks down the channels of V pixels
// and keeps the window in registers, so that every value is read once. kSteps channels are requested at once: one
// request a thread would leave the memory idle.
template <class T, class Pixels, int kSteps, int kBefore, int kAfter, class Power>
__global__ void __launch_bounds__(kNormThreads, 2) normalize_walk(Params p, Divisor chunks, Power power) {
  using A = Acc<T>;
  constexpr int V = Pixels::V, kWindow = kBefore + 1 + kAfter;
  const auto walk = Walk<Pixels>::start(p, chunks);
  if (walk.outer >= p.outer) return;
  const T* x = static_cast<const T*>(p.x) + walk.at;
  T* y = static_cast<T*>(p.out) + walk.at;
  const A alpha = A(p.alpha), k = A(p.k);
  A window[kWindow][V] = {};
  for (int64_t first = 0; first < p.channels + kAfter; first += kSteps) {
    typename Pixels::Fetched next[kSteps];
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
      if (first + u < p.channels) next[u] = walk.pixels.fetch(x + (first + u) * p.inner);
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const int64_t last = first + u, c = last - kAfter;
      if (c >= p.channels) break;
      A in[V] = {}, out[V];
      if (last < p.channels) walk.pixels.unpack(x + last * p.inner, next[u], in);
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int j = 0; j + 1 < kWindow; ++j) window[j][v] = window[j + 1][v];
        window[kWindow - 1][v] = rectified(in[v], p.relu);
        A sum = 0;
#pragma unroll
        for (int j = 0; j < kWindow; ++j) sum += window[j][v] * window[j][v];
        out[v] = power.over(window[kBefore][v], k + alpha * sum);
      }
      if (c >= 0) walk.pixels.put(y + c * p.inner, out);
    }
  }
}

// The same walk backward. Channel j's s needs x up to j + kAfter, and channel c's sum the terms up to j = c + kBefore:
// the output lags kBefore + kAfter channels behind the input.
template <class T, class Pixels, int kSteps, int kBefore, int kAfter, class Power>
__global__ void __launch_bounds__(kNormThreads, 2) normalize_walk_backward(Params p, Divisor chunks, Power power) {
  using A = Acc<T>;
  constexpr int V = Pixels::V, kWindow = kBefore + 1 + kAfter;
  const auto walk = Walk<Pixels>::start(p, chunks);
  if (walk.outer >= p.outer) return;
  const T* x = static_cast<const T*>(p.x) + walk.at;
  const T* g = static_cast<const T*>(p.g) + walk.at;
  T* dx = static_cast<T*>(p.out) + walk.at;
  const A alpha = A(p.alpha), k = A(p.k), factor = A(2 * p.alpha * p.beta);
  A xs[kWindow][V] = {}, gs[kAfter + 1][V] = {}, own[kBefore + 1][V] = {}, shared[kWindow][V] = {};
  for (int64_t first = 0; first < p.channels + kBefore + kAfter; first += kSteps) {
    typename Pixels::Fetched next_x[kSteps], next_g[kSteps];
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      if (first + u >= p.channels) continue;
      next_x[u] = walk.pixels.fetch(x + (first + u) * p.inner);
      next_g[u] = walk.pixels.fetch(g + (first + u) * p.inner);
    }
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
      const int64_t last = first + u, j = last - kAfter, c = j - kBefore;
      if (c >= p.channels) break;
      A in_x[V] = {}, in_g[V] = {}, out[V];
      if (last < p.channels) {
        walk.pixels.unpack(x + last * p.inner, next_x[u], in_x);
        walk.pixels.unpack(g + last * p.inner, next_g[u], in_g);
      }
      const bool exists = j >= 0 && j < p.channels;
#pragma unroll
      for (int v = 0; v < V; ++v) {
#pragma unroll
        for (int i = 0; i + 1 < kWindow; ++i) xs[i][v] = xs[i + 1][v], shared[i][v] = shared[i + 1][v];
#pragma unroll
        for (int i = 0; i < kAfter; ++i) gs[i][v] = gs[i + 1][v];
#pragma unroll
        for (int i = 0; i < kBefore; ++i) own[i][v] = own[i + 1][v];
        xs[kWindow - 1][v] = rectified(in_x[v], p.relu);
        gs[kAfter][v] = in_g[v];
        A sum = 0, neighbours = 0;
#pragma unroll
        for (int i = 0; i < kWindow; ++i) sum += xs[i][v] * xs[i][v];
        const Terms<A> t = terms(gs[0][v], xs[kBefore][v], k + alpha * sum, power);
        own[kBefore][v] = exists ? t.own : A(0);
        shared[kWindow - 1][v] = exists ? t.shared : A(0);
#pragma unroll
        for (int i = 0; i < kWindow; ++i) neighbours += shared[i][v];
        const A xc = xs[0][v];
        out[v] = p.relu && xc == 0 ? A(0) : own[0][v] - factor * xc * neighbours;
      }
      if (c >= 0) walk.pixels.put(dx + c * p.inner, out);
    }
  }
}

// Any window, any layout: a block holds all channels of some pixels in shared memory as [rows][channels][pixels], rows
// of NHWC (pixels == 1) or neighbouring pixels of one image or tower of NCHW (rows == 1).
struct Tile {
  int rows, pixels, size;
  Divisor by_pixels, by_channels, by_chunks;  // chunks of `pixels` that an outer has
};

// A block's place in the tensors, and that of its element e.
struct Place {
  const Params& p;
  const Tile& tile;
  int64_t outer, pixel;

  __device__ Place(const Params& params, const Tile& t) : p(params), tile(t) {
    uint32_t chunk;
    outer = int64_t(t.by_chunks.divide(blockIdx.x, chunk)) * t.rows, pixel = int64_t(chunk) * t.pixels;
  }
  __device__ bool at(int e, int& c, int64_t& offset) const {
    uint32_t i, channel;
    const uint32_t row = tile.by_channels.divide(tile.by_pixels.divide(e, i), channel);
    c = int(channel);
    offset = ((outer + row) * p.channels + c) * p.inner + pixel + i;
    return outer + row < p.outer && pixel + i < p.inner;
  }
};

// The sum of f(x) over channels c - before to c + after, as far as they exist; e is c's element of the tile. All lanes
// take the same steps, so that they meet the banks in the same order.
template <class A, class F>
__device__ A sum_around(const Tile& t, const A* x, int e, int c, int before, int after, int channels, const F& f) {
  A sum = 0;
  for (int d = -before; d <= after; ++d) sum += f(load_shared_if(c + d >= 0 && c + d < channels, x + e + d * t.pixels));
  return sum;
}

// A window's reach to one side: no farther than there are channels. Params has no farther one, but without
// this the static gate predicts 6% more time for NHWC's backward pass.
__device__ inline int reach(int64_t wanted, int64_t channels) { return int(wanted < channels ? wanted : channels - 1); }

// k + alpha * sum of the squares around channel c, whose element of the tile is e.
template <class A>
__device__ A scale(const Params& p, const Tile& t, const A* x, int e, int c) {
  const int before = reach(p.before, p.channels), after = reach(p.after, p.channels);
  return A(p.k) + A(p.alpha) * sum_around(t, x, e, c, before, after, int(p.channels), [](A v) { return v * v; });
}

// Fills x with the block's part of p.x.
template <class T, int V>
__device__ void fetch(const Place& place, Acc<T>* x) {
  const LaneOrder<Acc<T>, V> order;
  for (int e = threadIdx.x * V; e < place.tile.size; e += kNormThreads * V) {
    int c;
    int64_t offset;
    if (!place.at(e, c, offset)) continue;
    const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(place.p.x) + offset));
    Acc<T> values[V];
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = rectified(to_acc(in.v[v]), place.p.relu);
    order.to_steps(values);
#pragma unroll
    for (int v = 0; v < V; ++v) store_shared(x + e + order.at(v), values[v]);
  }
}

// The vector `values`, of an element a step, to p.out.
template <class T, int V>
__device__ void put(const Params& p, int64_t offset, const LaneOrder<Acc<T>, V>& order, Acc<T> (&values)[V]) {
  order.to_elements(values);
  Vec<T, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.v[v] = from_acc<T>(values[v]);
  store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.out) + offset), out);
}

template <class T, int V, class Power>
__global__ void __launch_bounds__(kNormThreads, 2) normalize_tile(Params p, Tile t, Power power) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);
  const Place place(p, t);
  fetch<T, V>(place, x);
  sync_block();
  const LaneOrder<A, V> order;
  // The vector runs along the channels of NHWC, along the pixels of NCHW.
  const int step = t.pixels == 1;
  for (int e = threadIdx.x * V; e < t.size; e += kNormThreads * V) {
    int c;
    int64_t offset;
    if (!place.at(e, c, offset)) continue;
    A y[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int u = order.at(v);
      y[v] = power.over(load_shared(x + e + u), scale(p, t, x, e + u, c + u * step));
    }
    put<T, V>(p, offset, order, y);
  }
}

template <class T, int V, class Power>
__global__ void __launch_bounds__(kNormThreads, 2) normalize_tile_backward(Params p, Tile t, Power power) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);  // then the terms: own, shared
  A* own = x + t.size;
  A* shared = own + t.size;
  const Place place(p, t);
  fetch<T, V>(place, x);
  sync_block();
  const LaneOrder<A, V> order;
  const int step = t.pixels == 1;
  for (int e = threadIdx.x * V; e < t.size; e += kNormThreads * V) {
    int c;
    int64_t offset;
    if (!place.at(e, c, offset)) continue;
    const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(static_cast<const T*>(p.g) + offset));
    A g[V];
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = to_acc(in.v[v]);
    order.to_steps(g);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int u = order.at(v);
      const A s = scale(p, t, x, e + u, c + u * step);
      const Terms<A> term = terms(g[v], load_shared(x + e + u), s, power);
      store_shared(own + e + u, term.own);
      store_shared(shared + e + u, term.shared);
    }
  }
  sync_block();
  const A factor = A(2 * p.alpha * p.beta);
  // mirrored: the channels whose windows hold this one
  const int before = reach(p.after, p.channels), after = reach(p.before, p.channels);
  for (int e = threadIdx.x * V; e < t.size; e += kNormThreads * V) {
    int c;
    int64_t offset;
    if (!place.at(e, c, offset)) continue;
    A dx[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int u = order.at(v);
      const A sum = sum_around(t, shared, e + u, c + u * step, before, after, int(p.channels), [](A a) { return a; });
      const A xc = load_shared(x + e + u);
      dx[v] = p.relu && xc == 0 ? A(0) : load_shared(own + e + u) - factor * xc * sum;
    }
    put<T, V>(p, offset, order, dx);
  }
}

template <class T, class Pixels, bool kBackward, int kSteps>
const char* run_walk(const Params& p, void* stream) {
  const Divisor chunks(ceil_div(p.inner, Pixels::V * Pixels::kThreads));
  const int64_t threads = p.outer * chunks.d * Pixels::kThreads;
  if (threads > kMostBlocks - kNormThreads) return "the tensor has too many pixels for one grid";
  const Launch l{dim3(unsigned(ceil_div(threads, kNormThreads))), dim3(kNormThreads), 0, stream};
  return with_power<T>(p.beta, [&](auto power) {
    using Power = decltype(power);
    if constexpr (kBackward)
      return launch<normalize_walk_backward<T, Pixels, kSteps, 2, 2, Power>>(l, p, chunks, power);
    else
      return launch<normalize_walk<T, Pixels, kSteps, 2, 2, Power>>(l, p, chunks, power);
  });
}

// What the window takes in registers grows with V: 8 bytes of every tensor a thread, backward 4 (16 registers a value).
// Rows that begin anywhere ask for more neighbours: of 32 floats a warp, 128 forward take 17 sectors for 16 and 96
// backward 13 for 12, where 32 would take 5 for 4. With more requests a step, two steps and backward one are enough: 16
// KB under way, and no spills.
template <class T, bool kBackward>
const char* choose_walk(const Params& p, void* stream) {
  constexpr int kBytes = kBackward ? 4 : 8, V = kBytes < sizeof(T) ? 1 : kBytes / sizeof(T);
  constexpr int kSpread = (kBackward ? 3 : 4) / (sizeof(T) == 8 ? 2 : 1);
  const auto all_aligned = [&](int bytes) {
    return p.inner * sizeof(T) % bytes == 0 && aligned(p.x, bytes) && aligned(p.out, bytes) &&
           (!kBackward || aligned(p.g, bytes));
  };
  if (!all_aligned(kSectorBytes) && p.inner >= kWarp)
    return run_walk<T, WarpPixels<T, kSpread>, kBackward, kBackward ? 1 : kAhead / 2>(p, stream);
  return all_aligned(V * sizeof(T)) ? run_walk<T, VectorPixels<T, V>, kBackward, kAhead>(p, stream)
                                    : run_walk<T, VectorPixels<T, 1>, kBackward, kAhead>(p, stream);
}

template <class T, int V>
const char* run_tile(const Params& p, bool backward, void* stream) {
  const int64_t arrays = (backward ? 3 : 1) * int64_t(sizeof(Acc<T>));
  if (p.channels > kMostSharedBytes / arrays) return "a pixel's channels exceed the shared memory";
  const int64_t wanted = kSharedBytes / arrays / p.channels;  // pixels, or rows
  Tile t{};
  if (p.inner == 1) {
    t.rows = int(wanted < 1 ? 1 : wanted < p.outer ? wanted : p.outer), t.pixels = 1;
  } else {
    const int64_t pixels = wanted < kNormPixels ? wanted : kNormPixels;
    t.rows = 1, t.pixels = int(pixels < V ? V : pixels / V * V);
  }
  t.size = int(t.rows * p.channels * t.pixels);
  if (t.size > kMostSharedBytes / arrays) return run_tile<T, 1>(p, backward, stream);
  t.by_pixels = Divisor(t.pixels), t.by_channels = Divisor(p.channels);
  t.by_chunks = Divisor((p.inner + t.pixels - 1) / t.pixels);
  const int64_t blocks = (p.outer + t.rows - 1) / t.rows * t.by_chunks.d;
  if (blocks > kMostBlocks) return "the tensor has too many pixels for one grid";
  const Launch l{dim3(unsigned(blocks)), dim3(kNormThreads), size_t(t.size * arrays), stream};
  return with_power<T>(p.beta, [&](auto power) {
    using Power = decltype(power);
    return backward ? launch<normalize_tile_backward<T, V, Power>>(l, p, t, power)
                    : launch<normalize_tile<T, V, Power>>(l, p, t, power);
  });
}

const char* run(const Params& p, bool backward, void* stream) {
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / sizeof(T);
    const bool whole = (p.inner == 1 ? p.channels : p.inner) % V == 0;
    const bool vectors = whole && aligned(p.x, 16) && aligned(p.out, 16) && (!backward || aligned(p.g, 16));
    if (p.inner > 1 && p.before == 2 && p.after == 2)
      error = backward ? choose_walk<T, true>(p, stream) : choose_walk<T, false>(p, stream);
    else
      error = vectors ? run_tile<T, V>(p, backward, stream) : run_tile<T, 1>(p, backward, stream);
  });
  return error;
}

}  // namespace

const char* local_response_norm(const Params& p, void* stream) { return run(p, false, stream); }
const char* local_response_norm_backward(const Params& p, void* stream) { return run(p, true, stream); }

}  // namespace fastcnn::cuda
