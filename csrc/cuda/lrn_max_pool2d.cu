#include <algorithm>
#include <initializer_list>

#include "cuda/lrn_max_pool2d.cuh"
#include "cuda/lrn_max_pool2d_rows.cuh"

namespace fastcnn::cuda {
namespace {

// Rows of x pass through shared memory once; of the normalized ones those stay that a later row of windows needs: row r
// in slot r % slots, the slots side by side as pixels. A band of y leaves by way of the place of x's row.
template <class T, class Index, class Shape>
__global__ void __launch_bounds__(kFusedThreads, 4) lrn_max_pool2d_kernel(Strip s, Shape shape) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);
  const Part part(s);
  const MaxPool2dGeometry& p = s.pool;
  const int lo = at_least(part.c0 - s.before, 0), hi = at_most(part.c1 + s.after, int(s.channels));
  const int own = part.c1 - part.c0, held = hi - lo;
  const Place in_x(s, p.w, lo, held), in_rows(s, int(s.by_slots.d) * p.w, part.c0, own);
  const Place in_y(s, s.band * p.ow, part.c0, own);
  T* normalized = reinterpret_cast<T*>(x + s.row_elements);
  Index* argmax = reinterpret_cast<Index*>(x + in_y.size);
  const T* xs = part.of(static_cast<const T*>(s.x), s.x_steps);
  T* ys = part.of(static_cast<T*>(p.y), s.y_steps);
  const A alpha = A(s.alpha), k = A(s.k);
  const auto slot = [&](int h) {  // its first pixel
    uint32_t rest;
    s.by_slots.divide(h, rest);
    return int(rest) * p.w;
  };
  const int end = at_most(part.row + s.length, p.oh);
  int next = at_least(part.row * p.sh - p.ph, 0);  // the first row of x that is not yet normalized
  for (int top = part.row; top < end; top += s.band) {
    const int rows = at_most(s.band, end - top), h0 = top * p.sh - p.ph;
    const int stop = at_most(h0 + (rows - 1) * p.sh + (p.kh - 1) * p.dh + 1, p.h);
    next = at_least(next, at_least(h0, 0));  // a stride beyond the window leaves rows out
    for (; next < stop; ++next) {
      const Row<const T> in(s, xs, s.x_steps, int64_t(next) * p.w, p.w, lo, held);
      in.each(s.in, [&](bool exists, const T* from, int w, int c) {
        const T v = load_if(exists, from);
        if (exists) store_shared(x + in_x.at(w, c), rectified(to_acc(v), s.relu));
      });
      sync_block();
      const int row = slot(next);
      each_run(s, part.c0, part.c1, [&](int w, int begin, int end) {
        typename Shape::template Channels<A> around(x + w * in_x.pixel, in_x.channel, lo, hi, begin, s.before, s.after);
        T* to = normalized + in_rows.at(row + w, begin);
        for (int c = begin; c < end; ++c, to += in_rows.channel) {
          around.next();
          const A sum = around.sum([](A v) { return v * v; });
          store_shared(to, from_acc<T>(shape.power.over(around.centre(), k + alpha * sum)));
        }
      });
      sync_block();
    }
    each_element(s, rows * p.ow, part.c0, own, [&](int pixel, int c) {
      Maximum<A> most;
      const auto take = [&](int h, int w, int position) {
        most.take(to_acc(load_shared(normalized + in_rows.at(slot(h) + w, c))), position);
      };
      uint32_t ow;
      const int oh = top + int(s.by_out_width.divide(pixel, ow));
      const int h0 = oh * p.sh - p.ph, w0 = int(ow) * p.sw - p.pw;
      if (Shape::kWindow && h0 >= 0 && h0 + p.kh <= p.h && w0 >= 0 && w0 + p.kw <= p.w)
        for_each_position<Shape::kWindow, true>(p, oh, int(ow), take);
      else
        for_each_position<Shape::kWindow>(p, oh, int(ow), take);
      store_shared(x + in_y.at(pixel, c), most.best);
      if (p.argmax) store_shared(argmax + in_y.at(pixel, c), Index(most.argmax()));
    });
    sync_block();
    const Row<T> out(s, ys, s.y_steps, int64_t(top) * p.ow, rows * p.ow, part.c0, own);
    out.each(s.out, [&](bool exists, T* to, int pixel, int c) {
      const int e = in_y.at(pixel, c);
      store_if(exists, to, from_acc<T>(load_shared_if(exists, x + e)));
      if (!p.argmax) return;
      Index* index = static_cast<Index*>(p.argmax) + (to - static_cast<T*>(p.y));
      store_if(exists, index, load_shared_if(exists, argmax + e));
    });
    sync_block();  // before a row is overwritten
  }
}

