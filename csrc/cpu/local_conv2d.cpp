#include "ops/local_conv2d.h"

#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Registers: kM*kNV accumulators + kNV vectors of samples + 1 broadcast weight out of 32 (AVX-512) or 16.
#if defined(__AVX512F__)
constexpr int kNV = 4, kWeights = 12;
#else
constexpr int kNV = 2, kWeights = 6;
#endif
static_assert(kNV == local_vectors(Isa::FASTCNN_ISA));
constexpr int kM = kLocalOutputs;
constexpr int kPanels = kLocalPanels;

// A window's positions inside the input: where their samples lie, and which weights of a filter they meet.
struct Taps {
  int64_t count;
  int64_t* at;
  int64_t* weight;
};

// tile[m][v*L..] = sum over the taps k of w[m*row + weight[k]] * x[at[k] + v*L..]
template <class A, int M, int NV>
void forward_tile(const A* x, const Taps& taps, const A* w, int64_t row, A* tile) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[M][NV]{};
  for (int64_t k = 0; k < taps.count; ++k) {
    const A *from = x + taps.at[k], *weight = w + taps.weight[k];
    V<A> u[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) u[v] = load(from + v * L);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const A b = weight[m * row];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += b * u[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < NV; ++v) store(tile + (m * NV + v) * L, acc[m][v]);
}

// dx[at[m] + v*L..] += sum over o of w[o*row + weight[m]] * g[o*NV*L + v*L..]
template <class A, int M, int NV>
void input_tile(const A* g, int64_t outputs, const A* w, int64_t row, const int64_t* at, const int64_t* weight, A* dx) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[M][NV];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = load(dx + at[m] + v * L);
  for (int64_t o = 0; o < outputs; ++o, w += row, g += NV * L) {
    V<A> u[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) u[v] = load(g + v * L);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const A b = w[weight[m]];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += b * u[v];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < NV; ++v) store(dx + at[m] + v * L, acc[m][v]);
}

