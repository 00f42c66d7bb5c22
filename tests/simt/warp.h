// The collectives of a warp: what its 32 lanes compute together once all have arrived.
#pragma once
#include <cstring>

#include "machine.h"

namespace simt {

struct Shuffle {
  uint64_t value;
  int source;  // lane
  uint64_t result;
};

inline void shuffle(Shuffle& mine, const char* name, const Site& site) {
  machine.collective(
      name, &mine,
      [](void* const* lanes) {
        const auto lane = [&](int l) { return static_cast<Shuffle*>(lanes[l]); };
        for (int l = 0; l < 32; ++l) lane(l)->result = lane(lane(l)->source)->value;
      },
      site);
}

struct Ldmatrix {
  const void* row;
  uint32_t* registers;
};

template <int kMatrices, bool kTransposed>
void ldmatrix(uint32_t* registers, const void* row, const Site& site) {
  const unsigned lane = machine.current().id % 32;
  if (lane < 8 * kMatrices) {
    machine.aligned(row, 16, "ldmatrix row", site);
    machine.shared_access(row, 16, "ldmatrix row", site);
    touch_read(row, 16);
    machine.count(kLdmatrix, row, 16, site);
  }
  Ldmatrix mine{row, registers};
  machine.collective(
      "ldmatrix", &mine,
      [](void* const* lanes) {
        for (int j = 0; j < kMatrices; ++j) {
          uint16_t matrix[8][8];
          for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], static_cast<Ldmatrix*>(lanes[8 * j + r])->row, 16);
          for (int l = 0; l < 32; ++l) {
            const int i = l / 4, k = l % 4 * 2;
            const uint32_t low = kTransposed ? matrix[k][i] : matrix[i][k];
            const uint32_t high = kTransposed ? matrix[k + 1][i] : matrix[i][k + 1];
            static_cast<Ldmatrix*>(lanes[l])->registers[j] = low | high << 16;
          }
        }
      },
      site);
}

struct Mma {
  float* d;
  const uint32_t *a, *b;
};

// element(registers, i) is a fragment's i-th element. Products are exact, sums in float32, k upwards: a tensor core
// adds in another order and rounding.
template <int K, class Place, class Element>
void multiply_fragments(void* const* lanes, const Place& place, const Element& element) {
  float a[16][K], b[K][8], d[16][8] = {};
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mma = *static_cast<const Mma*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < K / 2; ++i) a[g + 8 * place.a_row(i)][place.a_column(t, i)] = element(mma.a, i);
    for (int i = 0; i < K / 4; ++i) b[place.b_row(t, i)][g] = element(mma.b, i);
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<const Mma*>(lanes[lane])->d[i] += d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
  if (machine.settings().count) machine.counting().mma();
}

struct PlaceK16 {  // 16-bit elements, two to a register
  static int a_row(int i) { return i / 2 % 2; }
  static int a_column(int t, int i) { return 2 * t + i % 2 + i / 4 * 8; }
  static int b_row(int t, int i) { return 2 * t + i % 2 + i / 2 * 8; }
};
struct PlaceK8 {  // 32-bit elements
  static int a_row(int i) { return i % 2; }
  static int a_column(int t, int i) { return t + i / 2 * 4; }
  static int b_row(int t, int i) { return t + i * 4; }
};

}  // namespace simt
