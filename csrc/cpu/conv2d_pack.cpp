// Weights into the order in which the convolution kernels read them (ops/conv2d.h gives the layouts).
#include "cpu/vec.h"
#include "cpu/winograd.h"
#include "ops/conv2d.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// out[l] = from[l * step], zero from `lanes` on.
template <class T>
void gather(const T* from, int64_t step, int64_t lanes, Acc<T>* out) {
  constexpr int L = kLanes<T>;
  if (lanes == L && step == 1) {
    store(out, load(from));
  } else if (lanes == L) {
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) out[l] = get(from[l * step]);
  } else {
    for (int64_t l = 0; l < L; ++l) out[l] = l < lanes ? get(from[l * step]) : Acc<T>{};
  }
}

// One panel: L output channels from o0 on, `outputs` of which exist, as out[i][j][c][lane].
template <class T>
void panel(const WeightView& v, const ConvGeometry& g, const T* w, int64_t outputs, Acc<T>* out) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j) {
      const T* tap = w + (v.rotated ? g.kh - 1 - i : i) * v.si + (v.rotated ? g.kw - 1 - j : j) * v.sj;
      for (int64_t c = 0; c < g.group_in; ++c, out += L) gather(tap + c * v.sc, v.so, outputs, out);
    }
}

// One panel of pairs: out[i][j][c/2][lane][2].
template <class T>
void panel_of_pairs(const WeightView& v, const ConvGeometry& g, const T* w, int64_t outputs, T* out) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j) {
      const T* tap = w + (v.rotated ? g.kh - 1 - i : i) * v.si + (v.rotated ? g.kw - 1 - j : j) * v.sj;
      for (int64_t c = 0; c < g.group_in; c += 2)
        for (int64_t l = 0; l < L; ++l)
          for (int64_t k = c; k < c + 2; ++k, ++out)
            *out = l < outputs && k < g.group_in ? tap[l * v.so + k * v.sc] : T{};
    }
}

// One panel of taps transformed for Winograd: out[point][c][lane].
template <class T>
void panel_of_points(const WeightView& v, const ConvGeometry& g, const T* w, int64_t outputs, Acc<T>* out) {
  using namespace winograd;
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  // By way of L1: lanes gathered one by one cannot be loaded as a vector at once, and 36 streams of single lines,
  // channels apart, would each miss the TLB.
  constexpr int kChannels = 16, kWeights = kTaps * kTaps;
  alignas(64) A gathered[kChannels][kWeights][L], block[kPoints][kChannels][L];
  for (int64_t c0 = 0; c0 < g.group_in; c0 += kChannels) {
    const int count = g.group_in - c0 < kChannels ? int(g.group_in - c0) : kChannels;
    for (int c = 0; c < count; ++c)
      for (int k = 0; k < kWeights; ++k) {
        const int tap = v.rotated ? kWeights - 1 - k : k;
        gather(w + (c0 + c) * v.sc + tap / kTaps * v.si + tap % kTaps * v.sj, v.so, outputs, gathered[c][k]);
      }
    for (int c = 0; c < count; ++c)
      square<kTaps, kIn, A>([&](int i, int j) { return load(gathered[c][i * kTaps + j]); },
                            [](const auto& t, auto& o) { weight<A>(t, o); },
                            [&](int i, int j, V<A> u) { store(block[i * kIn + j][c], u); });
    for (int point = 0; point < kPoints; ++point)
      __builtin_memcpy(out + (point * g.group_in + c0) * L, block[point], size_t(count) * L * sizeof(A));
  }
}

// One vector of groups: lane l is output channel first + l, weights of its group's input channels as out[i][j][c][l].
template <class T>
void lanes(const WeightView& v, const ConvGeometry& g, const T* w, int64_t first, Acc<T>* out) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j)
      for (int64_t c = 0; c < g.group_in; ++c, out += L)
        for (int64_t l = 0; l < L; ++l) {
          const int64_t group = (first + l) / g.group_out, o = (first + l) % g.group_out;
          const int64_t at = group * v.sg + o * v.so + c * v.sc + (v.rotated ? g.kh - 1 - i : i) * v.si +
                             (v.rotated ? g.kw - 1 - j : j) * v.sj;
          out[l] = group < g.groups ? get(w[at]) : Acc<T>{};
        }
}

}  // namespace

void pack_conv2d_weight(const WeightView& v, const ConvGeometry& g, Dtype dtype, ConvAlgorithm algorithm, void* packed,
                        int64_t begin, int64_t end) {
  switch_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int L = kLanes<T>;
    const T* w = static_cast<const T*>(v.w);
    const int64_t size = taps(g, algorithm) * terms(g, algorithm) * L, panels = (g.group_out + L - 1) / L;
    for (int64_t i = begin; i < end; ++i) {
      Acc<T>* out = static_cast<Acc<T>*>(packed) + i * size;
      if (algorithm == ConvAlgorithm::lane_grouped) {
        lanes(v, g, w, i * L, out);
      } else {
        const int64_t o = i % panels * L, outputs = g.group_out - o < L ? g.group_out - o : L;
        const T* from = w + i / panels * v.sg + o * v.so;
        if (algorithm == ConvAlgorithm::direct_bf16)
          panel_of_pairs(v, g, from, outputs, reinterpret_cast<T*>(out));
        else if (algorithm == ConvAlgorithm::winograd)
          panel_of_points(v, g, from, outputs, out);
        else
          panel(v, g, from, outputs, out);
      }
    }
  });
}

void unpack_conv2d_weight_grad(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, void* out,
                               int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int L = kLanes<T>;
    const ConvGeometry& g = p.g;
    const Acc<T>* dw = static_cast<const Acc<T>*>(p.dw);
    const bool grouped = plan.algorithm == ConvAlgorithm::lane_grouped;
    const int64_t taps = g.kh * g.kw, pitch = grouped ? L : plan.panels * L;
    for (int64_t o = begin; o < end; ++o) {
      T* row = static_cast<T*>(out) + o * g.group_in * taps;
      const int64_t part = grouped ? o / L : o / g.group_out, lane = grouped ? o % L : o % g.group_out;
      const Acc<T>* from = dw + part * taps * g.group_in * pitch + lane;
      for (int64_t c = 0; c < g.group_in; ++c)
        for (int64_t tap = 0; tap < taps; ++tap) put(row + c * taps + tap, from[(tap * g.group_in + c) * pitch]);
    }
  });
}

}  // namespace fastcnn::FASTCNN_ISA