// tile[m][v*L..] = sum over n of x[at[m] + n] * g[n*pitch + v*L..], the n of a block after those of the one before it.
template <class A, int M, int NV>
void weight_tile(const A* x, int64_t block_size, int64_t block, int64_t samples, const int64_t* at, const A* g,
                 int64_t pitch, A* tile) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[M][NV]{};
  for (int64_t n0 = 0; n0 < samples; n0 += block, x += block_size) {
    const A* from[M];
    for (int m = 0; m < M; ++m) from[m] = x + at[m];
    const int64_t n1 = samples - n0 < block ? samples - n0 : block;
    for (int64_t n = 0; n < n1; ++n, g += pitch) {
      V<A> u[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) u[v] = load(g + v * L);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const A b = from[m][n];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[m][v] += b * u[v];
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < NV; ++v) store(tile + (m * NV + v) * L, acc[m][v]);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// f(Count<m>{}, Count<vectors>{}), m up to M and vectors up to NV.
template <int M, int NV, class F>
auto sized(int64_t m, int64_t vectors, const F& f) {
  if constexpr (M > 1)
    if (m < M) return sized<M - 1, NV>(m, vectors, f);
  if constexpr (NV > 1)
    if (vectors < NV) return sized<M, NV - 1>(m, vectors, f);
  return f(Count<M>{}, Count<NV>{});
}

template <class T>
struct Kernel {
  using A = Acc<T>;
  static constexpr int L = kLanes<T>;
  static constexpr bool converts = sizeof(T) != sizeof(A);
  const LocalConv2dParams& p;
  const T* x = static_cast<const T*>(p.x);
  const T* w = static_cast<const T*>(p.w);
  const T* b = static_cast<const T*>(p.b);
  const T* g = static_cast<const T*>(p.g);
  T* out = static_cast<T*>(p.out);
  A* samples = static_cast<A*>(p.samples);
  A* gradients = static_cast<A*>(p.gradients);
  const int64_t N = p.xm.n, C = p.xm.c, plane = p.xm.h * p.xm.w;
  const int64_t O = p.ym.c, positions = p.ym.h * p.ym.w;
  const int64_t taps_at_most = p.kh * p.kw, filter = C * taps_at_most;
  const int64_t block = p.vectors * L, block_size = C * plane * block;

  int64_t in_block(int64_t number) const { return N - number * block < block ? N - number * block : block; }
  T* y_at(int64_t n, int64_t o, int64_t position) const {
    return out + n * p.ym.sn + o * p.ym.sc + position / p.ym.w * p.ym.sh + position % p.ym.w * p.ym.sw;
  }
  const T* g_at(int64_t n, int64_t o, int64_t position) const {
    return g + n * p.ym.sn + o * p.ym.sc + position / p.ym.w * p.ym.sh + position % p.ym.w * p.ym.sw;
  }

  // to[e*step + n] = from[n*sn + e] for all samples of a block, in squares that touch each cache line once.
  void transpose(const T* from, int64_t sn, int64_t count, int64_t valid, A* to, int64_t step) const {
    for (int64_t n0 = 0; n0 < block; n0 += L)
      for (int64_t e0 = 0; e0 < count; e0 += L) {
        const int64_t e1 = count - e0 < L ? count : e0 + L;
        for (int64_t n = n0; n < n0 + L; ++n)
          for (int64_t e = e0; e < e1; ++e) to[e * step + n] = n < valid ? get(from[n * sn + e]) : A(0);
      }
  }

  void read_samples(int64_t begin, int64_t end) const {
    const int64_t lines = p.nhwc ? plane : C, length = p.nhwc ? C : plane;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t number = u / lines, line = u % lines;
      A* to = samples + number * block_size + line * (p.nhwc ? 1 : plane) * block;
      transpose(x + number * block * p.xm.sn + line * length, p.xm.sn, length, in_block(number), to,
                (p.nhwc ? plane : 1) * block);
    }
  }

  // The taps of channels [c0, c1); `at` counts from channel c0's plane, `weight` from its first weight.
  void find_taps(int64_t position, int64_t c0, int64_t c1, Taps& taps) const {
    const int64_t top = position / p.ym.w * p.sh - p.ph, left = position % p.ym.w * p.sw - p.pw;
    taps.count = 0;
    for (int64_t c = 0; c < c1 - c0; ++c)
      for (int64_t i = 0; i < p.kh; ++i) {
        const int64_t h = top + i * p.dilation_h;
        if (h < 0 || h >= p.xm.h) continue;
        for (int64_t j = 0; j < p.kw; ++j) {
          const int64_t v = left + j * p.dilation_w;
          if (v < 0 || v >= p.xm.w) continue;
          taps.at[taps.count] = (c * plane + h * p.xm.w + v) * block;
          taps.weight[taps.count++] = (c * p.kh + i) * p.kw + j;
        }
      }
  }

  // `rows` stretches of `length` weights, `filter` apart, in the accumulator type; row receives their distance.
  const A* weights(const T* from, int64_t rows, int64_t length, A* scratch, int64_t& row) const {
    if constexpr (!converts) {
      row = filter;
      return from;
    } else {
      row = length;
      for (int64_t r = 0; r < rows; ++r) {
        const T* s = from + r * filter;
        int64_t i = 0;
        for (; i + L <= length; i += L) store(scratch + r * length + i, load(s + i));
        for (; i < length; ++i) scratch[r * length + i] = get(s[i]);
      }
      return scratch;
    }
  }

  static Taps taps_in(void* scratch, int64_t most) {
    auto* at = static_cast<int64_t*>(scratch);
    return {0, at, at + most};
  }

  // Scratch: [taps | a tile's weights, where they are converted].
  void forward(void* scratch, int64_t begin, int64_t end) const {
    Taps taps = taps_in(scratch, filter);
    A* converted = reinterpret_cast<A*>(taps.weight + filter);
    alignas(64) A tile[kM * kNV * L];
    const int64_t tiles = local_tiles(O);
    for (int64_t u = begin, found = -1; u < end; ++u) {
      const int64_t position = u / tiles, o0 = u % tiles * O / tiles, o1 = (u % tiles + 1) * O / tiles;
      if (position != found) find_taps(found = position, 0, C, taps);
      int64_t row;
      const A* own = weights(w + (position * O + o0) * filter, o1 - o0, filter, converted, row);
      const auto compute =
          sized<kM, kNV>(o1 - o0, p.vectors, [](auto m, auto v) { return &forward_tile<A, m.value, v.value>; });
      for (int64_t number = 0; number < p.blocks; ++number) {
        compute(samples + number * block_size, taps, own, row, tile);
        for (int64_t o = o0; o < o1; ++o) {
          const A bias = b ? get(b[o * positions + position]) : A(0);
          T* y = y_at(number * block, o, position);
          for (int64_t n = 0; n < in_block(number); ++n) put(y + n * p.ym.sn, tile[(o - o0) * block + n] + bias);
        }
      }
    }
  }

  void read_gradients(int64_t begin, int64_t end) const {
    for (int64_t u = begin; u < end; ++u) {
      const int64_t number = u / positions, position = u % positions, valid = in_block(number);
      for (int64_t o = 0; o < O; ++o) {
        const T* from = g_at(number * block, o, position);
        A* to = gradients + (u * O + o) * block;
        for (int64_t n = 0; n < block; ++n) to[n] = n < valid ? get(from[n * p.ym.sn]) : A(0);
      }
    }
  }

  // Scratch: [taps | dx of the unit's channels | their weights, where they are converted].
  void backward_input(void* scratch, int64_t begin, int64_t end) const {
    const int64_t parts = (C + p.channels - 1) / p.channels;
    Taps taps = taps_in(scratch, p.channels * taps_at_most);
    A* dx = reinterpret_cast<A*>(taps.weight + p.channels * taps_at_most);
    A* converted = dx + p.channels * plane * block;
    for (int64_t u = begin; u < end; ++u) {
      const int64_t number = u / parts, c0 = u % parts * p.channels;
      const int64_t c1 = c0 + p.channels < C ? c0 + p.channels : C;
      for (int64_t i = 0; i < (c1 - c0) * plane * block; ++i) dx[i] = 0;
      for (int64_t position = 0; position < positions; ++position) {
        find_taps(position, c0, c1, taps);
        if (!taps.count) continue;
        int64_t row;
        const A* own =
            weights(w + position * O * filter + c0 * taps_at_most, O, (c1 - c0) * taps_at_most, converted, row);
        const A* gradient = gradients + (number * positions + position) * O * block;
        const int64_t tiles = (taps.count + kM - 1) / kM;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t k0 = t * taps.count / tiles, k1 = (t + 1) * taps.count / tiles;
          const auto compute =
              sized<kM, kNV>(k1 - k0, p.vectors, [](auto m, auto v) { return &input_tile<A, m.value, v.value>; });
          compute(gradient, O, own, row, taps.at + k0, taps.weight + k0, dx);
        }
      }
      write_input(number, c0, c1, dx);
    }
  }

  void write_input(int64_t number, int64_t c0, int64_t c1, const A* dx) const {
    T* to = out + number * block * p.xm.sn;
    for (int64_t c = c0; c < c1; ++c, dx += plane * block)
      for (int64_t e0 = 0; e0 < plane; e0 += L) {
        const int64_t e1 = plane - e0 < L ? plane : e0 + L;
        for (int64_t n = 0; n < in_block(number); ++n)
          for (int64_t e = e0; e < e1; ++e)
            put(to + n * p.xm.sn + c * p.xm.sc + e * (p.nhwc ? C : 1), dx[e * block + n]);
      }
  }

  void read_gradient_rows(int64_t begin, int64_t end) const {
    const int64_t pitch = (O + L - 1) / L * L;
    for (int64_t position = begin; position < end; ++position)
      for (int64_t n = 0; n < N; ++n) {
        A* to = gradients + (position * N + n) * pitch;
        for (int64_t o = 0; o < pitch; ++o) to[o] = o < O ? get(*g_at(n, o, position)) : A(0);
      }
  }

  // Scratch: [taps].
  void backward_weight(void* scratch, int64_t begin, int64_t end) const {
    Taps taps = taps_in(scratch, filter);
    alignas(64) A tile[kWeights * kPanels * L];
    const int64_t panels = (O + L - 1) / L, pitch = panels * L;
    const int64_t parts = (panels + p.panels_at_once - 1) / p.panels_at_once;
    for (int64_t u = begin, found = -1; u < end; ++u) {
      const int64_t position = u / parts, v0 = u % parts * p.panels_at_once, o0 = v0 * L;
      const int64_t vectors = panels - v0 < p.panels_at_once ? panels - v0 : p.panels_at_once;
      const int64_t outputs = O - o0 < vectors * L ? O - o0 : vectors * L;
      if (position != found) find_taps(found = position, 0, C, taps);
      const A* gradient = gradients + position * N * pitch + o0;
      T* dw = static_cast<T*>(p.dw) + (position * O + o0) * filter;
      if (taps.count < filter)  // weights that meet the padding only
        for (int64_t i = 0; i < outputs * filter; ++i) put(dw + i, A(0));
      const int64_t tiles = (taps.count + kWeights - 1) / kWeights;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t k0 = t * taps.count / tiles, k1 = (t + 1) * taps.count / tiles;
        const auto compute = sized<kWeights, kPanels>(k1 - k0, vectors,
                                                      [](auto m, auto v) { return &weight_tile<A, m.value, v.value>; });
        compute(samples, block_size, block, N, taps.at + k0, gradient, pitch, tile);
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t k = k0; k < k1; ++k) put(dw + o * filter + taps.weight[k], tile[(k - k0) * vectors * L + o]);
      }
      for (int64_t v = 0; v < vectors; ++v) {
        V<A> sum{};
        for (int64_t n = 0; n < N; ++n) sum += load(gradient + n * pitch + v * L);
        for (int64_t o = v * L; o < outputs && o < (v + 1) * L; ++o)
          put(static_cast<T*>(p.db) + (o0 + o) * positions + position, sum[o - v * L]);
      }
    }
  }
};

}  // namespace

void local_conv2d_samples(const LocalConv2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.read_samples(begin, end); });
}

void local_conv2d(const LocalConv2dParams& p, void* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.forward(scratch, begin, end); });
}

void local_conv2d_gradients(const LocalConv2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.read_gradients(begin, end); });
}

void local_conv2d_backward_input(const LocalConv2dParams& p, void* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_input(scratch, begin, end); });
}

void local_conv2d_gradient_rows(const LocalConv2dParams& p, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.read_gradient_rows(begin, end); });
}

void local_conv2d_backward_weight(const LocalConv2dParams& p, void* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) { Kernel<decltype(t)>{p}.backward_weight(scratch, begin, end); });
}

}  // namespace fastcnn::FASTCNN_ISA
