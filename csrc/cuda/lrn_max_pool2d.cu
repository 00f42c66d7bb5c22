#include <algorithm>
#include <initializer_list>

#include "cuda/lrn_max_pool2d.cuh"
#include "cuda/lrn_max_pool2d_rows.cuh"

namespace fastcnn::cuda {
namespace {

// Rows of x pass through shared memory once; of the normalized ones those stay that a later row of windows needs: row r
// in slot r % slots. A row of y leaves by way of the place of x's.
template <class T, class Index, class Shape>
__global__ void __launch_bounds__(kFusedThreads, 4) lrn_max_pool2d_kernel(Strip s, Shape shape) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);
  const Part part(s);
  const MaxPool2dGeometry& p = s.pool;
  const int lo = at_least(part.c0 - s.before, 0), hi = at_most(part.c1 + s.after, int(s.channels));
  const int own = part.c1 - part.c0, held = hi - lo;
  const Place in_x(s, p.w, lo, held), in_row(s, p.w, part.c0, own), in_y(s, p.ow, part.c0, own);
  const int row_size = s.channels_last ? p.w * in_row.pixel : own * p.w;
  T* normalized = reinterpret_cast<T*>(x + s.row_elements);
  Index* argmax = reinterpret_cast<Index*>(x + (s.channels_last ? p.ow * in_y.pixel : own * p.ow));  // behind y
  const int64_t tower = part.image * s.towers * s.channels;
  const T* xs = static_cast<const T*>(s.x) + tower * p.h * p.w + part.first * s.channel_step;
  T* ys = static_cast<T*>(p.y) + tower * p.oh * p.ow + part.first * s.out_channel_step;
  const A alpha = A(s.alpha), k = A(s.k);
  const auto slot = [&](int h) {
    uint32_t rest;
    s.by_slots.divide(h, rest);
    return normalized + int(rest) * row_size;
  };
  int next = at_least(part.row * p.sh - p.ph, 0);  // the first row of x that is not yet normalized
  for (int oh = part.row; oh < at_most(part.row + s.length, p.oh); ++oh) {
    const int h0 = oh * p.sh - p.ph, stop = at_most(h0 + (p.kh - 1) * p.dh + 1, p.h);
    next = at_least(next, at_least(h0, 0));  // a stride beyond the window leaves rows out
    for (; next < stop; ++next) {
      const Row<const T> in(s, xs, next, p.w, lo, held, s.pixel_step, s.channel_step);
      in.each(s.in, [&](bool exists, const T* from, int line, int i) {
        const T v = load_if(exists, from);
        if (exists) store_shared(x + line * in_x.line(s) + i, rectified(to_acc(v), s.relu));
      });
      sync_block();
      T* row = slot(next);
      each_run(s, part.c0, part.c1, [&](int w, int begin, int end) {
        typename Shape::template Channels<A> around(x + w * in_x.pixel, in_x.channel, lo, hi, begin, s.before, s.after);
        T* to = row + in_row.at(w, begin);
        for (int c = begin; c < end; ++c, to += in_row.channel) {
          around.next();
          const A sum = around.sum([](A v) { return v * v; });
          store_shared(to, from_acc<T>(shape.power.over(around.centre(), k + alpha * sum)));
        }
      });
      sync_block();
    }
    each_element(s, p.ow, part.c0, own, [&](int ow, int c) {
      Maximum<A> most;
      const auto take = [&](int h, int w, int position) {
        most.take(to_acc(load_shared(slot(h) + in_row.at(w, c))), position);
      };
      const int w0 = ow * p.sw - p.pw;
      if (Shape::kWindow && h0 >= 0 && h0 + p.kh <= p.h && w0 >= 0 && w0 + p.kw <= p.w)
        for_each_position<Shape::kWindow, true>(p, oh, ow, take);
      else
        for_each_position<Shape::kWindow>(p, oh, ow, take);
      store_shared(x + in_y.at(ow, c), most.best);
      if (p.argmax) store_shared(argmax + in_y.at(ow, c), Index(most.argmax()));
    });
    sync_block();
    const Row<T> out(s, ys, oh, p.ow, part.c0, own, s.out_pixel_step, s.out_channel_step);
    out.each(s.out, [&](bool exists, T* to, int line, int i) {
      const int e = line * in_y.line(s) + i;
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
// and those the x around them. Row r of the windows stays in slot r % slots while rows of x need it.
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
  const Place in_x(s, p.w, lo, held), in_terms(s, p.w, from, wide), in_g(s, p.ow, from, wide);
  const auto size = [&](int width, int channels) { return width * (s.channels_last ? odd(channels) : channels); };
  const int terms_size = size(p.w, wide), windows = size(p.ow, wide);
  A* direct = x + size(p.w, held);
  A* shared = direct + terms_size;
  A* g = shared + terms_size;
  Index* argmax = reinterpret_cast<Index*>(g + int(s.by_slots.d) * windows);
  const int64_t tower = part.image * s.towers * s.channels;
  const T* xs = static_cast<const T*>(s.x) + tower * p.h * p.w + part.first * s.channel_step;
  const T* gs = static_cast<const T*>(p.x) + tower * p.oh * p.ow + part.first * s.out_channel_step;
  T* dx = static_cast<T*>(s.dx) + tower * p.h * p.w + part.first * s.channel_step;
  const A alpha = A(s.alpha), k = A(s.k), factor = A(s.factor);
  const auto slot = [&](int oh) {
    uint32_t rest;
    s.by_slots.divide(oh, rest);
    return int(rest) * windows;
  };
  int next = 0;  // the first row of windows that was not yet loaded
  for (int h = part.row; h < at_most(part.row + s.length, p.h); ++h) {
    const Row<const T> in(s, xs, h, p.w, lo, held, s.pixel_step, s.channel_step);
    in.each(s.in, [&](bool exists, const T* at, int line, int i) {
      const T v = load_if(exists, at);
      if (exists) store_shared(x + line * in_x.line(s) + i, rectified(to_acc(v), s.relu));
    });
    int top, bottom;
    covering(h, p.oh, span, p.by_sh, p.ph, top, bottom);
    for (next = at_least(next, top); next < bottom; ++next) {
      const Row<const T> row(s, gs, next, p.ow, from, wide, s.out_pixel_step, s.out_channel_step);
      row.each(s.out, [&](bool exists, const T* at, int line, int i) {
        const T v = load_if(exists, at);
        const Index where = load_if(exists, static_cast<const Index*>(p.argmax) + (at - static_cast<const T*>(p.x)));
        if (!exists) return;
        const int e = slot(next) + line * in_g.line(s) + i;
        store_shared(g + e, to_acc(v));
        store_shared(argmax + e, where);
      });
    }
    sync_block();
    each_run(s, from, to, [&](int w, int begin, int end) {
      Channels around(x + w * in_x.pixel, in_x.channel, lo, hi, begin, s.before, s.after);
      for (int c = begin; c < end; ++c) {
        around.next();
        const auto peak = [&](int oh, int ow) {
          const int e = slot(oh) + in_g.at(ow, c);
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
    const Row<T> out(s, dx, h, p.w, part.c0, own, s.pixel_step, s.channel_step);
    const int first = in_terms.at(0, part.c0);
    out.each(s.in, [&](bool exists, T* at, int line, int i) {
      store_if(exists, at, from_acc<T>(load_shared_if(exists, direct + first + line * in_terms.line(s) + i)));
    });
  }
}

// Elements of a row in shared memory.
int64_t row_size(const MaxPool2dParams& p, int64_t width, int64_t channels) {
  return width * (p.channels_last ? odd(int(channels)) : channels);
}

// What the forward kernel keeps of a row of x, or then of y and its argmax, for `chunk` channels: accumulators.
int64_t row_elements(const LocalResponseNormParams& n, const MaxPool2dParams& p, int64_t chunk) {
  const int64_t accumulator = accumulator_size(p.dtype), index = p.wide_argmax ? 4 : 1;
  const int64_t held = std::min(chunk + n.before + n.after, n.channels);
  return std::max(row_size(p, p.w, held), ceil_div(row_size(p, p.ow, chunk) * (accumulator + index), accumulator));
}

// Rows of normalized values, or of windows, that stay.
int64_t slots(const MaxPool2dParams& p, bool backward) {
  const int64_t span = (p.kh - 1) * p.dh + 1;
  return std::max<int64_t>(1, backward ? std::min(ceil_div(span, p.sh), p.oh) : std::min(span, p.h));
}

// Bytes of shared memory for `chunk` channels.
int64_t shared_bytes(const LocalResponseNormParams& n, const MaxPool2dParams& p, bool backward, int64_t chunk) {
  const int64_t around = n.before + n.after, accumulator = accumulator_size(p.dtype), index = p.wide_argmax ? 4 : 1;
  if (!backward)
    return accumulator * row_elements(n, p, chunk) + size_of(p.dtype) * slots(p, false) * row_size(p, p.w, chunk);
  const int64_t wide = std::min(chunk + around, n.channels), held = std::min(chunk + 2 * around, n.channels);
  return accumulator * (row_size(p, p.w, held) + 2 * row_size(p, p.w, wide)) +
         slots(p, true) * row_size(p, p.ow, wide) * (accumulator + index);
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
  s.pixel_step = s.out_pixel_step = p.channels_last ? p.c : 1;
  s.channel_step = p.channels_last ? 1 : p.h * p.w, s.out_channel_step = p.channels_last ? 1 : p.oh * p.ow;
  // Of all tensors whose rows have this width.
  const auto lines = [&](int64_t width, std::initializer_list<const void*> tensors) {
    const int64_t sector = kSectorBytes / size_of(p.dtype), around = (backward ? 2 : 1) * (n.before + n.after);
    bool aligned = p.channels_last ? chunks == 1 && n.channels % sector == 0 : width % sector == 0;
    for (const void* t : tensors) aligned = aligned && reinterpret_cast<uintptr_t>(t) % kSectorBytes == 0;
    return Lines(p.channels_last ? std::min(chunk + around, n.channels) : width, size_of(p.dtype), aligned);
  };
  s.in = lines(p.w, {n.x, backward ? n.out : n.x}), s.out = lines(p.ow, {backward ? p.x : p.y});
  s.row_elements = int(row_elements(n, p, chunk));
  s.chunk = int(chunk), s.before = int(n.before), s.after = int(n.after);
  s.relu = n.relu, s.alpha = n.alpha, s.k = n.k, s.factor = 2 * n.alpha * n.beta;
  s.runs = int(std::max<int64_t>(1, kFusedThreads / p.w));
  s.by_width = Divisor(p.w), s.by_slots = Divisor(slots(p, backward));
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
