// The input gradient of a strided convolution as convolutions of stride 1.
#pragma once
#include <cstdint>
#include <vector>

namespace fastcnn {

// Rows (or columns) of dx that read the same taps: first, first+step, ... Each such phase is a convolution of stride 1
// over g with those taps alone.
struct Phase {
  int64_t first, step, count;
  int32_t taps, padding, spread;  // spread: of g, whose elements stand on every spread-th position
  int64_t tap, tap_step;          // the taps it reads
};

// dx[h] = sum over i with h+p-i*d = s*q of w[i] * g[q]. Undilated, h = s*t + a reads the taps i = tap + s*k, and of g
// the positions t + (a+p-tap)/s - k. A dilated, strided convolution reads g with its elements spread instead.
inline std::vector<Phase> phases(int64_t size, int32_t k, int32_t s, int32_t p, int32_t d) {
  if (s == 1 || d > 1) return {{0, 1, size, k, d * (k - 1) - p, s, 0, 1}};
  std::vector<Phase> all;
  for (int32_t a = 0; a < s && a < size; ++a) {
    const int32_t tap = (a + p) % s, taps = tap < k ? (k - tap + s - 1) / s : 0;
    all.push_back({a, s, (size - a + s - 1) / s, taps, taps - 1 - (a + p - tap) / s, 1, tap, s});
  }
  return all;
}

}  // namespace fastcnn
