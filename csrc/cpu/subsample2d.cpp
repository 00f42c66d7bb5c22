#include "ops/subsample2d.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

template <class T>
struct Kernel {
  using A = Acc<T>;
  static constexpr int lanes = kLanes<T>;
  const Subsample2dParams& p;
  const T* x = static_cast<const T*>(p.x);
  const T* w = static_cast<const T*>(p.w);
  const T* b = static_cast<const T*>(p.b);
  const T* g = static_cast<const T*>(p.g);
  T* out = static_cast<T*>(p.out);
  const A scale = A(p.scale);

  int64_t x_at(int64_t n, int64_t c, int64_t h, int64_t q) const {
    return n * p.xm.sn + c * p.xm.sc + h * p.xm.sh + q * p.xm.sw;
  }
  int64_t y_at(int64_t n, int64_t c, int64_t h, int64_t q) const {
    return n * p.ym.sn + c * p.ym.sc + h * p.ym.sh + q * p.ym.sw;
  }

  // The window's sum for `lanes` channels from c on (NHWC), or for one.
  V<A> window(int64_t n, int64_t c, int64_t r, int64_t q, int m) const {
    V<A> s{};
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) s += some(x + x_at(n, c, r * p.sh + i, q * p.sw + j), m);
    return s;
  }
  A window(int64_t n, int64_t c, int64_t r, int64_t q) const {
    A s = 0;
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) s += get(x[x_at(n, c, r * p.sh + i, q * p.sw + j)]);
    return s;
  }

  static V<A> some(const T* q, int m) { return m == lanes ? load(q) : load(q, m); }
  static void set(T* q, V<A> v, int m) { m == lanes ? store(q, v) : store(q, v, m); }
  // f(first channel, channels) for vectors of channels.
  template <class F>
  void for_channels(const F& f) const {
    for (int64_t c = 0; c < p.xm.c; c += lanes) f(c, int(p.xm.c - c < lanes ? p.xm.c - c : lanes));
  }

  void forward(int64_t begin, int64_t end) const {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / p.ym.h, r = u % p.ym.h;
      if (p.xm.sc == 1)
        for_channels([&](int64_t c, int m) {
          const V<A> weight = some(w + c, m) * scale, bias = b ? some(b + c, m) : V<A>{};
          for (int64_t q = 0; q < p.ym.w; ++q) set(out + y_at(n, c, r, q), bias + weight * window(n, c, r, q, m), m);
        });
      else
        for (int64_t c = 0; c < p.ym.c; ++c) {
          const A weight = get(w[c]) * scale, bias = b ? get(b[c]) : A(0);
          for (int64_t q = 0; q < p.ym.w; ++q) put(out + y_at(n, c, r, q), bias + weight * window(n, c, r, q));
        }
    }
  }

  // The outputs whose windows hold position h.
  struct Range {
    int64_t begin, end;
  };
  static Range windows_of(int64_t h, int64_t k, int64_t s, int64_t outputs) {
    return {h < k ? 0 : (h - k) / s + 1, h / s < outputs ? h / s + 1 : outputs};
  }

  void backward_input(int64_t begin, int64_t end) const {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t n = u / p.xm.h, h = u % p.xm.h;
      const Range rows = windows_of(h, p.kh, p.sh, p.ym.h);
      if (p.xm.sc == 1)
        for_channels([&](int64_t c, int m) {
          const V<A> weight = some(w + c, m) * scale;
          for (int64_t v = 0; v < p.xm.w; ++v) {
            const Range columns = windows_of(v, p.kw, p.sw, p.ym.w);
            V<A> s{};
            for (int64_t r = rows.begin; r < rows.end; ++r)
              for (int64_t q = columns.begin; q < columns.end; ++q) s += some(g + y_at(n, c, r, q), m);
            set(out + x_at(n, c, h, v), weight * s, m);
          }
        });
      else
        for (int64_t c = 0; c < p.xm.c; ++c) {
          const A weight = get(w[c]) * scale;
          if (p.sh == p.kh && p.sw == p.kw) {  // windows side by side, as in LeNet-5: each position has one at most
            T* row = out + x_at(n, c, h, 0);
            const bool covered = rows.begin < rows.end;
            for (int64_t v = covered ? p.ym.w * p.kw : 0; v < p.xm.w; ++v) put(row + v, A(0));
            const T* from = g + y_at(n, c, rows.begin, 0);
            for (int64_t q = 0; covered && q < p.ym.w; ++q, row += p.kw) {
              const A s = weight * get(from[q]);
              for (int64_t j = 0; j < p.kw; ++j) put(row + j, s);
            }
            continue;
          }
          for (int64_t v = 0; v < p.xm.w; ++v) {
            const Range columns = windows_of(v, p.kw, p.sw, p.ym.w);
            A s = 0;
            for (int64_t r = rows.begin; r < rows.end; ++r)
              for (int64_t q = columns.begin; q < columns.end; ++q) s += get(g[y_at(n, c, r, q)]);
            put(out + x_at(n, c, h, v), weight * s);
          }
        }
    }
  }

  // A row is summed in the accumulator's type, rows in double: the error does not grow with the size of the map.
  void backward_weight(int64_t begin, int64_t end) const {
    for (int64_t n = begin; n < end; ++n) {
      double *dw = p.partial + 2 * n * p.xm.c, *db = dw + p.xm.c;
      for (int64_t c = 0; c < 2 * p.xm.c; ++c) dw[c] = 0;
      for (int64_t r = 0; r < p.ym.h; ++r)
        if (p.xm.sc == 1)
          for_channels([&](int64_t c, int m) {
            V<A> weight{}, bias{};
            for (int64_t q = 0; q < p.ym.w; ++q) {
              const V<A> gradient = some(g + y_at(n, c, r, q), m);
              weight += gradient * window(n, c, r, q, m), bias += gradient;
            }
            for (int i = 0; i < m; ++i) dw[c + i] += weight[i], db[c + i] += bias[i];
          });
        else
          for (int64_t c = 0; c < p.xm.c; ++c) {
            A weight = 0, bias = 0;
            for (int64_t q = 0; q < p.ym.w; ++q) {
              const A gradient = get(g[y_at(n, c, r, q)]);
              weight += gradient * window(n, c, r, q), bias += gradient;
            }
            dw[c] += weight, db[c] += bias;
          }
    }
  }

  void sum_partials() const {
    for (int64_t c = 0; c < p.xm.c; ++c) {
      double weight = 0, bias = 0;
      for (int64_t n = 0; n < p.xm.n; ++n)
        weight += p.partial[2 * n * p.xm.c + c], bias += p.partial[(2 * n + 1) * p.xm.c + c];
      put(static_cast<T*>(p.dw) + c, A(weight * p.scale)), put(static_cast<T*>(p.db) + c, A(bias));
    }
  }
};

}  // namespace

void subsample2d(const Subsample2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.forward(begin, end); });
}

void subsample2d_backward_input(const Subsample2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_input(begin, end); });
}

void subsample2d_backward_weight(const Subsample2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_weight(begin, end); });
}

void subsample2d_sum_partials(const Subsample2dParams& p) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.sum_partials(); });
}

}  // namespace fastcnn::FASTCNN_ISA
