#include <algorithm>

#include "cuda/max_pool2d_planes.cuh"
#include "cuda/max_pool2d_window.cuh"

namespace fastcnn::cuda {
namespace {

using Geometry = MaxPool2dGeometry;

// The planes of the map that a kernel writes, one behind the other, in pieces of `size` elements (a multiple of a warp,
// so that its stores are whole sectors), a block each.
struct Pieces {
  int64_t bytes;  // of shared memory, for what the block reads of the other map
  int total, size, rows, columns;
  Divisor by_rows, by_columns;

  int64_t blocks() const { return ceil_div(total, size); }
};

struct Position {
  int plane, row, column;

  __device__ Position(const Pieces& s, int element) {
    uint32_t r, c;
    plane = int(s.by_rows.divide(s.by_columns.divide(element, c), r));
    row = int(r), column = int(c);
  }
};

// Copies `count` elements to shared memory, where they begin as far behind `shared`, a multiple of 32 bytes, as `from`
// is behind one: then whole sectors move, 16 bytes a thread. Done at the next cp_async_wait and barrier.
template <class T>
__device__ const T* stage(void* shared, const T* from, int count) {
  constexpr int V = 16 / sizeof(T), kSector = kSectorBytes / sizeof(T);
  const int behind = behind_sector(from);
  T* to = static_cast<T*>(shared) + behind;
  const int lead = (kSector - behind) % kSector, head = lead < count ? lead : count, tail = (count - head) % V;
  for (int i = head + int(threadIdx.x) * V; i < count - tail; i += kPoolThreads * V) cp_async<16>(to + i, from + i);
  cp_async_commit();
  const int lane = int(threadIdx.x);
  if (lane < head) store_shared(to + lane, load(from + lane));
  if (lane < tail) {
    const int i = count - tail + lane;
    store_shared(to + i, load(from + i));
  }
  return to;
}

__device__ inline void await_stage() {
  cp_async_wait<0>();
  sync_block();
}

template <class T, class Index, int K>
__global__ void __launch_bounds__(kPoolThreads, 5) max_pool2d_planes_kernel(Geometry p, Pieces s) {
  FASTCNN_SHARED(unsigned char, shared);
  const int begin = blockIdx.x * s.size, end = s.total - begin < s.size ? s.total : begin + s.size;
  const Position first(s, begin), last(s, end - 1);
  const int top = first.row * p.sh - p.ph, bottom = last.row * p.sh - p.ph + (p.kh - 1) * p.dh + 1;
  const int from = (first.plane * p.h + (top < 0 ? 0 : top)) * p.w;
  const int to = (last.plane * p.h + (bottom < p.h ? bottom : p.h)) * p.w;
  const T* x = stage(shared, static_cast<const T*>(p.x) + from, to - from);
  await_stage();
  for (int e = begin + threadIdx.x; e < end; e += kPoolThreads) {
    const Position at(s, e);
    const int plane = at.plane * p.h * p.w - from;
    Maximum<Acc<T>> most;
    for_each_position<K>(p, at.row, at.column, [&](int h, int w, int position) {
      most.take(to_acc(load_shared(x + plane + h * p.w + w)), position);
    });
    store(static_cast<T*>(p.y) + e, from_acc<T>(most.best));
    if (p.argmax) store(static_cast<Index*>(p.argmax) + e, Index(most.argmax()));
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kPoolThreads, 5) max_pool2d_planes_backward_kernel(Geometry p, Pieces s) {
  FASTCNN_SHARED(unsigned char, shared);
  const int begin = blockIdx.x * s.size, end = s.total - begin < s.size ? s.total : begin + s.size;
  const Position first(s, begin), last(s, end - 1);
  const int span = (p.kh - 1) * p.dh + 1;
  int top, bottom, unused;
  covering(first.row, p.oh, span, p.by_sh, p.ph, top, unused);
  covering(last.row, p.oh, span, p.by_sh, p.ph, unused, bottom);
  // Behind the last window of a plane there may be rows of x: top == p.oh, or none between top and bottom.
  const int from = (first.plane * p.oh + (top < p.oh ? top : p.oh)) * p.ow;
  const int reach = (last.plane * p.oh + bottom) * p.ow - from, count = reach < 0 ? 0 : reach;
  const T* g = stage(shared, static_cast<const T*>(p.x) + from, count);
  // behind g, of which stage() begins at most 32 bytes late
  unsigned char* behind = shared + (count * int(sizeof(T)) + 63) / 32 * 32;
  const Index* argmax = stage(behind, static_cast<const Index*>(p.argmax) + from, count);
  await_stage();
  for (int e = begin + threadIdx.x; e < end; e += kPoolThreads) {
    const Position at(s, e);
    const int plane = at.plane * p.oh * p.ow - from;
    const auto peak = [&](int oh, int ow) {
      const int i = plane + oh * p.ow + ow;
      return Peak<T, Index, 1>{{{load_shared(argmax + i)}}, {{load_shared(g + i)}}};
    };
    Acc<T> sum[1];
    sum_of_windows<T, Index>(p, at.row, at.column, peak, sum);
    store(static_cast<T*>(p.y) + e, from_acc<T>(sum[0]));
  }
}

// The most rows that a block reads for `rows` rows of the map that it writes, in one plane or across planes' ends.
int64_t rows_read(const MaxPool2dParams& p, bool backward, int64_t rows) {
  const int64_t span = (p.kh - 1) * p.dh + 1, steps = rows - 1;
  if (backward) {
    const int64_t planes = ceil_div(steps, p.h) + 1;  // each with windows of its own before and behind the rows
    return std::min(planes * p.oh, (rows + planes * (span - 2)) / p.sh + planes);
  }
  const int64_t ends = ceil_div(steps, p.oh), over_end = std::max(p.h - (p.oh - 1) * p.sh, p.sh);
  return std::min((ends + 1) * p.h, (steps - ends) * p.sh + ends * over_end + span);
}

int64_t bytes_read(const MaxPool2dParams& p, bool backward, int64_t elements) {
  const int64_t columns = backward ? p.w : p.ow, rows = (elements + columns - 2) / columns + 1;
  const int64_t index = p.wide_argmax ? 4 : 1, each = size_of(p.dtype) + (backward ? index : 0);
  return rows_read(p, backward, rows) * (backward ? p.ow : p.w) * each + 2 * 64;
}

Pieces pieces(const MaxPool2dParams& p, bool backward) {
  Pieces s{};
  s.rows = int(backward ? p.h : p.oh), s.columns = int(backward ? p.w : p.ow);
  const int64_t total = p.n * p.c * s.rows * s.columns;
  // Smaller ones where the GPU would not be busy: they read the rows twice that windows share.
  const int64_t enough = std::max(ceil_div(total, kEnoughBlocks), kPoolFewest);
  int64_t size = std::min<int64_t>(kPoolElements, ceil_div(enough, kWarp) * kWarp);
  while (size > kWarp && bytes_read(p, backward, size) > kPoolBytes) size -= kWarp;
  s.total = int(total), s.size = int(size), s.bytes = bytes_read(p, backward, size);
  s.by_rows = Divisor(s.rows), s.by_columns = Divisor(s.columns);
  return s;
}

Launch configuration(const Pieces& s, void* stream) {
  return {dim3(unsigned(s.blocks())), dim3(kPoolThreads), size_t(s.bytes), stream};
}

}  // namespace

bool max_pool2d_planes_fit(const MaxPool2dParams& p, bool backward) {
  Geometry g;
  const int64_t planes = p.n * p.c, most = kMostBlocks - kPoolElements;
  if (p.channels_last || p.sh > (p.kh - 1) * p.dh + 1 || to_device(p, g)) return false;
  if (planes * p.h * p.w > most || planes * p.oh * p.ow > most || planes * p.oh * p.ow == 0) return false;
  // Fewer than two rows of windows a block would read most rows twice.
  const Pieces s = pieces(p, backward);
  return s.bytes <= kPoolBytes && s.size >= std::min<int64_t>(2 * s.columns, s.total);
}

const char* max_pool2d_planes(const MaxPool2dParams& p, void* stream) {
  Geometry g;
  if (const char* error = to_device(p, g)) return error;
  const Pieces s = pieces(p, false);
  const Launch l = configuration(s, stream);
  return with_types(p, [&](auto element, auto index) {
    using T = decltype(element);
    using Index = decltype(index);
    if constexpr (sizeof(Index) == 1) {
      if (p.kh == 3 && p.kw == 3) return launch<max_pool2d_planes_kernel<T, Index, 3>>(l, g, s);
      if (p.kh == 2 && p.kw == 2) return launch<max_pool2d_planes_kernel<T, Index, 2>>(l, g, s);
    }
    return launch<max_pool2d_planes_kernel<T, Index, 0>>(l, g, s);
  });
}

const char* max_pool2d_planes_backward(const MaxPool2dParams& p, void* stream) {
  Geometry g;
  if (const char* error = to_device(p, g)) return error;
  const Pieces s = pieces(p, true);
  return with_types(p, [&](auto element, auto index) {
    return launch<max_pool2d_planes_backward_kernel<decltype(element), decltype(index)>>(configuration(s, stream), g,
                                                                                         s);
  });
}

}  // namespace fastcnn::cuda
