// Two faults that the sanitizers must report, or their silence about fastcnn's library means nothing.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) float read_behind(int64_t n) {
  float* row = new float[n]();
  volatile float* behind = row;
  const float value = behind[n];
  delete[] row;
  return value;
}

extern "C" __attribute__((visibility("default"))) int32_t overflow(int32_t by) { return INT32_MAX - 1 + by; }
