// Division of 31-bit numbers by one that all threads share: a multiplication and a shift for the some twenty
// instructions of a division (Granlund and Montgomery 1994, "Division by invariant integers using multiplication").
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace fastcnn::cuda {

// n / d for 0 <= n < 2^31 and 1 <= d < 2^31: with 2^(shift-1) < d <= 2^shift, multiplier = ceil(2^(31+shift) / d) has
// at most 32 bits and exceeds 2^(31+shift) / d by less than 2^shift / 2^(31+shift), too little to reach the next
// quotient.
struct Divisor {
  uint32_t d, multiplier, shift;

  Divisor() = default;
  explicit Divisor(int64_t by) : d(uint32_t(by)), shift(0) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = uint32_t(((uint64_t{1} << (31 + shift)) + d - 1) / d);
  }
  __host__ __device__ uint32_t divide(uint32_t n) const { return uint32_t((uint64_t(n) * multiplier) >> 31 >> shift); }
  // n = divide(n) * d + rest
  __host__ __device__ uint32_t divide(uint32_t n, uint32_t& rest) const {
    const uint32_t q = divide(n);
    rest = n - q * d;
    return q;
  }
};

}  // namespace fastcnn::cuda
