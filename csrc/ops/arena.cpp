#include "ops/arena.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

namespace fastcnn {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kGranule = size_t{64} << 10;

// A block may serve a request that is smaller by up to one part in eight: sizes recur from step to step, and a looser
// fit would hold memory that nothing fills.
constexpr size_t kSlack = 8;

struct Arena {
  std::mutex mutex;
  std::multimap<size_t, void*> kept;       // by size
  std::unordered_map<void*, size_t> used;  // sizes of the blocks in use
  size_t used_bytes = 0, kept_bytes = 0, most_used_bytes = 0;
  bool poison = false;
};

// Never destroyed: tensors may outlive every static object.
Arena& arena() {
  static Arena* const it = new Arena;
  return *it;
}

// A child that is forked while another thread holds the mutex would wait for it for ever.
const int fork_handlers =
    pthread_atfork([] { arena().mutex.lock(); }, [] { arena().mutex.unlock(); }, [] { arena().mutex.unlock(); });

void* map_aligned(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  void* const at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(at), block = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (block > start) munmap(at, block - start);
  munmap(reinterpret_cast<void*>(block + bytes), start + mapped - block - bytes);
  void* const out = reinterpret_cast<void*>(block);
#ifdef MADV_HUGEPAGE
  madvise(out, bytes, MADV_HUGEPAGE);  // advice: without it the block works, more slowly
#endif
  return out;
}

void unmap_kept(Arena& a, size_t until) {
  while (a.kept_bytes > until) {
    const auto largest = std::prev(a.kept.end());
    munmap(largest->second, largest->first);
    a.kept_bytes -= largest->first;
    a.kept.erase(largest);
  }
}

}  // namespace

void* arena_take(size_t bytes) {
  bytes = (bytes + kGranule - 1) / kGranule * kGranule;
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  void* block = nullptr;
  auto fit = a.kept.lower_bound(bytes);
  if (fit != a.kept.end() && fit->first <= bytes + bytes / kSlack) {
    bytes = fit->first, block = fit->second;
    a.kept_bytes -= bytes;
    a.kept.erase(fit);
  } else {
    // What is used and kept together stays below the most that was ever used at once.
    const size_t most = a.most_used_bytes > a.used_bytes + bytes ? a.most_used_bytes : a.used_bytes + bytes;
    unmap_kept(a, most - a.used_bytes - bytes);
    block = map_aligned(bytes);
    if (!block) {
      unmap_kept(a, 0);
      block = map_aligned(bytes);
    }
    if (!block) return nullptr;
  }
  a.used.emplace(block, bytes);
  a.used_bytes += bytes;
  if (a.used_bytes > a.most_used_bytes) a.most_used_bytes = a.used_bytes;
  if (a.poison) std::memset(block, 0xff, bytes);
  return block;
}

void arena_give_back(void* block) {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  const auto at = a.used.find(block);
  a.kept.emplace(at->second, block);
  a.used_bytes -= at->second;
  a.kept_bytes += at->second;
  a.used.erase(at);
}

void arena_clear() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  unmap_kept(a, 0);
  a.most_used_bytes = a.used_bytes;
}

ArenaUse arena_use() {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  return {a.used_bytes, a.kept_bytes};
}

void arena_poison(bool on) {
  Arena& a = arena();
  const std::lock_guard<std::mutex> lock(a.mutex);
  a.poison = on;
}

}  // namespace fastcnn
