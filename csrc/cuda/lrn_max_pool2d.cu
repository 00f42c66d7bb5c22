#include "cuda/local_response_norm_math.cuh"
#include "cuda/lrn_max_pool2d.cuh"
#include "cuda/max_pool2d_window.cuh"

namespace fastcnn::cuda {
namespace {

// A block takes `chunk` channels of a tower of one image and walks down `length` rows (forward: of y; backward: of x).
// In shared memory a row is [w][channels] for NHWC, [channels][w] for NCHW: the order of its elements in memory.
struct Strip {
  MaxPool2dGeometry pool;
  const void* x;
  void* dx;
  int64_t channels, towers, pixel_step, channel_step;  // of one tower; steps in x
  int64_t out_pixel_step, out_channel_step;            // in y
  int chunk, before, after, length;
  bool channels_last, relu;
  double alpha, beta, k;
  Divisor by_chunks, by_lengths, by_towers;
};

// Channels [c0, c1) of the block's tower, whose first channel in its image is `first`.
struct Part {
  int64_t image, first;
  int c0, c1, row;

  __device__ explicit Part(const Strip& s) {
    uint32_t chunk, tower, strip;
    const uint32_t rest = s.by_towers.divide(s.by_chunks.divide(blockIdx.x, chunk), tower);
    image = s.by_lengths.divide(rest, strip);
    first = int64_t(tower) * s.channels, c0 = int(chunk) * s.chunk, row = int(strip) * s.length;
    c1 = c0 + s.chunk < s.channels ? c0 + s.chunk : int(s.channels);
  }
};

// A thread's elements of a row of `width` pixels of `channels` channels from `first` on, in memory's order. The only
// divisions are at the start: a step of kFusedThreads elements is one of `down` whole lines and `along` more.
struct RowWalk {
  int e, size, fast, slow, line, down, along, first;
  bool channels_last;

  __device__ RowWalk(const Strip& s, int width, int from, int channels)
      : e(threadIdx.x), size(width * channels), line(s.channels_last ? channels : width), first(from) {
    channels_last = s.channels_last;
    slow = e / line, fast = e - slow * line;
    down = kFusedThreads / line, along = kFusedThreads - down * line;
  }
  __device__ bool more() const { return e < size; }
  __device__ void next() {
    e += kFusedThreads, slow += down, fast += along;
    if (fast >= line) fast -= line, ++slow;
  }
  __device__ int pixel() const { return channels_last ? slow : fast; }
  __device__ int channel() const { return first + (channels_last ? fast : slow); }
};

__device__ inline int at_least(int v, int low) { return v < low ? low : v; }
__device__ inline int at_most(int v, int high) { return v > high ? high : v; }

// Rows of x pass through shared memory once; of the normalized ones those stay that a later row of windows needs: row r
// in slot r % slots.
template <class T, class Index, class Power>
__global__ void __launch_bounds__(kFusedThreads, 4) lrn_max_pool2d_kernel(Strip s, Power power) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);
  const Part part(s);
  const MaxPool2dGeometry& p = s.pool;
  const int lo = at_least(part.c0 - s.before, 0), hi = at_most(part.c1 + s.after, int(s.channels));
  const int slots = at_most((p.kh - 1) * p.dh + 1, p.h), own = part.c1 - part.c0, held = hi - lo;
  const int step = s.channels_last ? 1 : p.w;  // of a channel in x's row
  T* normalized = reinterpret_cast<T*>(x + int64_t(p.w) * held);
  const RowWalk in(s, p.w, lo, held), kept(s, p.w, part.c0, own), pooled(s, p.ow, part.c0, own);
  const T* image =
      static_cast<const T*>(s.x) + part.image * s.towers * s.channels * p.h * p.w + part.first * s.channel_step;
  int next = at_least(part.row * p.sh - p.ph, 0);  // the first row of x that is not yet normalized
  for (int oh = part.row; oh < at_most(part.row + s.length, p.oh); ++oh) {
    const int h0 = oh * p.sh - p.ph, stop = at_most(h0 + (p.kh - 1) * p.dh + 1, p.h);
    next = at_least(next, at_least(h0, 0));  // a stride beyond the window leaves rows out
    for (; next < stop; ++next) {
      for (RowWalk i = in; i.more(); i.next()) {
        const T v = load(image + (int64_t(next) * p.w + i.pixel()) * s.pixel_step + i.channel() * s.channel_step);
        store_shared(x + i.e, rectified(to_acc(v), s.relu));
      }
      sync_block();
      T* row = normalized + int64_t(next % slots) * p.w * own;
      for (RowWalk i = kept; i.more(); i.next()) {
        const A* here =
            x + (s.channels_last ? i.pixel() * held + i.channel() - lo : (i.channel() - lo) * p.w + i.pixel());
        A sum = 0;
        for (int j = at_least(i.channel() - s.before, lo); j < at_most(i.channel() + s.after + 1, hi); ++j) {
          const A v = load_shared(here + (j - i.channel()) * step);
          sum += v * v;
        }
        store_shared(row + i.e, from_acc<T>(power.over(load_shared(here), A(s.k) + A(s.alpha) * sum)));
      }
      sync_block();
    }
    for (RowWalk o = pooled; o.more(); o.next()) {
      const int w0 = o.pixel() * p.sw - p.pw;
      Maximum<A> most;
      for (int i = 0; i < p.kh; ++i) {
        const int h = h0 + i * p.dh;
        if (h < 0 || h >= p.h) continue;
        const T* row = normalized + int64_t(h % slots) * p.w * own;
        for (int j = 0; j < p.kw; ++j) {
          const int w = w0 + j * p.dw, c = o.channel() - part.c0;
          if (w < 0 || w >= p.w) continue;
          most.take(to_acc(load_shared(row + (s.channels_last ? w * own + c : c * p.w + w))), i * p.kw + j);
        }
      }
      const int64_t out = part.image * s.towers * s.channels * p.oh * p.ow + part.first * s.out_channel_step +
                          (int64_t(oh) * p.ow + o.pixel()) * s.out_pixel_step + o.channel() * s.out_channel_step;
      store(static_cast<T*>(p.y) + out, from_acc<T>(most.best));
      if (p.argmax) store(static_cast<Index*>(p.argmax) + out, Index(most.argmax()));
    }
    sync_block();  // before a row is overwritten
  }
}

