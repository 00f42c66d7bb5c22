// The multiplication at the heart of the convolutions: a tile of MR rows of inputs by NV vectors of output channels
// stays in registers while the sum runs.
#pragma once
#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA {

// Registers: MR*NV accumulators + NV weights + 1 broadcast input out of 32 (AVX-512) or 16. With 2 vectors a tile
// needs one load per 1.75 multiply-adds, below what the load ports give; narrow maps take fewer pixels and 4 vectors.
// kAhead: the terms by which weights are fetched ahead, or 0 where a term's 12 multiply-adds and 8 loads leave no room
// to it: two threads of a core share the six instructions that it starts in a cycle.
#if defined(__AVX512F__)
constexpr int kMR = 14, kNarrowMR = 7, kAhead = 24;
#else
constexpr int kMR = 6, kNarrowMR = 3, kAhead = 0;
#endif
constexpr int kMaxNV = 4;

// Terms per step of the loop: one line of each panel of weights.
constexpr int kTerms = 64 / kVectorBytes;

// The sum's outer loops: tap rows first, first+every, ... below last, each `cols` stretches of `length` contiguous
// inputs.
struct Runs {
  int64_t first, every, last;
  int64_t cols, row_step, col_step, length;
};

// Where a tile's sums go: pixel t, vector v to at[t*pitch + v*L], after the bias of v, the residual and ReLU.
template <class A>
struct Out {
  A* at;
  int64_t pitch;
  const A *bias, *residual;  // or null
  int64_t residual_pitch;
  bool relu;

  // Channels c and on. A copy that no store can change, made member by member: the compiler's own would read vectors
  // over members just written, and wait for them.
  __attribute__((always_inline)) Out from(int64_t c) const {
    return {at + c, pitch, bias ? bias + c : bias, residual ? residual + c : residual, residual_pitch, relu};
  }
  __attribute__((always_inline)) V<A> bias_of(int v) const { return bias ? load(bias + v * Vec<A>::lanes) : V<A>{}; }
  __attribute__((always_inline)) void put(int t, int v, V<A> sum) const {
    constexpr int L = Vec<A>::lanes;
    if (residual) sum += load(residual + t * residual_pitch + v * L);
    if (relu) sum = sum < 0 ? V<A>{} : sum;  // not `sum > 0 ? sum : 0`: a NaN stays
    store(at + t * pitch + v * L, sum);
  }
};

// out[t][v*L..] = sum over k of x[t*step + k] * w[v][k][..], k over all runs; panels of w lie `panel` apart. E: what is
// multiplied, an A or a pair. Fetch: the inputs of the next tile, which follow on this one's, are brought near the
// while; prefetching in hardware follows the channels of one pixel, not the step to the next MR pixels.
template <class A, class E, int MR, int NV, bool Fetch>
void accumulate(const E* x, int64_t step, const Runs& runs, const E* w, int64_t panel, const Out<A>& out) {
  constexpr int L = Vec<A>::lanes;
  V<A> acc[MR][NV];
#pragma GCC unroll 16
  for (int t = 0; t < MR; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[t][v] = V<A>{};
  const int64_t row_weights = runs.cols * runs.length * L;
  for (int64_t i = runs.first, c = 0; i < runs.last; c = c + 1 < runs.cols ? c + 1 : (i += runs.every, 0)) {
    const E* u_at = w + i * row_weights + c * runs.length * L;
    // Every third pixel has a pointer; the two behind it are reached by an index register (step, scaled by 1 and 2):
    // one pointer per pixel would not fit into the 16 integer registers.
    constexpr int kPointers = (MR + 2) / 3;
    const E* p[kPointers];
#pragma GCC unroll 5
    for (int q = 0; q < kPointers; ++q) p[q] = x + i * runs.row_step + c * runs.col_step + 3 * q * step;
    const E* next = p[0] + MR * step;
    // Adds term k + j of the run.
    const auto add = [&](int j) __attribute__((always_inline)) {
      decltype(load_term(w)) u[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) u[v] = load_term(u_at + v * panel + j * L);
#pragma GCC unroll 16
      for (int t = 0; t < MR; ++t) {
        const E b = p[t / 3][t % 3 * step + j];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[t][v] = multiply_add(b, u[v], acc[t][v]);
      }
    };
    const auto advance = [&](int terms) __attribute__((always_inline)) {
#pragma GCC unroll 5
      for (int q = 0; q < kPointers; ++q) p[q] += terms;
      u_at += terms * L;
    };
    int64_t k = 0;
    for (; k + kTerms <= runs.length; k += kTerms) {
      if constexpr (Fetch) __builtin_prefetch(next), next += kTerms * MR;
      if constexpr (kAhead > 0)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) __builtin_prefetch(u_at + v * panel + kAhead * L, 0, 3);
#pragma GCC unroll 4
      for (int j = 0; j < kTerms; ++j) add(j);
      advance(kTerms);
    }
    for (; k < runs.length; ++k) add(0), advance(1);
  }
  const Out<A> to = out.from(0);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const V<A> bias = to.bias_of(v);
#pragma GCC unroll 16
    for (int t = 0; t < MR; ++t) to.put(t, v, acc[t][v] + bias);
  }
}

template <class A, class E>
using Accumulate = void (*)(const E*, int64_t, const Runs&, const E*, int64_t, const Out<A>&);

template <class A, class E, int NV, int MR, bool Fetch>
Accumulate<A, E> accumulate_of(int pixels) {
  if constexpr (MR == 0)
    return nullptr;
  else
    return pixels == MR ? &accumulate<A, E, MR, NV, Fetch> : accumulate_of<A, E, NV, MR - 1, Fetch>(pixels);
}

template <class A, class E, bool Fetch = false>
Accumulate<A, E> accumulate_for(int pixels, int vectors) {
  switch (vectors) {
    case 1:
      return accumulate_of<A, E, 1, kMR, Fetch>(pixels);
    case 2:
      return accumulate_of<A, E, 2, kMR, Fetch>(pixels);
    case 3:
      return accumulate_of<A, E, 3, kNarrowMR, Fetch>(pixels);
    default:
      return accumulate_of<A, E, 4, kNarrowMR, Fetch>(pixels);
  }
}

}  // namespace fastcnn::FASTCNN_ISA
