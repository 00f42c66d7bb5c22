// FASTCNN_SIMT_* of the environment, read at each launch, or what set() put in their place.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>

namespace simt {

enum class Order { kForward, kReverse, kShuffle };
enum class Copy { kLazy, kEager };

struct Settings {
  Order order = Order::kForward;  // of a block's threads, and of the blocks
  Copy copy = Copy::kLazy;        // when cp.async lands: at the wait for it, or at once
  uint64_t seed = 0;              // of the shuffle
  bool check_blocks = false;      // report what one block writes and another reads or writes
  bool count = false;             // fill the counters
  uint64_t spin = 100'000'000;    // a thread that accesses memory so often between two rendezvous waits for ever
};

inline std::map<std::string, std::string>& overrides() {
  static std::map<std::string, std::string> map;
  return map;
}

inline std::string setting(const char* name, const char* otherwise) {
  if (const auto it = overrides().find(name); it != overrides().end()) return it->second;
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

template <class T>
T choice(const char* name, std::initializer_list<std::pair<const char*, T>> values) {
  const std::string given = setting(name, values.begin()->first);
  std::string expected;
  for (const auto& [text, value] : values) {
    if (given == text) return value;
    expected += (expected.empty() ? "" : ", ") + std::string(text);
  }
  throw std::invalid_argument(std::string(name) + "=" + given + ": expected one of " + expected);
}

inline uint64_t number(const char* name, uint64_t otherwise) {
  const std::string given = setting(name, "");
  if (given.empty()) return otherwise;
  char* end;
  const uint64_t value = std::strtoull(given.c_str(), &end, 10);
  if (*end) throw std::invalid_argument(std::string(name) + "=" + given + ": expected a number");
  return value;
}

// Of the chip that stands in: an H100's.
inline int processors(int) { return int(number("FASTCNN_SIMT_PROCESSORS", 132)); }

inline Settings read_settings() {
  Settings s;
  s.order = choice<Order>("FASTCNN_SIMT_ORDER",
                          {{"forward", Order::kForward}, {"reverse", Order::kReverse}, {"shuffle", Order::kShuffle}});
  s.copy = choice<Copy>("FASTCNN_SIMT_COPY", {{"lazy", Copy::kLazy}, {"eager", Copy::kEager}});
  s.seed = number("FASTCNN_SIMT_SEED", s.seed);
  s.check_blocks = choice<bool>("FASTCNN_SIMT_CHECK_BLOCKS", {{"0", false}, {"1", true}});
  s.count = choice<bool>("FASTCNN_SIMT_COUNT", {{"0", false}, {"1", true}});
  s.spin = number("FASTCNN_SIMT_SPIN", s.spin);
  return s;
}

}  // namespace simt
