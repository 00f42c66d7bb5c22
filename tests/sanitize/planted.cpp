// Faults that the sanitizers must report, or their silence about fastcnn's library means nothing.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) float read_behind(int64_t n) {
  float* row = new float[n]();
  volatile float* behind = row;
  const float value = behind[n];
  delete[] row;
  return value;
}

extern "C" __attribute__((visibility("default"))) int32_t overflow(int32_t by) { return INT32_MAX - 1 + by; }

#if defined(FASTCNN_LOWERED)
#include "cpu/vec.h"

// The first n lanes of a vector of 16 from a row of 8. (An AVX-512 CPU's own masked load no sanitizer watches.)
extern "C" __attribute__((visibility("default"))) float read_masked(int64_t n) {
  float* row = new float[8]();
  const float value = fastcnn::avx512::load(row, int(n))[0];
  delete[] row;
  return value;
}
#endif
