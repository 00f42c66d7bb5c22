// A line of a kernel: the identity of an access or rendezvous there, and its name in reports.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda_names.h"

namespace simt {

struct Site {
  const char* file;
  int line;
};

inline bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}
inline bool operator!=(const Site& a, const Site& b) { return !(a == b); }

// As a default argument: the caller's line.
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

inline std::string text(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}
inline std::string text(const dim3& d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}
inline std::string text(const void* p) {
  char digits[2 + 16 + 1];
  std::snprintf(digits, sizeof digits, "%#lx", reinterpret_cast<unsigned long>(p));
  return digits;
}

}  // namespace simt
