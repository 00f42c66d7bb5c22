#include "cpu/max_pool2d_argmax.h"
#include "ops/max_pool2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Adds up, in raster order of the windows, each input position's gradients, so that both ways below give equal bits.

// Where position i*kw+j lies relative to its window's start: i*dh rows down, j*dw columns right, and in elements.
struct Place {
  int64_t down, right, offset;

  Place(const MaxPool2dParams& p, int64_t at)
      : down(at / p.kw * p.dh), right(at % p.kw * p.dw), offset(down * p.w + right) {}
};

// A window at the border may name a place outside the input, if all that it holds inside is its padding.
inline bool inside(const MaxPool2dParams& p, int64_t h, int64_t w) {
  return uint64_t(h) < uint64_t(p.h) && uint64_t(w) < uint64_t(p.w);
}

// Where most windows do not have their maximum at a given place (NCHW, or large windows), each window looks for its
// place. A task holds a plane, or of NHWC some channels of an image.
template <class T, class Index, bool nhwc>
void scatter(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr bool in_place = sizeof(T) == sizeof(A);
  constexpr int64_t held = nhwc ? kScatterChannels : 1;
  const int64_t step = nhwc ? p.c : 1, blocks = nhwc ? p.scatter_blocks() : p.c;
  // Positions in memory's width are few enough for a table; of wide ones each is worked out.
  constexpr int64_t tabled = sizeof(Index) == 1 ? 256 : 0;
  Place* places = parts.take<Place>(tabled);
  int64_t* offsets = parts.take<int64_t>(tabled);
  for (int64_t at = 0; at < tabled && at < p.kh * p.kw; ++at)
    places[at] = Place(p, at), offsets[at] = places[at].offset;
  // Windows whose columns all lie inside.
  const int64_t whole_from = (p.pw + p.sw - 1) / p.sw;
  const int64_t slack = p.w - 1 + p.pw - (p.kw - 1) * p.dw, whole_to = slack < 0                 ? 0
                                                                       : slack / p.sw + 1 < p.ow ? slack / p.sw + 1
                                                                                                 : p.ow;
  A* sums = in_place ? nullptr : parts.take<A>(p.h * p.w * held);

  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, c0 = task % blocks * held;
    const int64_t channels = nhwc && p.c - c0 < held ? p.c - c0 : held;
    const int64_t plane = nhwc ? n * p.c : n * p.c + c0, channel = nhwc ? c0 : 0;
    const T* g = static_cast<const T*>(p.x) + plane * p.oh * p.ow + channel;
    const Index* argmax = static_cast<const Index*>(p.argmax) + plane * p.oh * p.ow + channel;
    T* gx = static_cast<T*>(p.y) + plane * p.h * p.w + channel;
    A* to = in_place ? reinterpret_cast<A*>(gx) : sums;
    const int64_t to_step = in_place ? step : held;
    if (!nhwc)
      __builtin_memset(to, 0, p.h * p.w * sizeof(A));
    else
      for (int64_t i = 0; i < p.h * p.w; ++i) __builtin_memset(to + i * to_step, 0, channels * sizeof(A));
    for (int64_t oh = 0; oh < p.oh; ++oh) {
      const int64_t h0 = oh * p.sh - p.ph, line = oh * p.ow;
      const auto border = [&](int64_t ow) {
        const int64_t o = (line + ow) * step, w0 = ow * p.sw - p.pw;
        for (int64_t c = 0; c < channels; ++c) {
          const Place at = tabled ? places[argmax[o + c]] : Place(p, argmax[o + c]);
          if (inside(p, h0 + at.down, w0 + at.right)) to[(h0 * p.w + w0 + at.offset) * to_step + c] += get(g[o + c]);
        }
      };
      const bool rows_whole = tabled && h0 >= 0 && h0 + (p.kh - 1) * p.dh < p.h && whole_to > whole_from;
      const int64_t from = rows_whole ? whole_from : p.ow, until = rows_whole ? whole_to : p.ow;
      for (int64_t ow = 0; ow < from; ++ow) border(ow);
      A* window = to + (h0 * p.w + from * p.sw - p.pw) * to_step;
      for (int64_t ow = from; ow < until; ++ow, window += p.sw * to_step) {
        const int64_t o = (line + ow) * step;
        for (int64_t c = 0; c < channels; ++c) window[offsets[argmax[o + c]] * to_step + c] += get(g[o + c]);
      }
      for (int64_t ow = until; ow < p.ow; ++ow) border(ow);
    }
    if (in_place) continue;
    for (int64_t i = 0; i < p.h * p.w; ++i)
      for (int64_t c = 0; c < channels; ++c) put(gx + i * step + c, sums[i * held + c]);
  }
}

// Where few windows cover a place (NHWC), each place asks those: vectors of channels, every element written once.
template <class T, class Index>
void by_place(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
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

template <class T, class Index>
void gather(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const int64_t planes = p.channels_last ? p.c : 1;
  for (int64_t row = begin; row < end; ++row) {  // of y
    const T* x = static_cast<const T*>(p.x) + row / p.oh * p.h * p.w * planes;
    for (int64_t q = 0; q < p.ow; ++q)
      for (int64_t c = 0; c < planes; ++c) {
        const int64_t o = (row * p.ow + q) * planes + c;
        const Place at(p, static_cast<const Index*>(p.argmax)[o]);
        const int64_t h = row % p.oh * p.sh - p.ph + at.down, w = q * p.sw - p.pw + at.right;
        static_cast<T*>(p.y)[o] = inside(p, h, w) ? x[(h * p.w + w) * planes + c] : T{};
      }
  }
}

template <class T, class Index>
void backward(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  if (!p.channels_last)
    scatter<T, Index, false>(p, parts, begin, end);
  else
    p.scatters() ? scatter<T, Index, true>(p, parts, begin, end) : by_place<T, Index>(p, parts, begin, end);
}

}  // namespace

void max_pool2d_backward(const MaxPool2dParams& p, char* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.wide_argmax ? backward<T, int32_t>(p, {scratch}, begin, end) : backward<T, uint8_t>(p, {scratch}, begin, end);
  });
}

void max_pool2d_gather(const MaxPool2dParams& p, char*, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    p.wide_argmax ? gather<T, int32_t>(p, begin, end) : gather<T, uint8_t>(p, begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
