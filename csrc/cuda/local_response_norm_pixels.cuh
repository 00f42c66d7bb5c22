// Which pixels of a channel's row a thread takes that walks down the channels of NCHW, and how it reads and writes
// them. A row: one channel's pixels, from the first on that the thread, or the warp, takes.
#pragma once
#include "cuda/device.cuh"

namespace fastcnn::cuda {

// kPixels neighbours, as one vector: all rows begin at a multiple of its size.
template <class T, int kPixels>
struct VectorPixels {
  static constexpr int V = kPixels, kThreads = 1;  // threads that take kThreads * V neighbours
  using Fetched = Vec<T, V>;

  __device__ explicit VectorPixels(int64_t) {}
  __device__ Fetched fetch(const T* row) const { return load(reinterpret_cast<const Fetched*>(row)); }
  __device__ void unpack(const T*, const Fetched& fetched, Acc<T> (&pixel)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) pixel[v] = to_acc(fetched.v[v]);
  }
  __device__ void put(T* row, const Acc<T> (&pixel)[V]) const {
    Fetched out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = from_acc<T>(pixel[v]);
    store(reinterpret_cast<Fetched*>(row), out);
  }
};

// Rows that begin anywhere: 55 by 55 floats do so 4 bytes later in their sector with each channel. Pixel v of lane l is
// the row's 32 v + l; a warp's requests begin at a sector nonetheless, one more of them than pixels, and lanes exchange
// what they read: V * 32 pixels take one sector more than the least, where each request of 32 would.
template <class T, int kPixels>
struct WarpPixels {
  static constexpr int V = kPixels, kThreads = kWarp;
  struct Fetched {
    T v[V + 1];
  };
  int lane, count;  // pixels that the row has for the warp

  __device__ explicit WarpPixels(int64_t left)
      : lane(threadIdx.x % kWarp), count(int(left < V * kWarp ? left : V * kWarp)) {}

  __device__ Fetched fetch(const T* row) const {
    const int first = lane - behind_sector(row);
    Fetched fetched;
#pragma unroll
    for (int v = 0; v <= V; ++v) {
      const int i = first + v * kWarp;
      fetched.v[v] = load_if(i >= 0 && i < count, row + i);
    }
    return fetched;
  }
  __device__ void unpack(const T* row, const Fetched& fetched, Acc<T> (&pixel)[V]) const {
    const int from = lane + behind_sector(row);
    Acc<T> shifted[V + 1];
#pragma unroll
    for (int v = 0; v <= V; ++v) shifted[v] = shuffle(to_acc(fetched.v[v]), from % kWarp);
#pragma unroll
    for (int v = 0; v < V; ++v) pixel[v] = from < kWarp ? shifted[v] : shifted[v + 1];
  }
  __device__ void put(T* row, const Acc<T> (&pixel)[V]) const {
    const int first = lane - behind_sector(row);
    Acc<T> shifted[V];
#pragma unroll
    for (int v = 0; v < V; ++v) shifted[v] = shuffle(pixel[v], (first + kWarp) % kWarp);
#pragma unroll
    for (int v = 0; v <= V; ++v) {
      const int i = first + v * kWarp;
      // of lanes before the row's start, the pixel before; outside of the warp's pixels nothing is stored
      const Acc<T> out = v == V || (v > 0 && first < 0) ? shifted[v - (v > 0)] : shifted[v];
      store_if(i >= 0 && i < count, row + i, from_acc<T>(out));
    }
  }
};

}  // namespace fastcnn::cuda
