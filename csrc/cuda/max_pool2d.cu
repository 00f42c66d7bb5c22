#include "cuda/device.cuh"
#include "cuda/map_tile.cuh"
#include "cuda/max_pool2d.cuh"
#include "cuda/windows.cuh"

namespace fastcnn::cuda {
namespace {

// MaxPool2dParams as the kernels use them: offsets need 64 bits, positions of one axis do not.
struct Params {
  const void* x;
  void* y;
  void* argmax;
  int h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;
  Divisor by_sh, by_sw;
};

// One output of V channels a thread. K: the window's height and width where the compiler should know them, so that all
// its loads are under way at once; else 0.
template <class T, class Index, int V, int K>
__global__ void __launch_bounds__(kPoolThreads) max_pool2d_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<V> block(t);
  const int kh = K ? K : p.kh, kw = K ? K : p.kw;
  const T* x = static_cast<const T*>(p.x);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int oh, ow;
    if (!block.at(e, c, oh, ow)) continue;
    const int h0 = oh * p.sh - p.ph, w0 = ow * p.sw - p.pw;
    A best[V];
    int where[V];
#pragma unroll
    for (int v = 0; v < V; ++v) best[v] = -A(INFINITY), where[v] = -1;
#pragma unroll(K ? K : 1)
    for (int i = 0; i < kh; ++i) {
      const int h = h0 + i * p.dh;
      if (h < 0 || h >= p.h) continue;
#pragma unroll(K ? K : 1)
      for (int j = 0; j < kw; ++j) {
        const int w = w0 + j * p.dw;
        if (w < 0 || w >= p.w) continue;
        const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(x + block.offset(p.h, p.w, h, w, c)));
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A a = to_acc(in.v[v]);
          if (where[v] < 0 || a > best[v] || a != a) best[v] = a, where[v] = i * kw + j;
        }
      }
    }
    const int64_t out = block.offset(p.oh, p.ow, oh, ow, c);
    Vec<T, V> y;
    Vec<Index, V> at;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      y.v[v] = from_acc<T>(best[v]);
      at.v[v] = Index(where[v] < 0 ? 0 : where[v]);  // a window without a position: its start is outside, too
    }
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + out), y);
    if (p.argmax) store(reinterpret_cast<Vec<Index, V>*>(static_cast<Index*>(p.argmax) + out), at);
  }
}

// One input of V channels a thread adds up the gradients of the windows whose maximum it is, in raster order: no two
// threads write one place, so that nothing depends on their order.
template <class T, class Index, int V>
__global__ void __launch_bounds__(kPoolThreads) max_pool2d_backward_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<V> block(t);
  const T* g = static_cast<const T*>(p.x);
  const Index* argmax = static_cast<const Index*>(p.argmax);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int h, w, top, bottom, left, right;
    if (!block.at(e, c, h, w)) continue;
    covering(h, p.oh, (p.kh - 1) * p.dh + 1, p.by_sh, p.ph, top, bottom);
    covering(w, p.ow, (p.kw - 1) * p.dw + 1, p.by_sw, p.pw, left, right);
    A sum[V] = {};
    for (int oh = top; oh < bottom; ++oh) {
      const int down = h + p.ph - oh * p.sh;
      if (p.dh > 1 && down % p.dh) continue;
      for (int ow = left; ow < right; ++ow) {
        const int across = w + p.pw - ow * p.sw;
        if (p.dw > 1 && across % p.dw) continue;
        const int64_t o = block.offset(p.oh, p.ow, oh, ow, c);
        const int mine = (p.dh > 1 ? down / p.dh : down) * p.kw + (p.dw > 1 ? across / p.dw : across);
        const Vec<Index, V> at = load(reinterpret_cast<const Vec<Index, V>*>(argmax + o));
        const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(g + o));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += int(at.v[v]) == mine ? to_acc(in.v[v]) : A(0);
      }
    }
    Vec<T, V> gx;
