#include "ops/arena.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace fastcnn {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kGranule = size_t{64} << 10;

// Address space that is asked for at once; what nobody has written to takes no memory.
constexpr size_t kRegion = size_t{1} << 30;

char* map_region(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  // Not with MAP_NORESERVE: the system would grant a block that is larger than its memory, and kill whoever fills it.
  void* const at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(at), region = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (region > start) munmap(at, region - start);
  munmap(reinterpret_cast<void*>(region + bytes), start + mapped - region - bytes);
  char* const out = reinterpret_cast<char*>(region);
#ifdef MADV_HUGEPAGE
  madvise(out, bytes, MADV_HUGEPAGE);  // advice: without it the region works, more slowly
#endif
  return out;
}

struct Arena {
  std::mutex mutex;
  std::map<char*, size_t> kept;                // ranges that nothing uses; no two of them touch
  std::set<std::pair<size_t, char*>> by_size;  // the same
  std::unordered_map<void*, size_t> used;      // sizes of the blocks in use
  char *top = nullptr, *limit = nullptr;       // of the newest region: what no block has had yet
  size_t used_bytes = 0, kept_bytes = 0, most_used_bytes = 0, growths = 0;
  bool poison = false;

  void erase(std::map<char*, size_t>::iterator range) {
    by_size.erase({range->second, range->first});
    kept_bytes -= range->second;
    kept.erase(range);
  }

  // Keeps a range, as one with those that touch it.
  void keep(char* at, size_t bytes) {
    const auto behind = kept.find(at + bytes);
    if (behind != kept.end()) bytes += behind->second, erase(behind);
    const auto next = kept.lower_bound(at);
    if (next != kept.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == at) at = before->first, bytes += before->second, erase(before);
    }
    kept.emplace(at, bytes);
    by_size.emplace(bytes, at);
    kept_bytes += bytes;
  }

  // A block of the smallest range that holds it, of which the rest stays; or null.
  char* cut(size_t bytes) {
    const auto fit = by_size.lower_bound({bytes, nullptr});
    if (fit == by_size.end()) return nullptr;
    const auto [size, at] = *fit;
    erase(kept.find(at));
    if (size > bytes) keep(at + bytes, size - bytes);
    return at;
  }

  // Makes room for a block where the newest region ends, as an extension of the range before it: blocks that each had
  // a mapping of their own would never join. Or in a new region; false where the system has none.
  bool grow(size_t bytes) {
    size_t missing = bytes;
    const auto next = kept.lower_bound(top);
    if (next != kept.begin()) {
      const auto last = std::prev(next);
      if (last->first + last->second == top) missing -= last->second;
    }
    if (size_t(limit - top) < missing) {
      const size_t size = std::max(bytes, kRegion);
      char *region = map_region(size), *end = region + size;
      if (!region) region = map_region(bytes), end = region + bytes;
      if (!region) return false;
      if (limit > top) munmap(top, limit - top);
      top = region, limit = end, missing = bytes;
    }
    keep(top, missing);
    top += missing;
    ++growths;
    return true;
  }

  // Unmaps the largest ranges until no more than this is kept.
  void shrink(size_t bytes) {
    while (kept_bytes > bytes) {
      const auto [size, at] = *by_size.rbegin();
      munmap(at, size);
      erase(kept.find(at));
    }
  }
};

// Never destroyed: tensors may outlive every static object.
Arena& arena() {
  static Arena* const it = new Arena;
  return *it;
}

// A child that is forked while another thread holds the mutex would wait for it for ever.
const int fork_handlers =
    pthread_atfork([] { arena().mutex.lock(); }, [] { arena().mutex.unlock(); }, [] { arena().mutex.unlock(); });

}  // namespace

void* arena_take(size_t bytes) {
  bytes = (bytes + kGranule - 1) / kGranule * kGranule;
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  char* block = a.cut(bytes);
  const bool fits = block;
  if (!fits) {
    bool grown = a.grow(bytes);
    if (!grown) a.shrink(0), grown = a.grow(bytes);
    if (!grown) return nullptr;
    block = a.cut(bytes);
  }
  a.used.emplace(block, bytes);
  a.used_bytes += bytes;
  a.most_used_bytes = std::max(a.most_used_bytes, a.used_bytes);
  // Used and kept stay within the most that was ever used at once, and half for what lies between the blocks.
  if (!fits) a.shrink(a.most_used_bytes + a.most_used_bytes / 2 - a.used_bytes);
  if (a.poison) std::memset(block, 0xff, bytes);
  return block;
}

void arena_give_back(void* block) {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  const auto at = a.used.find(block);
  a.used_bytes -= at->second;
  a.keep(static_cast<char*>(block), at->second);
  a.used.erase(at);
}

void arena_clear() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  a.shrink(0);
  a.most_used_bytes = a.used_bytes;
}

ArenaUse arena_use() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  return {a.used_bytes, a.kept_bytes, a.growths};
}

void arena_poison(bool on) {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  a.poison = on;
}

}  // namespace fastcnn
