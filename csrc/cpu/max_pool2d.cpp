#include "ops/max_pool2d.h"

#include "cpu/max_pool2d_argmax.h"
#include "cpu/pool.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// NHWC without argmax: vectors of channels, column maxima kept while windows overlap.
template <class T>
void values_nhwc(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr A kLowest = -A(__builtin_inf());
  const int64_t slots = p.ring_slots();
  A* ring = parts.take<A>(slots * p.channel_block);
  int64_t* slot = parts.take<int64_t>(p.w);
  for (int64_t w = 0; w < p.w; ++w) slot[w] = w % slots * p.channel_block;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t n = row / p.oh, channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const Window rows = p.rows[row % p.oh];
    const T* x = static_cast<const T*>(p.x) + n * p.h * p.w * p.c + c0;
    T* y = static_cast<T*>(p.y) + row * p.ow * p.c + c0;
    slide(
        p.columns, p.ow, slot, ring,
        [&](int64_t w, A* column) {
          each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
            V<A> best = splat(kLowest);
            for (int64_t h = rows.first; h < rows.end; h += p.dh)
              best = max_or_nan(best, load_part(x + (h * p.w + w) * p.c + c, lanes));
            store_part(column + c, best, lanes);
          });
        },
        [&](int64_t q) {
          const Window columns = p.columns[q];
          each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
            V<A> best = splat(kLowest);
            for (int64_t w = columns.first; w < columns.end; w += p.dw)
              best = max_or_nan(best, load_part(ring + slot[w] + c, lanes));
            store_part(y + q * p.c + c, best, lanes);
          });
        });
  }
}

// The maximum of a K x K window inside the image; `pixel` and `row` are the steps to the next ones.
template <class T, int K>
inline __attribute__((always_inline)) V<Acc<T>> square_maximum(const T* x, int64_t pixel, int64_t row, int lanes) {
  using A = Acc<T>;
  const auto value = [=](int i)
                         __attribute__((always_inline)) { return load_part(x + i / K * row + i % K * pixel, lanes); };
  // `doubt` is NaN wherever a value is (and where infinities meet zeros or cancel): one look for all of them, and one
  // instruction for two of them.
  V<A> best = value(0), doubt = K % 2 ? best : V<A>{};
#pragma GCC unroll 4
  for (int i = K % 2; i < K * K; i += 2) {
    const V<A> u = value(i), v = value(i + 1);
    best = larger(larger(best, u), v);
    doubt += u * v;
  }
  if (__builtin_expect(any_nan<A>(doubt), false)) {
    best = value(0);
#pragma GCC unroll 1
    for (int i = 1; i < K * K; ++i) best = max_or_nan(best, value(i));
  }
  return best;
}

// NHWC without argmax, K x K windows: their values all come from L1, and an unrolled maximum of them costs less than
// the bookkeeping of shared columns.
template <class T, int K>
void values_nhwc_square(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t pixel = p.c, image_row = p.w * p.c, ow = p.ow;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t n = row / p.oh, channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const Window rows = p.rows[row % p.oh];
    const T* x = static_cast<const T*>(p.x) + n * p.h * image_row + c0;
    T* y = static_cast<T*>(p.y) + row * ow * pixel + c0;
    for (int64_t q = 0; q < ow; ++q, y += pixel) {
      const Window columns = p.columns[q];
      const T* corner = x + rows.first * image_row + columns.first * pixel;
      if (rows.end - rows.first == K && columns.end - columns.first == K) {
        each_vector<kLanes<T>>(channels, [=](int64_t c, int lanes) __attribute__((always_inline)) {
          store_part(y + c, square_maximum<T, K>(corner + c, pixel, image_row, lanes), lanes);
        });
      } else {
        each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
          V<A> best = load_part(corner + c, lanes);
          for (int64_t h = rows.first; h < rows.end; ++h)
            for (int64_t w = columns.first; w < columns.end; ++w)
              best = max_or_nan(best, load_part(x + h * image_row + w * pixel + c, lanes));
          store_part(y + c, best, lanes);
        });
      }
    }
  }
}

// NCHW without argmax: vectors of columns; first the maxima over the window's rows, then over its columns.
template <class T>
void values_nchw(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr A kLowest = -A(__builtin_inf());
  const PhasedRow r = p.row();
  A *row = parts.take<A>(r.size()), *split_row = parts.take<A>(r.size());
  int64_t* tap = parts.take<int64_t>(p.kw);
  for (int64_t j = 0; j < p.kw; ++j) tap[j] = r.tap(j);
  for (int64_t i = 0; i < r.size(); ++i) row[i] = kLowest;  // the padding, which no row below overwrites

  for (int64_t task = begin; task < end; ++task) {
    const Window rows = p.rows[task % p.oh];
    const T* x = static_cast<const T*>(p.x) + task / p.oh * p.h * p.w;
    T* y = static_cast<T*>(p.y) + task * p.ow;
    each_vector<kLanes<T>>(p.w, [&](int64_t w, int lanes) {
      V<A> best = splat(kLowest);
      for (int64_t h = rows.first; h < rows.end; h += p.dh) best = max_or_nan(best, load_part(x + h * p.w + w, lanes));
      store_part(row + p.pw + w, best, lanes);
    });
    const A* phases = split(r, row, split_row);
    each_vector<kLanes<T>>(p.ow, [&](int64_t q, int lanes) {
      V<A> best = load(phases + q);
      for (int64_t j = 1; j < p.kw; ++j) best = max_or_nan(best, load(phases + tap[j] + q));
      store_part(y + q, best, lanes);
    });
  }
}