// A row of x at a time: the gradient of its normalized values from the windows that hold them, rounded as the op
// between would store it, then the normalization's own gradient. Channel c needs the terms of [c - after, c + before],
// and those the x around them. Row r of the windows stays in slot r % slots while rows of x need it, the slots side by
// side as pixels.
template <class T, class Index, class Shape>
__global__ void __launch_bounds__(kFusedThreads, 4) lrn_max_pool2d_backward_kernel(Strip s, Shape shape) {
  using A = Acc<T>;
  using Channels = typename Shape::template Channels<A>;
  FASTCNN_SHARED(A, x);
  const Part part(s);
  const MaxPool2dGeometry& p = s.pool;
  const int from = at_least(part.c0 - s.after, 0), to = at_most(part.c1 + s.before, int(s.channels));
  const int lo = at_least(from - s.before, 0), hi = at_most(to + s.after, int(s.channels));
  const int own = part.c1 - part.c0, wide = to - from, held = hi - lo, span = (p.kh - 1) * p.dh + 1;
  const int ring = int(s.by_slots.d) * p.ow;
  const Place in_x(s, p.w, lo, held), in_terms(s, p.w, from, wide), in_g(s, ring, from, wide);
  A* direct = x + in_x.size;
  A* shared = direct + in_terms.size;
  A* g = shared + in_terms.size;
  Index* argmax = reinterpret_cast<Index*>(g + in_g.size);
  const T* xs = part.of(static_cast<const T*>(s.x), s.x_steps);
  const T* gs = part.of(static_cast<const T*>(p.x), s.y_steps);
  T* dx = part.of(static_cast<T*>(s.dx), s.x_steps);
  const A alpha = A(s.alpha), k = A(s.k), factor = A(s.factor);
  const auto slot = [&](int oh) {  // its first pixel
    uint32_t rest;
    s.by_slots.divide(oh, rest);
    return int(rest) * p.ow;
  };
  const int end = at_most(part.row + s.length, p.h);
  int next = 0, top, last;  // next: the first row of windows that was not yet loaded; last: behind the strip's
  covering(end - 1, p.oh, span, p.by_sh, p.ph, top, last);
  for (int h = part.row; h < end; ++h) {
    const Row<const T> in(s, xs, s.x_steps, int64_t(h) * p.w, p.w, lo, held);
    in.each(s.in, [&](bool exists, const T* at, int w, int c) {
      const T v = load_if(exists, at);
      if (exists) store_shared(x + in_x.at(w, c), rectified(to_acc(v), s.relu));
    });
    int bottom;
    covering(h, p.oh, span, p.by_sh, p.ph, top, bottom);
    next = at_least(next, top);
    while (next < bottom) {
      const int rows = at_most(s.band, last - next), first = slot(next);
      const Row<const T> band(s, gs, s.y_steps, int64_t(next) * p.ow, rows * p.ow, from, wide);
      band.each(s.out, [&](bool exists, const T* at, int pixel, int c) {
        const T v = load_if(exists, at);
        const Index where = load_if(exists, static_cast<const Index*>(p.argmax) + (at - static_cast<const T*>(p.x)));
        if (!exists) return;
        const int place = first + pixel, e = in_g.at(place < ring ? place : place - ring, c);
        store_shared(g + e, to_acc(v));
        store_shared(argmax + e, where);
      });
      next += rows;
    }
    sync_block();
    each_run(s, from, to, [&](int w, int begin, int end) {
      Channels around(x + w * in_x.pixel, in_x.channel, lo, hi, begin, s.before, s.after);
      for (int c = begin; c < end; ++c) {
        around.next();
        const auto peak = [&](int oh, int ow) {
          const int e = in_g.at(slot(oh) + ow, c);
          return Peak<A, Index, 1>{{{load_shared(argmax + e)}}, {{load_shared(g + e)}}};
        };
        A sum_of_g[1];
        sum_of_windows<A, Index, Shape::kDilated>(p, h, w, peak, sum_of_g);
        const A scale = k + alpha * around.sum([](A v) { return v * v; });
        const Terms<A> t = terms(to_acc(from_acc<T>(sum_of_g[0])), around.centre(), scale, shape.power);
        store_shared(direct + in_terms.at(w, c), t.own);
        store_shared(shared + in_terms.at(w, c), t.shared);
      }
    });
    sync_block();
    each_run(s, part.c0, part.c1, [&](int w, int begin, int end) {
      Channels around(shared + w * in_terms.pixel, in_terms.channel, from, to, begin, s.after, s.before);
      for (int c = begin; c < end; ++c) {
        around.next();
        A* here = direct + in_terms.at(w, c);
        const A xc = load_shared(x + in_x.at(w, c)), sum = around.sum([](A v) { return v; });
        store_shared(here, s.relu && xc == 0 ? A(0) : load_shared(here) - factor * xc * sum);
      }
    });
    sync_block();
    const Row<T> out(s, dx, s.x_steps, int64_t(h) * p.w, p.w, part.c0, own);
    out.each(s.in, [&](bool exists, T* at, int w, int c) {
      store_if(exists, at, from_acc<T>(load_shared_if(exists, direct + in_terms.at(w, c))));
    });
  }
}

