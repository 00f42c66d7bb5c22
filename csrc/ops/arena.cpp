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

struct Arena {
  std::mutex mutex;
  std::map<char*, size_t> kept;                // ranges that nothing uses; no two of them touch
  std::set<std::pair<size_t, char*>> by_size;  // the same
  std::unordered_map<void*, size_t> used;      // sizes of the blocks in use
  size_t used_bytes = 0, kept_bytes = 0, most_used_bytes = 0, mappings = 0;
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

char* map_aligned(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  void* const at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(at), block = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (block > start) munmap(at, block - start);
  munmap(reinterpret_cast<void*>(block + bytes), start + mapped - block - bytes);
  char* const out = reinterpret_cast<char*>(block);
#ifdef MADV_HUGEPAGE
  madvise(out, bytes, MADV_HUGEPAGE);  // advice: without it the block works, more slowly
#endif
  return out;
}

}  // namespace

void* arena_take(size_t bytes) {
  bytes = (bytes + kGranule - 1) / kGranule * kGranule;
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  char* block = a.cut(bytes);
  if (!block) {
    // Used and kept stay within the most that was ever used at once, and half for what lies between the blocks.
    const size_t used = a.used_bytes + bytes, most = std::max(a.most_used_bytes, used);
    a.shrink(most + most / 2 - used);
    block = map_aligned(bytes);
    if (!block) {
      a.shrink(0);
      block = map_aligned(bytes);
    }
    if (!block) return nullptr;
    ++a.mappings;
  }
  a.used.emplace(block, bytes);
  a.used_bytes += bytes;
  a.most_used_bytes = std::max(a.most_used_bytes, a.used_bytes);
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
  return {a.used_bytes, a.kept_bytes, a.mappings};
}

void arena_poison(bool on) {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  a.poison = on;
}

}  // namespace fastcnn
