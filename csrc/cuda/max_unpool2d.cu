#include "cuda/device.cuh"
#include "cuda/map_tile.cuh"
#include "cuda/max_unpool2d.cuh"

namespace fastcnn::cuda {
namespace {

// A warp makes a part of one slab, a plane (NCHW) or the planes of 32 neighbouring channels (NHWC), in shared memory.
// It goes through the slab's indices in raster order, so that the last one of a place wins, or sums add in that order,
// whatever else runs. Where a slab has several parts, what max pooling's indices have in common is used: neighbouring
// ones point to neighbouring places, so that most chunks of indices cannot reach a part and are passed over.
struct Params {
  const void* x;
  const int64_t* indices;
  void* y;
  const Vec<int, 2>* ranges;  // of each chunk of a slab the least and the largest place; null where a slab is one part
  int64_t slabs, channels;
  int pixels, places, part, chunks;
  Divisor by_parts, by_chunks, by_groups;  // groups of channels of an image
};

// A lane's element of a slab: a pixel's index, or NHWC a channel's.
template <bool kNhwc>
struct Slab {
  const Params& p;
  int lane;
  int64_t first, c;  // the image, or plane; NHWC: the lane's channel

  __device__ Slab(const Params& params, uint32_t slab) : p(params), lane(threadIdx.x % kWarp) {
    uint32_t group = 0;
    first = kNhwc ? p.by_groups.divide(slab, group) : slab;
    c = kNhwc ? int64_t(group) * kWarp + lane : 0;
  }
  __device__ int64_t at(int64_t i, int plane) const {
    return kNhwc ? (first * plane + i) * p.channels + c : first * plane + i;
  }
  __device__ bool exists() const { return !kNhwc || c < p.channels; }
};

template <bool kNhwc>
__global__ void __launch_bounds__(kUnpoolWarps* kWarp) find_ranges(Params p, Vec<int, 2>* ranges) {
  uint32_t chunk;
  const uint32_t warp = blockIdx.x * kUnpoolWarps + threadIdx.x / kWarp;
  const int64_t number = p.by_chunks.divide(warp, chunk);
  if (number >= p.slabs) return;
  const Slab<kNhwc> slab(p, uint32_t(number));
  const int begin = int(chunk) * kUnpoolChunk;
  const int end = p.pixels - begin < kUnpoolChunk ? p.pixels : begin + kUnpoolChunk;
  int least = p.places, largest = -1;
#pragma unroll 4
  for (int i = kNhwc ? begin : begin + slab.lane; i < end; i += kNhwc ? 1 : kWarp) {
    const int64_t at = slab.exists() ? load(p.indices + slab.at(i, p.pixels)) : -1;
    if (uint64_t(at) >= uint64_t(p.places)) continue;
    least = at < least ? int(at) : least, largest = at > largest ? int(at) : largest;
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const int low = shuffle_xor(least, offset), high = shuffle_xor(largest, offset);
    least = low < least ? low : least, largest = high > largest ? high : largest;
  }
  if (slab.lane == 0) store(ranges + warp, Vec<int, 2>{{least, largest}});
}

// One value a lane, of consecutive pixels: `held` gets the last of each place, or their sum in the lanes' order.
template <bool kSum, class A>
__device__ __forceinline__ void scatter(A* held, int place, A value) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (kSum) {
    bool first = place >= 0;
    A sum = first ? load_shared(held + place) : A(0);
#pragma unroll 4
    for (int j = 0; j < kWarp; ++j) {
      const int other = shuffle(place, j);
      const A term = shuffle(value, j);
      if (other != place) continue;
      first &= j >= lane, sum += term;
    }
    sync_warp();  // all lanes of a place have read it
    if (first) store_shared(held + place, sum);
  } else {
    bool last = place >= 0;
#pragma unroll 4
    for (int j = 1; j < kWarp; ++j) last &= shuffle_down(place, j) != place || lane + j >= kWarp;
    if (last) store_shared(held + place, value);
  }
  sync_warp();
}

template <class T, bool kNhwc, bool kSum>
__global__ void __launch_bounds__(kUnpoolWarps* kWarp) max_unpool2d_kernel(Params p) {
  using A = Acc<T>;
  constexpr int kHeld = kUnpoolBytes / sizeof(A), kStep = kNhwc ? kWarp : 1;  // of a place in `held`
  FASTCNN_SHARED(A, memory);
  uint32_t part;
  const uint32_t number = p.by_parts.divide(blockIdx.x * kUnpoolWarps + threadIdx.x / kWarp, part);
  if (number >= p.slabs) return;
  const Slab<kNhwc> slab(p, number);
  const int lane = slab.lane, begin = int(part) * p.part;
  const int count = p.places - begin < p.part ? p.places - begin : p.part;
  A* held = memory + threadIdx.x / kWarp * kHeld;
  for (int i = lane; i < count * kStep; i += kWarp) store_shared(held + i, A(0));
  sync_warp();
  const T* x = static_cast<const T*>(p.x);
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    if (p.ranges) {
      const Vec<int, 2> range = load(p.ranges + int64_t(number) * p.chunks + chunk);
      if (range.v[1] < begin || range.v[0] >= begin + count) continue;
    }
    const int i0 = chunk * kUnpoolChunk;
    if constexpr (kNhwc) {
      const int i1 = p.pixels - i0 < kUnpoolChunk ? p.pixels : i0 + kUnpoolChunk;
      if (!slab.exists()) continue;
#pragma unroll 4
      for (int i = i0; i < i1; ++i) {
        const int64_t from = slab.at(i, p.pixels);
        const uint64_t place = uint64_t(load(p.indices + from)) - begin;
        if (place >= uint64_t(count)) continue;
        const A value = to_acc(load(x + from));
        A* to = held + place * kWarp + lane;
        store_shared(to, kSum ? load_shared(to) + value : value);
      }
    } else {
      const bool exists = lane < p.pixels - i0;
      const int64_t from = slab.at(i0 + lane, p.pixels);
      const uint64_t place = uint64_t(load_if(exists, p.indices + from)) - begin;
      const bool inside = exists && place < uint64_t(count);
      scatter<kSum>(held, inside ? int(place) : -1, to_acc(load_if(inside, x + from)));
    }
  }
  T* y = static_cast<T*>(p.y);
  if (!slab.exists()) return;
  if constexpr (kNhwc)
    for (int i = 0; i < count; ++i)
      store(y + slab.at(begin + i, p.places), from_acc<T>(load_shared(held + i * kWarp + lane)));
  else
    for (int i = lane; i < count; i += kWarp)
      store(y + slab.at(begin + i, p.places), from_acc<T>(load_shared(held + i)));
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads) max_unpool2d_gather_kernel(Params p, MapTile t) {
  const MapBlock<1> block(t);
  for (int e = threadIdx.x; e < t.size(); e += kPoolThreads) {
    int64_t c;
    int row, i;
    if (!block.at(e, c, row, i)) continue;
    const int64_t to = block.offset(1, p.pixels, 0, i, c), at = load(p.indices + to);
    const bool inside = uint64_t(at) < uint64_t(p.places);
    const int64_t from = block.offset(1, p.places, 0, inside ? int(at) : 0, c);
    store(static_cast<T*>(p.y) + to, load_if(inside, static_cast<const T*>(p.x) + from));
  }
}