// A row of x at a time: the gradient of its normalized values from the windows that hold them, rounded as the op
// between would store it, then the normalization's own gradient. Channel c needs the terms of [c - after, c + before],
// and those the x around them.
template <class T, class Index, class Power>
__global__ void __launch_bounds__(kFusedThreads, 4) lrn_max_pool2d_backward_kernel(Strip s, Power power) {
  using A = Acc<T>;
  FASTCNN_SHARED(A, x);
  const Part part(s);
  const MaxPool2dGeometry& p = s.pool;
  const int from = at_least(part.c0 - s.after, 0), to = at_most(part.c1 + s.before, int(s.channels));
  const int lo = at_least(from - s.before, 0), hi = at_most(to + s.after, int(s.channels));
  const int own = part.c1 - part.c0, wide = to - from, held = hi - lo, step = s.channels_last ? 1 : p.w;
  A* direct = x + int64_t(p.w) * held;
  A* shared = direct + int64_t(p.w) * wide;
  const RowWalk in(s, p.w, lo, held), around(s, p.w, from, wide), kept(s, p.w, part.c0, own);
  const int64_t image = part.image * s.towers * s.channels;
  const T* xs = static_cast<const T*>(s.x) + image * p.h * p.w + part.first * s.channel_step;
  T* dx = static_cast<T*>(s.dx) + image * p.h * p.w + part.first * s.channel_step;
  const int64_t out = image * p.oh * p.ow + part.first * s.out_channel_step;
  const A factor = A(2 * s.alpha * s.beta);
  for (int h = part.row; h < at_most(part.row + s.length, p.h); ++h) {
    const auto offset = [&](const RowWalk& i) {
      return (int64_t(h) * p.w + i.pixel()) * s.pixel_step + i.channel() * s.channel_step;
    };
    // Of an element of a row of channels [first, last) its place in x's row.
    const auto in_x = [&](const RowWalk& i, int first, int count) {
      return s.channels_last ? i.pixel() * count + i.channel() - first : (i.channel() - first) * p.w + i.pixel();
    };
    for (RowWalk i = in; i.more(); i.next()) {
      store_shared(x + i.e, rectified(to_acc(load(xs + offset(i))), s.relu));
    }
    sync_block();
    for (RowWalk i = around; i.more(); i.next()) {
      const A* here = x + in_x(i, lo, held);
      A sum = 0, g[1];
      for (int j = at_least(i.channel() - s.before, lo); j < at_most(i.channel() + s.after + 1, hi); ++j) {
        const A v = load_shared(here + (j - i.channel()) * step);
        sum += v * v;
      }
      const auto peak = [&](int oh, int ow) {
        const int64_t pixel = int64_t(oh) * p.ow + ow;
        return load_peak<T, Index, 1>(p, out + pixel * s.out_pixel_step + i.channel() * s.out_channel_step);
      };
      sum_of_windows<T, Index>(p, h, i.pixel(), peak, g);
      const Terms<A> t = terms(to_acc(from_acc<T>(g[0])), load_shared(here), A(s.k) + A(s.alpha) * sum, power);
      store_shared(direct + i.e, t.own);
      store_shared(shared + i.e, t.shared);
    }
    sync_block();
    for (RowWalk i = kept; i.more(); i.next()) {
      const int here = in_x(i, from, wide);
      A sum = 0;
      for (int j = at_least(i.channel() - s.after, from); j < at_most(i.channel() + s.before + 1, to); ++j)
        sum += load_shared(shared + here + (j - i.channel()) * step);
      const A xc = load_shared(x + in_x(i, lo, held));
      store(dx + offset(i), from_acc<T>(s.relu && xc == 0 ? A(0) : load_shared(direct + here) - factor * xc * sum));
    }
    sync_block();
  }
}

// Bytes of shared memory for `chunk` channels.
int64_t shared_bytes(const LocalResponseNormParams& n, const MaxPool2dParams& p, bool backward, int64_t chunk) {
  const int64_t around = n.before + n.after, accumulator = accumulator_size(p.dtype);
  const auto cut = [&](int64_t channels) { return channels < n.channels ? channels : n.channels; };
  if (backward) return p.w * accumulator * (cut(chunk + 2 * around) + 2 * cut(chunk + around));
  const int64_t span = (p.kh - 1) * p.dh + 1, slots = span < p.h ? span : p.h;
  return p.w * (accumulator * cut(chunk + around) + size_of(p.dtype) * slots * chunk);
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
  s.chunk = int(chunk), s.before = int(n.before), s.after = int(n.after);
  s.relu = n.relu, s.alpha = n.alpha, s.beta = n.beta, s.k = n.k;
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
    return with_power<T>(n.beta, [&](auto power) {
      using Power = decltype(power);
      return backward ? launch<lrn_max_pool2d_backward_kernel<T, Index, Power>>(l, s, power)
                      : launch<lrn_max_pool2d_kernel<T, Index, Power>>(l, s, power);
    });
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
