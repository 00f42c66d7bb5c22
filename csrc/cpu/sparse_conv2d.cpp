#include "ops/sparse_conv2d.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

constexpr int kDots = 5;    // dot products at a time: enough to hide the latency of an FMA on both ports
constexpr int kBlock = 10;  // accumulators: 16 vector registers hold them with a weight and a row of input to spare

template <class A>
struct Term {
  const A* source;
  A weight;
};

// out[f] = start + sum over terms of weight * source[f], for B vectors of f.
template <int B, class A>
void block(A* out, int64_t f, const Term<A>* terms, int64_t count, A start) {
  V<A> acc[B];
  for (int v = 0; v < B; ++v) acc[v] = splat(start);
  for (int64_t t = 0; t < count; ++t) {
    const A* s = terms[t].source + f;
    const V<A> weight = splat(terms[t].weight);
    for (int v = 0; v < B; ++v) acc[v] += weight * load(s + v * Vec<A>::lanes);
  }
  for (int v = 0; v < B; ++v) store(out + f + v * Vec<A>::lanes, acc[v]);
}

template <int B, class A>
void block_of(int64_t vectors, A* out, int64_t f, const Term<A>* terms, int64_t count, A start) {
  if (vectors == B) return block<B>(out, f, terms, count, start);
  if constexpr (B > 1) block_of<B - 1>(vectors, out, f, terms, count, start);
}

// A plane of `length` elements, rounded up to whole vectors, in blocks of about equal size: one with a single
// accumulator would wait for the latency of every FMA.
template <class A>
void weighted_sum(A* out, int64_t length, const Term<A>* terms, int64_t count, A start) {
  int64_t vectors = (length + Vec<A>::lanes - 1) / Vec<A>::lanes, f = 0;
  for (int64_t blocks = (vectors + kBlock - 1) / kBlock; blocks > 0; --blocks) {
    const int64_t n = (vectors + blocks - 1) / blocks;
    block_of<kBlock>(n, out, f, terms, count, start);
    f += n * Vec<A>::lanes, vectors -= n;
  }
}

template <class T>
struct Kernel {
  using A = Acc<T>;
  static constexpr int lanes = kLanes<T>;
  const SparseConv2dParams& p;
  const T* x = static_cast<const T*>(p.x);
  const T* w = static_cast<const T*>(p.w);
  const T* g = static_cast<const T*>(p.g);
  T* out = static_cast<T*>(p.out);
  const int64_t taps = p.kh * p.kw;
  const int64_t phases = p.phases_h * p.phases_w;
  const int64_t plane = p.rows * p.pitch;                                 // one phase of one channel
  const int64_t reach = (p.kh - 1) / p.sh * p.pitch + (p.kw - 1) / p.sw;  // the largest shift of a tap
  const int64_t padded = reach + plane;                                   // a gradient's plane, zeros before it

  int64_t shift(int64_t i, int64_t j) const { return i / p.sh * p.pitch + j / p.sw; }
  int64_t phase(int64_t i, int64_t j) const { return i % p.sh * p.phases_w + j % p.sw; }

