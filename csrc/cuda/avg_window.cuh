// Average pooling's windows along one axis, forward and backward, computed where a kernel needs them.
#pragma once
#include "cuda/avg_pool2d.cuh"
#include "cuda/windows.cuh"

namespace fastcnn::cuda {

constexpr int64_t kMostPositions = (int64_t{1} << 31) - 1;  // of one axis: Divisor takes 31 bits

// i * to / from, rounded down or up, for 0 <= i <= from. With to = whole * from + rest it is i * whole and a fraction
// that 31 bits hold.
struct Ratio {
  int whole, rest;
  Divisor by_from;

  Ratio() = default;
  Ratio(int64_t to, int64_t from) : whole(int(to / from)), rest(int(to % from)), by_from(from) {}
  static bool fits(int64_t to, int64_t from) { return from * (to % from + 1) <= kMostPositions; }
  __device__ int down(int i) const { return i * whole + int(by_from.divide(uint32_t(i) * rest)); }
  __device__ int up(int i) const { return i * whole + int(by_from.divide(uint32_t(i) * rest + by_from.d - 1)); }
};

// AvgPoolAxis as the kernels use it.
struct AvgAxis {
  int in, out, k, s, p, count_include_pad;
  Divisor by_s;
  Ratio inward, outward;  // adaptive: of the input's positions to an output's, and the other way round

  AvgAxis(const AvgPoolAxis& a, bool count)
      : in(int(a.in)), out(int(a.out)), k(int(a.k)), s(int(a.s)), p(int(a.p)), count_include_pad(count) {
    if (k) {
      by_s = Divisor(a.s);
    } else {
      inward = Ratio(a.in, a.out), outward = Ratio(a.out, a.in);
    }
  }
};

// Of output i the positions of the input; backward: of position i of the input the outputs whose windows hold it.
template <bool kBackward>
__device__ __forceinline__ void window_of(const AvgAxis& a, int i, int& begin, int& end) {
  if (a.k == 0) {  // a window of an adaptive axis holds i just where i's own share of the outputs holds the window
    const Ratio& r = kBackward ? a.outward : a.inward;
    begin = r.down(i), end = r.up(i + 1);
  } else if (kBackward) {
    covering(i, a.out, a.k, a.by_s, a.p, begin, end);
  } else {
    const int start = i * a.s - a.p;
    begin = start < 0 ? 0 : start, end = start + a.k < a.in ? start + a.k : a.in;
  }
}

// ATen's divisor of output q's window: its size with the padding that it reaches, at most p behind the input (ceil
// mode's windows may reach further); without count_include_pad, and adaptive, the positions inside the input.
__device__ __forceinline__ int divisor_of(const AvgAxis& a, int q) {
  if (a.k == 0 || !a.count_include_pad) {
    int begin, end;
    window_of<false>(a, q, begin, end);
    return end - begin;
  }
  const int start = q * a.s - a.p;
  return (start + a.k < a.in + a.p ? start + a.k : a.in + a.p) - start;
}

// About how many positions a window holds.
inline int64_t reads(const AvgPoolAxis& a, bool backward) {
  if (a.k == 0) return (backward ? a.out / a.in : a.in / a.out) + 1;
  return backward ? (a.k + a.s - 1) / a.s : a.k < a.in ? a.k : a.in;
}

inline const char* refused(const AvgPoolAxis& a) {
  if (a.in > kMostPositions - a.p - a.k || a.out > kMostPositions) return "an axis exceeds 2^31 positions";
  if (a.k == 0 && !(Ratio::fits(a.in, a.out) && Ratio::fits(a.out, a.in)))
    return "an axis's input and output sizes are too large for adaptive pooling";
  return nullptr;
}

}  // namespace fastcnn::cuda