// The scan of a window in raster order: the first maximum wins, and the last NaN.
template <class A>
struct Best {
  V<A> value = splat(-A(__builtin_inf()));
  VI<A> at;  // where all is -inf: the first position

  void see(V<A> v, VI<A> position) {
    const VI<A> larger = v > value;
    value = larger ? v : value;
    at = larger ? position : at;
    const VI<A> nan = v != v;
    value = nan ? v : value;
    at = nan ? position : at;
  }
};

// With argmax there is nothing to share between windows: comparing (value, position) pairs costs more than it saves.
template <class T, class Index>
void argmax_nhwc(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t n = row / p.oh, channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const Window rows = p.rows[row % p.oh];
    const int64_t first_row = (rows.first - (row % p.oh * p.sh - p.ph)) / p.dh;
    const T* x = static_cast<const T*>(p.x) + n * p.h * p.w * p.c + c0;
    for (int64_t q = 0; q < p.ow; ++q) {
      const Window columns = p.columns[q];
      const int64_t first = first_row * p.kw + (columns.first - (q * p.sw - p.pw)) / p.dw;
      const int64_t o = (row * p.ow + q) * p.c + c0;
      each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
        Best<A> best;
        best.at = VI<A>{} + Lane<A>(first);
        VI<A> line = best.at;
        for (int64_t h = rows.first; h < rows.end; h += p.dh, line += Lane<A>(p.kw)) {
          VI<A> position = line;
          for (int64_t w = columns.first; w < columns.end; w += p.dw, position += 1)
            best.see(load_part(x + (h * p.w + w) * p.c + c, lanes), position);
        }
        store_part(static_cast<T*>(p.y) + o + c, best.value, lanes);
        store_index(static_cast<Index*>(p.argmax) + o + c, best.at, lanes);
      });
    }
  }
}

template <class T, class Index>
void argmax_nchw(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using I = Lane<A>;
  const PhasedRow r = p.row();
  const int64_t held = p.kh < p.h ? p.kh : p.h;
  A *row = parts.take<A>(r.size()), *split_rows = parts.take<A>(held * r.size());
  I* first_column = parts.take<I>(p.ow + kMostLanes);
  int64_t* tap = parts.take<int64_t>(p.kw);
  for (int64_t j = 0; j < p.kw; ++j) tap[j] = r.tap(j);
  for (int64_t q = 0; q < p.ow; ++q) first_column[q] = I((p.columns[q].first - (q * p.sw - p.pw)) / p.dw);
  for (int64_t i = 0; i < held * r.size(); ++i) split_rows[i] = -A(__builtin_inf());
  for (int64_t i = 0; i < r.size(); ++i) row[i] = -A(__builtin_inf());

  for (int64_t task = begin; task < end; ++task) {
    const Window rows = p.rows[task % p.oh];
    const int64_t first_row = (rows.first - (task % p.oh * p.sh - p.ph)) / p.dh;
    const T* x = static_cast<const T*>(p.x) + task / p.oh * p.h * p.w;
    int64_t count = 0;  // rows of the window inside x
    for (int64_t h = rows.first; h < rows.end; h += p.dh, ++count) {
      // With one phase the padded row is its own phase.
      A* const phases = split_rows + count * r.size();
      A* const line = r.s == 1 ? phases : row;
      each_vector<kLanes<T>>(
          p.w, [&](int64_t w, int lanes) { store_part(line + p.pw + w, load_part(x + h * p.w + w, lanes), lanes); });
      split(r, line, phases);
    }
    each_vector<kLanes<T>>(p.ow, [&](int64_t q, int lanes) {
      Best<A> best;
      VI<A> line = VI<A>{} + I(first_row * p.kw);
      best.at = line + load_lanes<A>(first_column + q);
      for (int64_t i = 0; i < count; ++i, line += I(p.kw)) {
        VI<A> position = line;
        for (int64_t j = 0; j < p.kw; ++j, position += 1)
          best.see(load(split_rows + i * r.size() + tap[j] + q), position);
      }
      store_part(static_cast<T*>(p.y) + task * p.ow + q, best.value, lanes);
      store_index(static_cast<Index*>(p.argmax) + task * p.ow + q, best.at, lanes);
    });
  }
}

template <class T, class Index>
void with_argmax(const MaxPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  p.channels_last ? argmax_nhwc<T, Index>(p, begin, end) : argmax_nchw<T, Index>(p, parts, begin, end);
}

}  // namespace

void max_pool2d(const MaxPool2dParams& p, char* scratch, int64_t begin, int64_t end) {
  const Parts parts{scratch};
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    const bool square = p.kh == p.kw && p.dh == 1 && p.dw == 1;
    if (!p.argmax && !p.channels_last)
      values_nchw<T>(p, parts, begin, end);
    else if (!p.argmax && square && p.kh == 2)
      values_nhwc_square<T, 2>(p, begin, end);
    else if (!p.argmax && square && p.kh == 3)
      values_nhwc_square<T, 3>(p, begin, end);
    else if (!p.argmax)
      values_nhwc<T>(p, parts, begin, end);
    else
      p.wide_argmax ? with_argmax<T, int32_t>(p, parts, begin, end) : with_argmax<T, uint8_t>(p, parts, begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
