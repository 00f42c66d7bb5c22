// With FASTCNN_SIMT_TRACE=1 launches are listed and not run: what a layer of full size would start.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "settings.h"

namespace simt {

struct LaunchRecord {
  const char* type;  // mangled, of launch()'s closure: names the kernel
  uint32_t grid[3], block[3];
  uint64_t shared;
};

struct Trace {
  std::mutex lock;
  std::vector<LaunchRecord> launches;
};
inline Trace& trace() {
  static Trace trace;
  return trace;
}

inline bool tracing() {
  const std::lock_guard<std::mutex> hold(trace().lock);
  return choice<bool>("FASTCNN_SIMT_TRACE", {{"0", false}, {"1", true}});
}

inline const char* record(const LaunchRecord& launch) {
  const std::lock_guard<std::mutex> hold(trace().lock);
  trace().launches.push_back(launch);
  return nullptr;
}

}  // namespace simt
