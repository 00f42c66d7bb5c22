#include "cpu/max_pool2d_argmax.h"
#include "ops/max_pool2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Each input position adds up, in raster order of the windows, the gradients of those whose argmax it is: no atomics,
// every element of gx written once, and positions that no window can have are never followed.

template <class T, class Index>
void backward_nhwc(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const int64_t image = row / p.h * p.oh * p.ow, h = row % p.h;
    const T* g = static_cast<const T*>(p.x) + image * p.c + c0;
    const Index* argmax = static_cast<const Index*>(p.argmax) + image * p.c + c0;
    for (int64_t w = 0; w < p.w; ++w) {
      T* gx = static_cast<T*>(p.y) + (row * p.w + w) * p.c + c0;
      const Window rows = p.rows[h], columns = p.columns[w];
      each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
        V<A> sum{};
        for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
          const int64_t down = h + p.ph - oh * p.sh;  // i*dh
          if (p.dh > 1 && down % p.dh) continue;
          for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
            const int64_t right = w + p.pw - ow * p.sw;  // j*dw
            if (p.dw > 1 && right % p.dw) continue;
            const int64_t o = (oh * p.ow + ow) * p.c + c;
            const int64_t position = down / p.dh * p.kw + right / p.dw;
            const VI<A> mine = load_index<A>(argmax + o, lanes) == VI<A>{} + Lane<A>(position);
            sum += mine ? load_part(g + o, lanes) : V<A>{};
          }
        }
        store_part(gx + c, sum, lanes);
      });
    }
  }
}

// A vector of window gradients goes to up to kw places of the row, all of them consecutive in the row's phases.
template <class T, class Index>
void backward_nchw(const MaxPool2dParams& p, Scratch scratch, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const PhasedRow r = p.row();
  A *row = scratch.take<A>(r.size()), *phases = scratch.take<A>(r.size());
  int64_t* tap = scratch.take<int64_t>(p.kw);
  for (int64_t j = 0; j < p.kw; ++j) tap[j] = r.tap(j);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / p.h, h = task % p.h;
    for (int64_t i = 0; i < r.size(); ++i) phases[i] = 0;
    for (int64_t oh = p.rows[h].begin; oh < p.rows[h].end; ++oh) {
      const int64_t down = h + p.ph - oh * p.sh;
      if (down % p.dh) continue;
      const int64_t line = (plane * p.oh + oh) * p.ow, first = down / p.dh * p.kw;
      const T* g = static_cast<const T*>(p.x) + line;
      const Index* argmax = static_cast<const Index*>(p.argmax) + line;
      for (int64_t q = 0; q < p.ow; q += kLanes<T>) {
        const int lanes = p.ow - q < kLanes<T> ? int(p.ow - q) : kLanes<T>;
        const V<A> gradient = load_part(g + q, lanes);
        const VI<A> at = load_index<A>(argmax + q, lanes);
        for (int64_t j = p.kw - 1; j >= 0; --j) {  // downwards: windows reach a place in the order of their columns
          A* to = phases + tap[j] + q;
          const VI<A> here = at == VI<A>{} + Lane<A>(first + j);
          store(to, load(to) + (here ? gradient : V<A>{}));
        }
      }
    }
    const A* merged = merge(r, phases, row) + p.pw;
    T* gx = static_cast<T*>(p.y) + task * p.w;
    each_vector<kLanes<T>>(p.w, [&](int64_t w, int lanes) { store_part(gx + w, load(merged + w), lanes); });
  }
}

template <class T, class Index>
void gather(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const int64_t planes = p.channels_last ? p.channel_block : 1, step = p.channels_last ? p.c : 1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = p.channels_last ? task / p.blocks() : task;
    const int64_t c0 = p.channels_last ? task % p.blocks() * planes : 0;
    const T* x = static_cast<const T*>(p.x) + row / p.oh * p.h * p.w * step + c0;
    for (int64_t q = 0; q < p.ow; ++q)
      for (int64_t c = 0; c < planes && (c0 + c < p.c); ++c) {
        const int64_t o = (row * p.ow + q) * step + c0 + c, at = static_cast<const Index*>(p.argmax)[o];
        const int64_t h = row % p.oh * p.sh - p.ph + at / p.kw * p.dh, w = q * p.sw - p.pw + at % p.kw * p.dw;
        // A position outside x is no argmax that forward made; it reads as zero.
        const bool inside = at >= 0 && h >= 0 && h < p.h && w >= 0 && w < p.w;
        static_cast<T*>(p.y)[o] = inside ? x[(h * p.w + w) * step + c] : T{};
      }
  }
}

}  // namespace

void max_pool2d_backward(const MaxPool2dParams& p, char* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.channels_last)
      p.wide_argmax ? backward_nhwc<T, int32_t>(p, begin, end) : backward_nhwc<T, uint8_t>(p, begin, end);
    else
      p.wide_argmax ? backward_nchw<T, int32_t>(p, {scratch}, begin, end)
                    : backward_nchw<T, uint8_t>(p, {scratch}, begin, end);
  });
}

void max_pool2d_gather(const MaxPool2dParams& p, char*, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.wide_argmax ? gather<T, int32_t>(p, begin, end) : gather<T, uint8_t>(p, begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
