// Memory of large outputs, kept from call to call. The C library gives blocks above 32 MB back to the system as they
// are freed, and the next one costs a page fault per 4 KiB: more than many a kernel takes to fill it. Blocks are cut
// from what is kept and joined as they come back, since a network's layers differ in size.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastcnn {

// Smaller tensors are the C library's business: it keeps their memory itself.
constexpr size_t kArenaBytes = size_t{1} << 20;

// At least `bytes`, aligned to 64 KiB, contents undefined; null where the system has no more.
void* arena_take(size_t bytes);
void arena_give_back(void* block);

// Returns what nothing uses to the system.
void arena_clear();

// Bytes held, in use by tensors and kept for the next ones; and how often that grew.
struct ArenaUse {
  size_t used, kept, growths;
};
ArenaUse arena_use();

// For tests: blocks are handed out filled with a pattern that is NaN in every floating dtype.
void arena_poison(bool on);

}  // namespace fastcnn
