#include "ops/max_unpool2d.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Some channels of an image, or a plane: element i of channel j at i*step + j.
struct Part {
  int64_t small, large, step, channels;  // offsets in tensors of `pixels` and of `places`

  Part(const MaxUnpool2dParams& p, int64_t task) {
    const int64_t n = task / p.blocks(), c = task % p.blocks() * p.block;
    small = p.channels_last ? n * p.c * p.pixels + c : (n * p.c + c) * p.pixels;
    large = p.channels_last ? n * p.c * p.places + c : (n * p.c + c) * p.places;
    step = p.channels_last ? p.c : 1;
    channels = p.c - c < p.block ? p.c - c : p.block;
  }
};

// f(offset of the index, its value times `step` plus its channel) for the part's indices, in raster order.
template <class F>
inline __attribute__((always_inline)) void each_index(const MaxUnpool2dParams& p, const Part& part, int64_t step,
                                                      const F& f) {
  const int64_t* indices = p.indices + part.small;
  for (int64_t i = 0; i < p.pixels; ++i)
    for (int64_t j = 0; j < part.channels; ++j) {
      const int64_t at = indices[i * part.step + j];
      if (__builtin_expect(uint64_t(at) >= uint64_t(p.places), 0))
        __atomic_store_n(p.invalid, at, __ATOMIC_RELAXED);
      else
        f(i * part.step + j, at * step + j);
    }
}

template <class U>
void clear(const MaxUnpool2dParams& p, const Part& part, U* to, int64_t step) {
  if (part.channels == step) return (void)__builtin_memset(to, 0, p.places * step * sizeof(U));
  for (int64_t i = 0; i < p.places; ++i) __builtin_memset(to + i * step, 0, part.channels * sizeof(U));
}

template <class T>
void unpool(const MaxUnpool2dParams& p, float* sums, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Part part(p, task);
    const T* x = static_cast<const T*>(p.x) + part.small;
    T* y = static_cast<T*>(p.y) + part.large;
    if constexpr (sizeof(T) == 2)
      if (p.sum) {
        clear(p, part, sums, part.channels);
        each_index(p, part, part.channels, [&](int64_t from, int64_t to) { sums[to] += get(x[from]); });
        for (int64_t i = 0; i < p.places; ++i)
          for (int64_t j = 0; j < part.channels; ++j) put(y + i * part.step + j, sums[i * part.channels + j]);
        continue;
      }
    clear(p, part, y, part.step);
    if constexpr (sizeof(T) > 2)
      if (p.sum) {
        each_index(p, part, part.step, [&](int64_t from, int64_t to) { y[to] += x[from]; });
        continue;
      }
    each_index(p, part, part.step, [&](int64_t from, int64_t to) { y[to] = x[from]; });
  }
}

template <class T>
void gather(const MaxUnpool2dParams& p, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Part part(p, task);
    const T* x = static_cast<const T*>(p.x) + part.large;
    T* y = static_cast<T*>(p.y) + part.small;
    each_index(p, part, part.step, [&](int64_t to, int64_t from) { y[to] = x[from]; });
  }
}

}  // namespace

void max_unpool2d(const MaxUnpool2dParams& p, float* sums, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { unpool<decltype(t)>(p, sums, begin, end); });
}

void max_unpool2d_gather(const MaxUnpool2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { gather<decltype(t)>(p, begin, end); });
}

}  // namespace fastcnn::FASTCNN_ISA