  // f(row offset in x, first column of the plane, columns, element of the plane) for a channel's rows inside the input.
  template <class F>
  void for_rows(int64_t n, int64_t c, int64_t a, int64_t b, const F& f) const {
    const int64_t left = p.pw > b ? (p.pw - b + p.sw - 1) / p.sw : 0;
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t h = r * p.sh + a - p.ph, first = left * p.sw + b - p.pw;
      if (h < 0 || h >= p.xm.h || first >= p.xm.w) continue;
      const int64_t columns = (p.xm.w - first + p.sw - 1) / p.sw;
      f(n * p.xm.sn + c * p.xm.sc + h * p.xm.sh + first * p.xm.sw, columns, r * p.pitch + left);
    }
  }

  void read_input(int64_t n, A* planes) const {
    for (int64_t c = 0; c < p.xm.c; ++c)
      for (int64_t a = 0; a < p.phases_h; ++a)
        for (int64_t b = 0; b < p.phases_w; ++b, planes += plane)
          for_rows(n, c, a, b, [&](int64_t at, int64_t columns, int64_t to) {
            for (int64_t q = 0; q < columns; ++q) planes[to + q] = get(x[at + q * p.sw * p.xm.sw]);
          });
  }

  void read_gradient(int64_t n, A* planes) const {
    for (int64_t o = 0; o < p.ym.c; ++o)
      for (int64_t r = 0; r < p.ym.h; ++r) {
        const T* from = g + n * p.ym.sn + o * p.ym.sc + r * p.ym.sh;
        A* to = planes + o * padded + reach + r * p.pitch;
        for (int64_t q = 0; q < p.ym.w; ++q) to[q] = get(from[q * p.ym.sw]);
      }
  }

  // Scratch: [terms | input planes + a vector | one output plane + a vector].
  void forward(int64_t begin, int64_t end, void* scratch) const {
    auto* terms = static_cast<Term<A>*>(scratch);
    A* input = reinterpret_cast<A*>(terms + p.links * taps);
    A* y = input + p.xm.c * phases * plane + lanes;
    int64_t t = 0;
    for (int64_t l = 0; l < p.links; ++l)
      for (int64_t i = 0; i < p.kh; ++i)
        for (int64_t j = 0; j < p.kw; ++j, ++t)
          terms[t] = {input + (p.indices[l] * phases + phase(i, j)) * plane + shift(i, j), get(w[t])};
    for (int64_t n = begin; n < end; ++n) {
      read_input(n, input);
      const Term<A>* own = terms;
      for (int64_t o = 0; o < p.ym.c; own += p.counts[o++] * taps) {
        const A bias = p.b ? get(static_cast<const T*>(p.b)[o]) : A(0);
        weighted_sum(y, (p.ym.h - 1) * p.pitch + p.ym.w, own, p.counts[o] * taps, bias);
        for (int64_t r = 0; r < p.ym.h; ++r)
          for (int64_t q = 0; q < p.ym.w; ++q)
            put(out + n * p.ym.sn + o * p.ym.sc + r * p.ym.sh + q * p.ym.sw, y[r * p.pitch + q]);
      }
    }
  }

  // Scratch: [terms | gradient planes + a vector | one input plane + a vector].
  void backward_input(int64_t begin, int64_t end, void* scratch) const {
    auto* terms = static_cast<Term<A>*>(scratch);
    A* gradient = reinterpret_cast<A*>(terms + p.links * taps);
    A* dx = gradient + p.ym.c * padded + lanes;
    for (int64_t n = begin; n < end; ++n) {
      zero_sample(n);
      read_gradient(n, gradient);
      for (int64_t c = 0; c < p.xm.c; ++c)
        for (int64_t a = 0; a < p.phases_h; ++a)
          for (int64_t b = 0; b < p.phases_w; ++b) {
            const int64_t count = transposed(c, a, b, gradient, terms);
            weighted_sum(dx, plane, terms, count, A(0));
            for_rows(n, c, a, b, [&](int64_t at, int64_t columns, int64_t from) {
              for (int64_t q = 0; q < columns; ++q) put(out + at + q * p.sw * p.xm.sw, dx[from + q]);
            });
          }
    }
  }

  // Columns and rows that a stride larger than the kernel skips belong to no phase.
  void zero_sample(int64_t n) const {
    if (p.sh <= p.kh && p.sw <= p.kw) return;
    for (int64_t i = 0; i < p.xm.c * p.xm.h * p.xm.w; ++i) put(out + n * p.xm.sn + i, A(0));
  }

  int64_t transposed(int64_t c, int64_t a, int64_t b, const A* gradient, Term<A>* terms) const {
    int64_t count = 0, l = 0;
    for (int64_t o = 0; o < p.ym.c; ++o)
      for (int64_t k = 0; k < p.counts[o]; ++k, ++l) {
        if (p.indices[l] != c) continue;
        for (int64_t i = a; i < p.kh; i += p.sh)
          for (int64_t j = b; j < p.kw; j += p.sw)
            terms[count++] = {gradient + o * padded + reach - shift(i, j), get(w[l * taps + i * p.kw + j])};
      }
    return count;
  }

  // Scratch: [a pointer a tap | input planes + a vector | gradient planes + a vector].
  void backward_weight(int64_t begin, int64_t end, void* scratch) const {
    auto* sources = static_cast<const A**>(scratch);
    A* input = reinterpret_cast<A*>(sources + taps);
    A* gradient = input + p.xm.c * phases * plane + lanes;
    const int64_t sums = p.links * taps + p.ym.c;
    for (int64_t u = begin; u < end; ++u) {
      A* dw = static_cast<A*>(p.partial) + u * sums;
      A* db = dw + p.links * taps;
      for (int64_t i = 0; i < sums; ++i) dw[i] = 0;
      for (int64_t n = u * p.chunk; n < p.ym.n && n < (u + 1) * p.chunk; ++n) {
        read_input(n, input), read_gradient(n, gradient);
        int64_t l = 0;
        for (int64_t o = 0; o < p.ym.c; ++o) {
          const A* go = gradient + o * padded + reach;
          for (int64_t k = 0; k < p.counts[o]; ++k, ++l) {
            for (int64_t i = 0, t = 0; i < p.kh; ++i)
              for (int64_t j = 0; j < p.kw; ++j, ++t)
                sources[t] = input + (p.indices[l] * phases + phase(i, j)) * plane + shift(i, j);
            for (int64_t t = 0, n = 0; t < taps; t += n) {
              n = taps - t < kDots ? taps - t : kDots;
              dots_of<kDots>(n, go, sources + t, dw + l * taps + t);
            }
          }
          for (int64_t r = 0; r < p.ym.h; ++r)
            for (int64_t q = 0; q < p.ym.w; ++q) db[o] += go[r * p.pitch + q];
        }
      }
    }
  }

  template <int B>
  void dots_of(int64_t n, const A* go, const A* const* sources, A* sums) const {
    if (n == B) return dots<B>(go, sources, sums);
    if constexpr (B > 1) dots_of<B - 1>(n, go, sources, sums);
  }

  // sums[t] += the product of the gradient's plane and sources[t], for B taps.
  template <int B>
  void dots(const A* go, const A* const* sources, A* sums) const {
    using Mask = decltype(V<A>{} < V<A>{});
    const int tail = int(p.ym.w % lanes);
    Mask inside{};
    for (int i = 0; i < tail; ++i) inside[i] = -1;
    V<A> acc[B]{};
    for (int64_t r = 0, row = 0; r < p.ym.h; ++r, row += p.pitch) {
      int64_t q = row;
      for (; q + lanes <= row + p.ym.w; q += lanes)
        for (int t = 0; t < B; ++t) acc[t] += load(go + q) * load(sources[t] + q);
      if (tail)  // behind the row: zeros, and not 0 * inf
        for (int t = 0; t < B; ++t) acc[t] += load(go + q) * (inside ? load(sources[t] + q) : V<A>{});
    }
    for (int t = 0; t < B; ++t) sums[t] += sum(acc[t]);
  }

  static A sum(V<A> v) {  // in pairs: a chain of `lanes` additions would take longer than a plane's products
    A lane[lanes];
    store(lane, v);
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }

  void sum_partials(int64_t chunks) const {
    const int64_t weights = p.links * taps, sums = weights + p.ym.c;
    for (int64_t i = 0; i < sums; ++i) {
      A sum = 0;
      for (int64_t u = 0; u < chunks; ++u) sum += static_cast<const A*>(p.partial)[u * sums + i];
      put(i < weights ? static_cast<T*>(p.dw) + i : static_cast<T*>(p.db) + (i - weights), sum);
    }
  }
};

}  // namespace

void sparse_conv2d(const SparseConv2dParams& p, int64_t begin, int64_t end, void* scratch) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.forward(begin, end, scratch); });
}

void sparse_conv2d_backward_input(const SparseConv2dParams& p, int64_t begin, int64_t end, void* scratch) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_input(begin, end, scratch); });
}

void sparse_conv2d_backward_weight(const SparseConv2dParams& p, int64_t begin, int64_t end, void* scratch) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_weight(begin, end, scratch); });
}

void sparse_conv2d_sum_partials(const SparseConv2dParams& p, int64_t chunks) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.sum_partials(chunks); });
}

}  // namespace fastcnn::FASTCNN_ISA