int64_t span(const MaxPool2dParams& p) { return (p.kh - 1) * p.dh + 1; }

// Rows of y that move together: a narrow one would leave much of its first and last sector to its neighbours.
int64_t band(const MaxPool2dParams& p) {
  return p.channels_last || p.sh > span(p) ? 1 : std::clamp<int64_t>(kFusedBand / p.w, 1, p.oh);
}

// What the forward kernel keeps of a row of x, or then of a band of y and its argmax, for `chunk` channels:
// accumulators.
int64_t row_elements(const LocalResponseNormParams& n, const MaxPool2dParams& p, int64_t chunk) {
  const int64_t accumulator = accumulator_size(p.dtype), index = p.wide_argmax ? 4 : 1;
  const int64_t held = std::min(chunk + n.before + n.after, n.channels);
  const int64_t out = elements_of(p.channels_last, band(p) * p.ow, chunk);
  return std::max(elements_of(p.channels_last, p.w, held), ceil_div(out * (accumulator + index), accumulator));
}

// Rows of normalized values, or of windows, that stay.
int64_t slots(const MaxPool2dParams& p, bool backward) {
  const int64_t ahead = band(p) - 1;
  return std::max<int64_t>(
      1, backward ? std::min(ceil_div(span(p), p.sh) + ahead, p.oh) : std::min(span(p) + ahead * p.sh, p.h));
}

// Bytes of shared memory for `chunk` channels.
int64_t shared_bytes(const LocalResponseNormParams& n, const MaxPool2dParams& p, bool backward, int64_t chunk) {
  const int64_t around = n.before + n.after, accumulator = accumulator_size(p.dtype), index = p.wide_argmax ? 4 : 1;
  const auto elements = [&](int64_t pixels, int64_t channels) {
    return elements_of(p.channels_last, pixels, channels);
  };
  if (!backward)
    return accumulator * row_elements(n, p, chunk) + size_of(p.dtype) * elements(slots(p, false) * p.w, chunk);
  const int64_t wide = std::min(chunk + around, n.channels), held = std::min(chunk + 2 * around, n.channels);
  return accumulator * (elements(p.w, held) + 2 * elements(p.w, wide)) +
         elements(slots(p, true) * p.ow, wide) * (accumulator + index);
}

