// What Python calls through ctypes to read the record. From one thread.
#include "recorder.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct RecordedLaunch {
  const char* kernel;
  uint32_t grid[3], block[3];
  uint64_t shared, arguments;
};

// Starts an empty record, or ends it.
EXPORT void fastcnn_simt_record(int32_t on) {
  simt::recorder().on = on;
  if (on) simt::recorder().launches.clear();
}

EXPORT uint64_t fastcnn_simt_recorded() { return simt::recorder().launches.size(); }

EXPORT RecordedLaunch fastcnn_simt_launch(uint64_t i) {
  const auto& l = simt::recorder().launches.at(i);
  return {l.kernel.c_str(),
          {l.grid.x, l.grid.y, l.grid.z},
          {l.block.x, l.block.y, l.block.z},
          l.shared,
          l.arguments.size()};
}

// The bytes of an argument, and in `size` how many they are.
EXPORT const char* fastcnn_simt_argument(uint64_t i, uint64_t argument, uint64_t* size) {
  const auto& bytes = simt::recorder().launches.at(i).arguments.at(argument);
  *size = bytes.size();
  return bytes.data();
}
