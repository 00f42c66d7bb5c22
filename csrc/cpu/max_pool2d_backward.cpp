#include "cpu/max_pool2d_argmax.h"
#include "ops/max_pool2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Each input position adds up, in raster order of the windows, the gradients of those whose argmax it is: no atomics,
// every element of gx written once, and positions that no window can have are never followed.

template <class T, class Index>
void backward_nhwc(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  struct Covering {  // a window that may have its maximum at the place at hand
    int64_t offset;
    Lane<A> position;
  };
  Covering* covering = parts.take<Covering>(p.most_covering());

  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const int64_t image = row / p.h * p.oh * p.ow, h = row % p.h;
    const T* g = static_cast<const T*>(p.x) + image * p.c + c0;
    const Index* argmax = static_cast<const Index*>(p.argmax) + image * p.c + c0;
    for (int64_t w = 0; w < p.w; ++w) {
      int64_t count = 0;
      for (int64_t oh = p.rows[h].begin; oh < p.rows[h].end; ++oh) {
        const int64_t down = h + p.ph - oh * p.sh;  // i*dh
        if (p.dh > 1 && down % p.dh) continue;
        for (int64_t ow = p.columns[w].begin; ow < p.columns[w].end; ++ow) {
          const int64_t right = w + p.pw - ow * p.sw;  // j*dw
          if (p.dw > 1 && right % p.dw) continue;
          const int64_t i = p.dh > 1 ? down / p.dh : down, j = p.dw > 1 ? right / p.dw : right;
          covering[count++] = {(oh * p.ow + ow) * p.c, Lane<A>(i * p.kw + j)};
        }
      }
      T* gx = static_cast<T*>(p.y) + (row * p.w + w) * p.c + c0;
      each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
        V<A> sum{};
        for (int64_t k = 0; k < count; ++k) {
          const int64_t o = covering[k].offset + c;
          const VI<A> mine = load_index<A>(argmax + o, lanes) == VI<A>{} + covering[k].position;
          sum += mine ? load_part(g + o, lanes) : V<A>{};
        }
        store_part(gx + c, sum, lanes);
      });
    }
  }
}

// The rows of g and argmax that a row of gx needs are widened into scratch, with no gradient on both sides; then
// consecutive places of one phase read consecutive windows.
template <class T, class Index>
void backward_nchw(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using I = Lane<A>;
  constexpr int lanes = kLanes<T>;
  const PhasedRow r = p.row();
  const int64_t held = p.kh < p.oh ? p.kh : p.oh;
  const int64_t lead = (p.kw - 1) * p.dw / r.s, ld = lead + r.ld + kMostLanes;
  A *row = parts.take<A>(r.size()), *phases = parts.take<A>(r.size()), *gradients = parts.take<A>(held * ld);
  I* positions = parts.take<I>(held * ld);
  int64_t *phase = parts.take<int64_t>(p.kw), *back = parts.take<int64_t>(p.kw);
  for (int64_t j = 0; j < p.kw; ++j) phase[j] = j * p.dw % r.s, back[j] = j * p.dw / r.s;
  for (int64_t i = 0; i < held * ld; ++i) gradients[i] = 0, positions[i] = -1;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / p.h, h = task % p.h;
    int64_t count = 0;  // rows of windows that hold row h
    for (int64_t oh = p.rows[h].begin; oh < p.rows[h].end; ++oh) {
      const int64_t down = h + p.ph - oh * p.sh;  // i*dh
      if (p.dh > 1 && down % p.dh) continue;
      const int64_t o = (plane * p.oh + oh) * p.ow;
      const I first = I((p.dh > 1 ? down / p.dh : down) * p.kw);
      each_vector<lanes>(p.ow, [&](int64_t q, int n) {
        const int64_t to = count * ld + lead + q;
        store_part(gradients + to, load_part(static_cast<const T*>(p.x) + o + q, n), n);
        store_lanes<A>(positions + to, load_index<A>(static_cast<const Index*>(p.argmax) + o + q, n) - first, n);
      });
      ++count;
    }
    for (int64_t f = 0; f < r.s; ++f)
      for (int64_t t = 0; t * r.s < p.w + p.pw; t += lanes) {
        V<A> sum{};
        for (int64_t k = 0; k < count; ++k)
          for (int64_t j = p.kw - 1; j >= 0; --j) {  // downwards: windows in the order of their columns
            if (phase[j] != f) continue;
            const int64_t at = k * ld + lead + t - back[j];
            sum += load_lanes<A>(positions + at) == VI<A>{} + I(j) ? load(gradients + at) : V<A>{};
          }
        store(phases + f * r.ld + t, sum);
      }
    const A* merged = merge(r, phases, row) + p.pw;
    T* gx = static_cast<T*>(p.y) + task * p.w;
    each_vector<lanes>(p.w, [&](int64_t w, int n) { store_part(gx + w, load(merged + w), n); });
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
      p.wide_argmax ? backward_nhwc<T, int32_t>(p, {scratch}, begin, end)
                    : backward_nhwc<T, uint8_t>(p, {scratch}, begin, end);
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
