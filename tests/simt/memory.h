// A block's shared memory, the ranges that global accesses must keep to, and who wrote what in a launch.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "sanitizer.h"
#include "site.h"

namespace simt {

// Exactly as many bytes as the launch asks for, all NaN when a block begins. Before and after them lies a margin:
// AddressSanitizer reports any access there, without it a changed byte is found when the block ends.
class SharedMemory {
 public:
  ~SharedMemory() { unguard(); }

  void begin_block(size_t bytes) {
    unguard();
    if (bytes > capacity_) {
      arena_.reset(static_cast<unsigned char*>(std::aligned_alloc(kAlign, round_up(bytes) + 2 * kMargin)));
      if (!arena_) throw std::bad_alloc();
      capacity_ = round_up(bytes);
    }
    bytes_ = bytes;
    if (!arena_) return;
    std::memset(arena_.get(), kPoison, kMargin + bytes_ + kMargin);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(arena_.get(), kMargin);
    __asan_poison_memory_region(data() + bytes_, kMargin);
#endif
  }

  std::string end_block() {
    if (!arena_) return {};
    unguard();
    for (const unsigned char* margin : {arena_.get(), data() + bytes_}) {
      if (margin[0] == kPoison && !std::memcmp(margin, margin + 1, kMargin - 1)) continue;
      const auto* written = std::find_if(margin, margin + kMargin, [](unsigned char byte) { return byte != kPoison; });
      return "shared memory written at byte " + std::to_string(offset(written)) + " of " + std::to_string(bytes_);
    }
    return {};
  }

  unsigned char* data() const { return arena_ ? arena_.get() + kMargin : nullptr; }
  size_t bytes() const { return bytes_; }
  int64_t offset(const void* p) const { return static_cast<const unsigned char*>(p) - data(); }
  bool contains(const void* p, size_t bytes) const {
    return arena_ && offset(p) >= 0 && uint64_t(offset(p)) + bytes <= bytes_;
  }

  static constexpr unsigned char kPoison = 0xFF;

 private:
  static constexpr size_t kAlign = 128, kMargin = 4096;
  static size_t round_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }
  void unguard() {
#if defined(__SANITIZE_ADDRESS__)
    if (arena_) __asan_unpoison_memory_region(arena_.get(), capacity_ + 2 * kMargin);
#endif
  }

  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, Free> arena_;
  size_t capacity_ = 0, bytes_ = 0;
};

// Ranges of memory that a kernel may access; with none, all may be.
class Ranges {
 public:
  // Ranges that overlap are one, as a tensor and its view; ranges that only touch are two.
  void add(const void* p, size_t bytes) {
    uintptr_t start = reinterpret_cast<uintptr_t>(p), end = start + bytes;
    auto next = ranges_.lower_bound(end);
    while (next != ranges_.begin()) {
      const auto range = std::prev(next);
      if (range->first + range->second <= start && range->first != start) break;
      start = std::min(start, range->first);
      end = std::max(end, range->first + range->second);
      next = ranges_.erase(range);
    }
    ranges_[start] = end - start;
  }
  void clear() { ranges_.clear(); }
  bool any() const { return !ranges_.empty(); }

  bool contain(const void* p, size_t bytes) const {
    const auto range = at_or_before(p);
    const auto address = reinterpret_cast<uintptr_t>(p);
    return range != ranges_.end() && address + bytes <= range->first + range->second;
  }

  std::string describe(const void* p) const {  // the nearest range at lower addresses
    const auto range = at_or_before(p);
    if (range == ranges_.end()) return "before every registered range";
    return std::to_string(reinterpret_cast<uintptr_t>(p) - range->first) + " bytes into a registered range of " +
           std::to_string(range->second);
  }

 private:
  std::map<uintptr_t, size_t>::const_iterator at_or_before(const void* p) const {
    const auto after = ranges_.upper_bound(reinterpret_cast<uintptr_t>(p));
    return after == ranges_.begin() ? ranges_.end() : std::prev(after);
  }
  std::map<uintptr_t, size_t> ranges_;
};

// Of each byte of global memory, the blocks that wrote and that read it in this launch. Blocks run in no order, so
// that one must not write what another accesses.
class BlockShadow {
 public:
  void clear() { lines_.clear(); }

  std::string read(const void* p, size_t bytes, uint32_t block, bool read_only) {
    for (size_t i = 0; i < bytes; ++i) {
      Byte& b = at(p, i);
      if (b.writer != kNone && b.writer != block) return "reads what block " + std::to_string(b.writer) + " wrote";
      if (b.writer != kNone && read_only) return "load() may return a stale value of what this launch wrote";
      b.reader = b.reader == kNone || b.reader == block ? block : kMany;
    }
    return {};
  }

  std::string write(const void* p, size_t bytes, uint32_t block) {
    for (size_t i = 0; i < bytes; ++i) {
      Byte& b = at(p, i);
      if (b.writer != kNone && b.writer != block) return "writes what block " + std::to_string(b.writer) + " wrote";
      if (b.reader != kNone && b.reader != block)
        return "writes what " + (b.reader == kMany ? "several blocks" : "block " + std::to_string(b.reader)) + " read";
      b.writer = block;
    }
    return {};
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff, kMany = 0xfffffffe;
  static constexpr uintptr_t kLine = 64;
  struct Byte {
    uint32_t writer = kNone, reader = kNone;
  };
  struct Line {
    Byte bytes[kLine];
  };
  Byte& at(const void* p, size_t i) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p) + i;
    return lines_[address / kLine].bytes[address % kLine];
  }
  std::unordered_map<uintptr_t, Line> lines_;
};

}  // namespace simt