const char* run(const LocalResponseNormParams& n, const MaxPool2dParams& p, bool backward, void* stream) {
  Strip s{};
  if (const char* error = to_device(p, s.pool)) return error;
  int64_t chunk = n.channels;
  while (chunk > 1 && shared_bytes(n, p, backward, chunk) > kSharedBytes) --chunk;
  const int64_t chunks = (n.channels + chunk - 1) / chunk;
  chunk = (n.channels + chunks - 1) / chunks;  // of equal size
  s.x = n.x, s.dx = n.out;
  s.channels = n.channels, s.towers = p.c / n.channels, s.channels_last = p.channels_last;
  const auto steps = [&](int64_t pixels) {
    return p.channels_last ? Steps{p.c * pixels, p.c, 1} : Steps{p.c * pixels, 1, pixels};
  };
  s.x_steps = steps(p.h * p.w), s.y_steps = steps(p.oh * p.ow), s.band = int(band(p));
  // Of `rows` rows of this width, in all of the tensors.
  const auto lines = [&](int64_t rows, int64_t width, std::initializer_list<const void*> tensors) {
    const int64_t sector = kSectorBytes / size_of(p.dtype), around = (backward ? 2 : 1) * (n.before + n.after);
    bool whole = p.channels_last ? chunks == 1 && n.channels % sector == 0 : width % sector == 0;
    for (const void* t : tensors) whole = whole && aligned(t, kSectorBytes);
    return Lines(p.channels_last ? std::min(chunk + around, n.channels) : rows * width, size_of(p.dtype), whole);
  };
  s.in = lines(1, p.w, {n.x, backward ? n.out : n.x}), s.out = lines(s.band, p.ow, {backward ? p.x : p.y});
  s.row_elements = int(row_elements(n, p, chunk));
  s.chunk = int(chunk), s.before = int(n.before), s.after = int(n.after);
  s.relu = n.relu, s.alpha = n.alpha, s.k = n.k, s.factor = 2 * n.alpha * n.beta;
  s.runs = int(std::max<int64_t>(1, kFusedThreads / p.w));
  s.by_width = Divisor(p.w), s.by_out_width = Divisor(p.ow), s.by_slots = Divisor(slots(p, backward));
  const int64_t rows = backward ? p.h : p.oh, strips = p.n * s.towers * chunks;
  const int64_t cuts = strips < kEnoughBlocks ? (kEnoughBlocks + strips - 1) / strips : 1;
  s.length = int(rows / cuts < kLeastRows ? (rows < kLeastRows ? rows : kLeastRows) : rows / cuts);
  s.by_chunks = Divisor(chunks), s.by_towers = Divisor(s.towers);
  s.by_lengths = Divisor((rows + s.length - 1) / s.length);
  const int64_t blocks = strips * s.by_lengths.d;
  if (blocks > kMostBlocks) return "the tensor is too large for one grid";
  const Launch l{dim3(unsigned(blocks)), dim3(kFusedThreads), size_t(shared_bytes(n, p, backward, chunk)), stream};
  return with_types(p, [&](auto element, auto index) {
    using T = decltype(element);
    using Index = decltype(index);
    const auto start = [&](auto shape) {
      using Shape = decltype(shape);
      return backward ? launch<lrn_max_pool2d_backward_kernel<T, Index, Shape>>(l, s, shape)
                      : launch<lrn_max_pool2d_kernel<T, Index, Shape>>(l, s, shape);
    };
    if constexpr (sizeof(T) < 8)
      if (n.beta == 0.75 && n.before == 2 && n.after == 2 && p.kh == 3 && p.kw == 3 && p.dh == 1 && p.dw == 1)
        return start(PublishedShape{});
    return with_power<T>(n.beta, [&](auto power) { return start(AnyShape<decltype(power)>{power}); });
  });
}

}  // namespace

bool lrn_max_pool2d_fits(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, bool backward) {
  return shared_bytes(norm, pool, backward, 1) <= kMostSharedBytes;
}

const char* lrn_max_pool2d(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, void* stream) {
  return run(norm, pool, false, stream);
}
const char* lrn_max_pool2d_backward(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, void* stream) {
  return run(norm, pool, true, stream);
}

}  // namespace fastcnn::cuda
