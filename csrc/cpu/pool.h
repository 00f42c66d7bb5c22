// What the pooling kernels share: vector loops, strided rows, NaN-keeping maxima.
#pragma once
#include "cpu/vec.h"
#include "ops/window.h"

namespace fastcnn::FASTCNN_ISA {

template <class A>
using VI = decltype(V<A>{} > V<A>{});  // a comparison's lanes: integers as wide as A

// f(i, n) for vectors of n lanes at i that together cover [0, count): n is Lanes, except where count is less. The last
// vector may overlap the one before it, so f must not read what it writes.
template <int Lanes, class F>
inline __attribute__((always_inline)) void each_vector(int64_t count, const F& f) {
  if (count < Lanes) {
    if (count > 0) f(int64_t{0}, int(count));
    return;
  }
  int64_t i = 0;
  for (; i + Lanes <= count; i += Lanes) f(i, Lanes);
  if (i < count) f(count - Lanes, Lanes);
}

// The larger of the best so far and a new value, or the new one if it is NaN. A NaN stays: no value compares greater.
template <class VA>
inline VA max_or_nan(VA best, VA v) {
  const VA larger = v > best ? v : best;
  return v == v ? larger : v;
}

// The even lanes of a then b, the odd ones, and the two halves of a and b interleaved.
template <class A>
inline V<A> evens(V<A> a, V<A> b) {
  constexpr int lanes = Vec<A>::lanes;
  if constexpr (lanes == 2)
    return __builtin_shufflevector(a, b, 0, 2);
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
template <class A>
inline V<A> odds(V<A> a, V<A> b) {
  constexpr int lanes = Vec<A>::lanes;
  if constexpr (lanes == 2)
    return __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
template <class A>
inline V<A> interleave_low(V<A> a, V<A> b) {
  constexpr int lanes = Vec<A>::lanes;
  if constexpr (lanes == 2)
    return __builtin_shufflevector(a, b, 0, 2);
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
template <class A>
inline V<A> interleave_high(V<A> a, V<A> b) {
  constexpr int lanes = Vec<A>::lanes;
  if constexpr (lanes == 2)
    return __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (lanes == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// A row's elements into its phases, and back. With one phase the row is its own phase: returns where the result is.
template <class A>
inline A* split(const PhasedRow& r, A* row, A* phases) {
  constexpr int lanes = Vec<A>::lanes;
  if (r.s == 1) return row;
  if (r.s == 2) {
    for (int64_t t = 0; t < r.ld; t += lanes) {  // ld is a multiple of every vector's lanes
      const V<A> a = load(row + 2 * t), b = load(row + 2 * t + lanes);
      store(phases + t, evens<A>(a, b));
      store(phases + r.ld + t, odds<A>(a, b));
    }
    return phases;
  }
  for (int64_t t = 0; t < r.ld; ++t)
    for (int64_t f = 0; f < r.s; ++f) phases[f * r.ld + t] = row[t * r.s + f];
  return phases;
}
template <class A>
inline A* merge(const PhasedRow& r, A* phases, A* row) {
  constexpr int lanes = Vec<A>::lanes;
  if (r.s == 1) return phases;
  if (r.s == 2) {
    for (int64_t t = 0; t < r.ld; t += lanes) {
      const V<A> a = load(phases + t), b = load(phases + r.ld + t);
      store(row + 2 * t, interleave_low<A>(a, b));
      store(row + 2 * t + lanes, interleave_high<A>(a, b));
    }
    return row;
  }
  for (int64_t t = 0; t < r.ld; ++t)
    for (int64_t f = 0; f < r.s; ++f) row[t * r.s + f] = phases[f * r.ld + t];
  return row;
}

// Slides windows over an NHWC row. Where they overlap, a column (its values over the window's rows, reduced; a vector
// of channels) serves several windows, so columns are kept in `ring`, column w at ring + slot[w]: 6 loads an output for
// 3x3 stride 2 instead of 9. reduce(w, column) makes a column; combine(q) an output from its window's columns.
template <class A, class Reduce, class Combine>
inline __attribute__((always_inline)) void slide(const Window* columns, int64_t count, const int64_t* slot, A* ring,
                                                 const Reduce& reduce, const Combine& combine) {
  int64_t next = 0;  // the first column not yet made
  for (int64_t q = 0; q < count; ++q) {
    if (columns[q].begin > next) next = columns[q].begin;
    for (; next < columns[q].end; ++next) reduce(next, ring + slot[next]);
    combine(q);
  }
}

// Consecutive parts of a task's scratch memory, each on cache lines of its own.
struct Parts {
  char* at;

  template <class U>
  U* take(int64_t count) {
    U* part = reinterpret_cast<U*>(at);
    at += (count * int64_t(sizeof(U)) + 63) / 64 * 64;
    return part;
  }
};

}  // namespace fastcnn::FASTCNN_ISA