// How the work is cut, from sizes alone.
struct Cut {
  int64_t slabs, part, parts, chunks;
  bool nhwc;

  explicit Cut(const MaxUnpool2dParams& p) : nhwc(p.channels_last && p.c > 1) {
    const int64_t most = kUnpoolBytes / accumulator_size(p.dtype) / (nhwc ? kWarp : 1);
    slabs = p.n * (nhwc ? ceil_div(p.c, kWarp) : p.c);
    part = p.places < most ? p.places : most;
    parts = ceil_div(p.places, part), chunks = ceil_div(p.pixels, kUnpoolChunk);
  }
};

Params params_of(const MaxUnpool2dParams& p, const Cut& cut, const void* ranges) {
  Params k{};
  k.x = p.x, k.indices = p.indices, k.y = p.y, k.ranges = static_cast<const Vec<int, 2>*>(ranges);
  k.slabs = cut.slabs, k.channels = p.c;
  k.pixels = int(p.pixels), k.places = int(p.places), k.part = int(cut.part), k.chunks = int(cut.chunks);
  k.by_parts = Divisor(cut.parts), k.by_chunks = Divisor(cut.chunks ? cut.chunks : 1),
  k.by_groups = Divisor(ceil_div(p.c, kWarp));
  return k;
}

const char* refused(const MaxUnpool2dParams& p) {
  constexpr int64_t kMost = kMostBlocks - kUnpoolChunk;
  return p.pixels > kMost || p.places > kMost ? "a plane exceeds 2^31 positions" : nullptr;
}

Launch warps(int64_t number, size_t shared, void* stream) {
  return {dim3(unsigned(ceil_div(number, kUnpoolWarps))), dim3(kUnpoolWarps * kWarp), shared, stream};
}

template <class T, bool kNhwc>
const char* unpool(const MaxUnpool2dParams& p, const Cut& cut, void* ranges, void* stream) {
  const Params k = params_of(p, cut, ranges);
  if (ranges) {
    const Launch l = warps(cut.slabs * cut.chunks, 0, stream);
    if (const char* error = launch<find_ranges<kNhwc>>(l, k, static_cast<Vec<int, 2>*>(ranges))) return error;
  }
  const Launch l = warps(cut.slabs * cut.parts, kUnpoolWarps * kUnpoolBytes, stream);
  return p.sum ? launch<max_unpool2d_kernel<T, kNhwc, true>>(l, k) : launch<max_unpool2d_kernel<T, kNhwc, false>>(l, k);
}

}  // namespace

int64_t max_unpool2d_ranges(const MaxUnpool2dParams& p) {
  const Cut cut(p);
  return cut.parts > 1 ? 2 * cut.slabs * cut.chunks : 0;
}

const char* max_unpool2d(const MaxUnpool2dParams& p, void* ranges, void* stream) {
  if (const char* error = refused(p)) return error;
  const Cut cut(p);
  if (cut.slabs * (cut.parts + cut.chunks) > kMostBlocks - kUnpoolWarps) return "the tensor is too large for one grid";
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    error = cut.nhwc ? unpool<T, true>(p, cut, ranges, stream) : unpool<T, false>(p, cut, ranges, stream);
  });
  return error;
}

const char* max_unpool2d_gather(const MaxUnpool2dParams& p, void* stream) {
  if (const char* error = refused(p)) return error;
  const MapTile tile(p.channels_last, p.n, p.c, 1, p.pixels, 1);
  if (tile.blocks > kMostBlocks) return "the tensor is too large for one grid";
  const char* error = nullptr;
  switch_dtype(p.dtype, [&](auto element) {
    const Launch l{dim3(unsigned(tile.blocks)), dim3(kPoolThreads), 0, stream};
    error = launch<max_unpool2d_gather_kernel<decltype(element)>>(l, params_of(p, Cut(p), nullptr), tile);
  });
  return error;
}

}  // namespace fastcnn::cuda
