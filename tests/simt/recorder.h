// Keeps the launches of a run, arguments included, so that compiled code can repeat them.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "cuda_names.h"

namespace simt {

struct Recorded {
  std::string kernel;  // as the compiler prints it
  dim3 grid, block;
  uint64_t shared;
  std::vector<std::string> arguments;  // their bytes, which are laid out on the device as here
};

struct Recorder {
  bool on = false;
  std::vector<Recorded> launches;
};
inline Recorder& recorder() {
  static Recorder recorder;
  return recorder;
}

template <class T>
std::string bytes_of(const T& argument) {
  return std::string(reinterpret_cast<const char*>(&argument), sizeof argument);
}

template <class... Args>
void record(const char* kernel, dim3 grid, dim3 block, size_t shared, const Args&... arguments) {
  if (recorder().on) recorder().launches.push_back({kernel, grid, block, shared, {bytes_of(arguments)...}});
}

}  // namespace simt
