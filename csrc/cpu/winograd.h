// One-dimensional transforms of Winograd's F(4, 3): four outputs of three taps by six multiplications instead of twelve
// (Lavin and Gray, 2015, arXiv:1509.09308). Polynomials are evaluated at 0, +-3/4, +-3/2 and infinity: exact in binary,
// and closer together than the usual 0, +-1, +-2, which makes the rounding error half to a fifth.
#pragma once
#include "cpu/vec.h"

namespace fastcnn::FASTCNN_ISA::winograd {

constexpr int kOut = 4, kTaps = 3, kIn = 6;  // of a tile along each axis
constexpr int kPoints = kIn * kIn;

// B^T d: six inputs.
template <class A>
inline void input(const V<A> (&d)[kIn], V<A> (&o)[kIn]) {
  const V<A> near_even = d[4] - A(2.25) * d[2], near_odd = A(0.75) * d[3] - A(1.6875) * d[1];
  const V<A> far_even = d[4] - A(0.5625) * d[2], far_odd = A(1.5) * d[3] - A(0.84375) * d[1];
  o[0] = d[4] + A(1.265625) * d[0] - A(2.8125) * d[2];
  o[1] = near_even + near_odd;
  o[2] = near_even - near_odd;
  o[3] = far_even + far_odd;
  o[4] = far_even - far_odd;
  o[5] = d[5] + A(1.265625) * d[1] - A(2.8125) * d[3];
}

// G w: three taps.
template <class A>
inline void weight(const V<A> (&w)[kTaps], V<A> (&o)[kIn]) {
  const V<A> near_even = A(-128.0 / 243) * w[0] - A(8.0 / 27) * w[2], near_odd = A(-32.0 / 81) * w[1];
  const V<A> far_even = A(32.0 / 243) * w[0] + A(8.0 / 27) * w[2], far_odd = A(16.0 / 81) * w[1];
  o[0] = A(64.0 / 81) * w[0];
  o[1] = near_even + near_odd;
  o[2] = near_even - near_odd;
  o[3] = far_even + far_odd;
  o[4] = far_even - far_odd;
  o[5] = w[2];
}

// A^T m: four outputs.
template <class A>
inline void output(const V<A> (&m)[kIn], V<A> (&o)[kOut]) {
  const V<A> near_sum = m[1] + m[2], near_difference = m[1] - m[2];
  const V<A> far_sum = m[3] + m[4], far_difference = m[3] - m[4];
  o[0] = m[0] + near_sum + far_sum;
  o[1] = A(0.75) * near_difference + A(1.5) * far_difference;
  o[2] = A(0.5625) * near_sum + A(2.25) * far_sum;
  o[3] = m[5] + A(0.421875) * near_difference + A(3.375) * far_difference;
}

// A g: the gradients of four outputs.
template <class A>
inline void output_gradient(const V<A> (&g)[kOut], V<A> (&o)[kIn]) {
  const V<A> near_even = g[0] + A(0.5625) * g[2], near_odd = A(0.75) * g[1] + A(0.421875) * g[3];
  const V<A> far_even = g[0] + A(2.25) * g[2], far_odd = A(1.5) * g[1] + A(3.375) * g[3];
  o[0] = g[0];
  o[1] = near_even + near_odd;
  o[2] = near_even - near_odd;
  o[3] = far_even + far_odd;
  o[4] = far_even - far_odd;
  o[5] = g[3];
}

// G^T m: the gradients of three taps.
template <class A>
inline void weight_gradient(const V<A> (&m)[kIn], V<A> (&o)[kTaps]) {
  const V<A> near_sum = m[1] + m[2], near_difference = m[1] - m[2];
  const V<A> far_sum = m[3] + m[4], far_difference = m[3] - m[4];
  o[0] = A(64.0 / 81) * m[0] - A(128.0 / 243) * near_sum + A(32.0 / 243) * far_sum;
  o[1] = A(16.0 / 81) * far_difference - A(32.0 / 81) * near_difference;
  o[2] = m[5] + A(8.0 / 27) * (far_sum - near_sum);
}

// Applies a transform of N to M values along both axes: from(i, j) gives values, to(i, j, v) takes results.
template <int N, int M, class A, class From, class Transform, class To>
inline void square(const From& from, const Transform& transform, const To& to) {
  V<A> half[M][N];
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    V<A> column[N], o[M];
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) column[i] = from(i, j);
    transform(column, o);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) half[i][j] = o[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i) {
    V<A> o[M];
    transform(half[i], o);
#pragma GCC unroll 6
    for (int j = 0; j < M; ++j) to(i, j, o[j]);
  }
}

}  // namespace fastcnn::FASTCNN_ISA::winograd
