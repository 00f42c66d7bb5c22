#include "cuda/device.cuh"
#include "cuda/map_tile.cuh"
#include "cuda/max_pool2d.cuh"
#include "cuda/max_pool2d_planes.cuh"
#include "cuda/max_pool2d_window.cuh"

namespace fastcnn::cuda {
namespace {

using Geometry = MaxPool2dGeometry;

// One output of V channels a thread.
template <class T, class Index, int V, int K>
__global__ void __launch_bounds__(kPoolThreads, 5) max_pool2d_kernel(Geometry p, MapTile t) {
  const MapBlock<V> block(t);
  const T* x = static_cast<const T*>(p.x);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int oh, ow;
    if (!block.at(e, c, oh, ow)) continue;
    Maximum<Acc<T>> most[V];
    for_each_position<K>(p, oh, ow, [&](int h, int w, int position) {
      const Vec<T, V> in = load(reinterpret_cast<const Vec<T, V>*>(x + block.offset(p.h, p.w, h, w, c)));
#pragma unroll
      for (int v = 0; v < V; ++v) most[v].take(to_acc(in.v[v]), position);
    });
    const int64_t out = block.offset(p.oh, p.ow, oh, ow, c);
    Vec<T, V> y;
    Vec<Index, V> at;
#pragma unroll
    for (int v = 0; v < V; ++v) y.v[v] = from_acc<T>(most[v].best), at.v[v] = Index(most[v].argmax());
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + out), y);
    if (p.argmax) store(reinterpret_cast<Vec<Index, V>*>(static_cast<Index*>(p.argmax) + out), at);
  }
}

// One input of V channels a thread adds up the gradients of the windows whose maximum it is, in raster order: no two
// threads write one place, so that nothing depends on their order.
template <class T, class Index, int V>
__global__ void __launch_bounds__(kPoolThreads, 5) max_pool2d_backward_kernel(Geometry p, MapTile t) {
  const MapBlock<V> block(t);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int h, w;
    if (!block.at(e, c, h, w)) continue;
    Acc<T> sum[V];
    const auto peak = [&](int oh, int ow) { return load_peak<T, Index, V>(p, block.offset(p.oh, p.ow, oh, ow, c)); };
    sum_of_windows<T, Index>(p, h, w, peak, sum);
    Vec<T, V> gx;
#pragma unroll
    for (int v = 0; v < V; ++v) gx.v[v] = from_acc<T>(sum[v]);
    store(reinterpret_cast<Vec<T, V>*>(static_cast<T*>(p.y) + block.offset(p.h, p.w, h, w, c)), gx);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kPoolThreads, 5) max_pool2d_gather_kernel(Geometry p, MapTile t) {
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
  Geometry geometry;
  MapTile tile;
  Launch launch;
  const char* error;

  Grid(const MaxPool2dParams& p, int64_t h, int64_t w, int vector, void* stream)
      : tile(p.channels_last, p.n, p.c, h, w, vector), error(to_device(p, geometry)) {
    if (tile.blocks > kMostBlocks) error = "the tensor is too large for one grid";
    launch = Launch{dim3(unsigned(error ? 0 : tile.blocks)), dim3(kPoolThreads), 0, stream};
  }
};

// f with the element type, the argmax's type, and channels a vector: 16 bytes where all tensors allow it.
template <class F>
const char* with_vectors(const MaxPool2dParams& p, const F& f) {
  return with_types(p, [&](auto element, auto index) {
    constexpr int V = 16 / sizeof(element);
    if constexpr (sizeof(index) == 1) {
      if (p.channels_last && p.c % V == 0 && aligned(p.x, 16) && aligned(p.y, 16) && aligned(p.argmax, V))
        return f(element, index, std::integral_constant<int, V>{});
    }
    return f(element, index, std::integral_constant<int, 1>{});
  });
}

}  // namespace

const char* max_pool2d(const MaxPool2dParams& p, void* stream) {
  if (max_pool2d_planes_fit(p, false)) return max_pool2d_planes(p, stream);
  return with_vectors(p, [&](auto t, auto index, auto vector) {
    using T = decltype(t);
    using Index = decltype(index);
    constexpr int V = decltype(vector)::value;
    const Grid grid(p, p.oh, p.ow, V, stream);
    if (grid.error) return grid.error;
    if (p.kh == 3 && p.kw == 3) return launch<max_pool2d_kernel<T, Index, V, 3>>(grid.launch, grid.geometry, grid.tile);
    if (p.kh == 2 && p.kw == 2) return launch<max_pool2d_kernel<T, Index, V, 2>>(grid.launch, grid.geometry, grid.tile);
    return launch<max_pool2d_kernel<T, Index, V, 0>>(grid.launch, grid.geometry, grid.tile);
  });
}

const char* max_pool2d_backward(const MaxPool2dParams& p, void* stream) {
  if (max_pool2d_planes_fit(p, true)) return max_pool2d_planes_backward(p, stream);
  return with_vectors(p, [&](auto t, auto index, auto vector) {
    constexpr int V = decltype(vector)::value;
    const Grid grid(p, p.h, p.w, V, stream);
    if (grid.error) return grid.error;
    return launch<max_pool2d_backward_kernel<decltype(t), decltype(index), V>>(grid.launch, grid.geometry, grid.tile);
  });
}

const char* max_pool2d_gather(const MaxPool2dParams& p, void* stream) {
  return with_types(p, [&](auto t, auto index) {
    const Grid grid(p, p.oh, p.ow, 1, stream);
    if (grid.error) return grid.error;
    return launch<max_pool2d_gather_kernel<decltype(t), decltype(index)>>(grid.launch, grid.geometry, grid.tile);
  });
}

}  // namespace fastcnn::cuda