#pragma unroll
    for (int v = 0; v < V; ++v) gx.v[v] = from_acc<T>(sum[v]);
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + block.offset(p.h, p.w, h, w, c)), gx);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kPoolThreads) max_pool2d_gather_kernel(Params p, MapTile t) {
  const MapBlock<1> block(t);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int oh, ow;
    if (!block.at(e, c, oh, ow)) continue;
    const int64_t o = block.offset(p.oh, p.ow, oh, ow, c);
    const int at = int(load(static_cast<const Index*>(p.argmax) + o)), i = at / p.kw;
    const bool known = at >= 0 && i < p.kh;
    const int h = known ? oh * p.sh - p.ph + i * p.dh : -1, w = ow * p.sw - p.pw + (at - i * p.kw) * p.dw;
    const bool inside = h >= 0 && h < p.h && w >= 0 && w < p.w;
    const T* x = static_cast<const T*>(p.x);
    store(static_cast<T*>(p.y) + o, inside ? load(x + block.offset(p.h, p.w, h, w, c)) : T{});
  }
}

// Blocks over the map that a kernel writes, of height h and width w; or why there can be none.
struct Grid {
  Params params;
  MapTile tile;
  Launch launch;
  const char* error;

  Grid(const MaxPool2dParams& p, int64_t h, int64_t w, int vector, void* stream) : error(nullptr) {
    constexpr int64_t kMost = (int64_t{1} << 31) - 1;
    tile = MapTile(p.channels_last, p.n, p.c, h, w, vector);
    if (tile.blocks > kMostBlocks) error = "the tensor is too large for one grid";
    if (p.h + p.ph + p.kh * p.dh > kMost || p.w + p.pw + p.kw * p.dw > kMost) error = "an axis exceeds 2^31 positions";
    if (error) return;
    params = {p.x,       p.y,       p.argmax,  int(p.h),  int(p.w),  int(p.oh), int(p.ow),     int(p.kh),    int(p.kw),
              int(p.sh), int(p.sw), int(p.ph), int(p.pw), int(p.dh), int(p.dw), Divisor(p.sh), Divisor(p.sw)};
    launch = Launch{dim3(unsigned(tile.blocks)), dim3(kPoolThreads), 0, stream};
  }
};

// f with the element type, the argmax's type, and channels a vector: 16 bytes where all tensors allow it.
template <class F>
const char* with_types(const MaxPool2dParams& p, const F& f) {
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = 16 / sizeof(T);
    const bool vectors =
        p.channels_last && p.c % V == 0 && aligned(p.x, 16) && aligned(p.y, 16) && aligned(p.argmax, V);
    if (p.wide_argmax)
      error = f(T{}, int32_t{}, std::integral_constant<int, 1>{});
    else if (vectors)
      error = f(T{}, uint8_t{}, std::integral_constant<int, V>{});
    else
      error = f(T{}, uint8_t{}, std::integral_constant<int, 1>{});
  });
  return error;
}

}  // namespace

const char* max_pool2d(const MaxPool2dParams& p, void* stream) {
  return with_types(p, [&](auto t, auto index, auto vector) {
    using T = decltype(t);
    using Index = decltype(index);
    constexpr int V = decltype(vector)::value;
    const Grid grid(p, p.oh, p.ow, V, stream);
    if (grid.error) return grid.error;
    if (p.kh == 3 && p.kw == 3) return launch<max_pool2d_kernel<T, Index, V, 3>>(grid.launch, grid.params, grid.tile);
    if (p.kh == 2 && p.kw == 2) return launch<max_pool2d_kernel<T, Index, V, 2>>(grid.launch, grid.params, grid.tile);
    return launch<max_pool2d_kernel<T, Index, V, 0>>(grid.launch, grid.params, grid.tile);
  });
}

const char* max_pool2d_backward(const MaxPool2dParams& p, void* stream) {
  return with_types(p, [&](auto t, auto index, auto vector) {
    constexpr int V = decltype(vector)::value;
    const Grid grid(p, p.h, p.w, V, stream);
    if (grid.error) return grid.error;
    return launch<max_pool2d_backward_kernel<decltype(t), decltype(index), V>>(grid.launch, grid.params, grid.tile);
  });
}

const char* max_pool2d_gather(const MaxPool2dParams& p, void* stream) {
  return with_types(p, [&](auto t, auto index, auto) {
    const Grid grid(p, p.oh, p.ow, 1, stream);
    if (grid.error) return grid.error;
    return launch<max_pool2d_gather_kernel<decltype(t), decltype(index)>>(grid.launch, grid.params, grid.tile);
  });
}

}  // namespace fastcnn::cuda
