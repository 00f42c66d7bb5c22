// What AddressSanitizer and ThreadSanitizer must be told: the change of stacks, which accesses are the kernel's and
// which this machinery's own, and which rendezvous order memory.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
extern "C" {
void __asan_loadN(uintptr_t address, size_t bytes);
void __asan_storeN(uintptr_t address, size_t bytes);
}
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void __tsan_ignore_thread_begin();  // of accesses; acquire and release count
void __tsan_ignore_thread_end();
}
#endif

#define SIMT_INLINE inline __attribute__((always_inline))
// Of functions that begin on one fiber and end on another: ThreadSanitizer keeps a call stack for each.
#define SIMT_UNINSTRUMENTED __attribute__((noinline, no_sanitize("thread")))

namespace simt {

// The sanitizers see an access of exactly these bytes, at the kernel's line. A memcpy or memset of a constant size is
// no substitute: the compiler expands it into moves that ThreadSanitizer never hears of.
SIMT_INLINE void touch_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_loadN(reinterpret_cast<uintptr_t>(p), bytes);
#elif defined(__SANITIZE_THREAD__)
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
SIMT_INLINE void touch_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_storeN(reinterpret_cast<uintptr_t>(p), bytes);
#elif defined(__SANITIZE_THREAD__)
  __tsan_write_range(p, bytes);
#endif
}

// In its scope accesses are the machinery's: the fibers share its state by turns, which is no race.
struct OwnAccesses {
#if defined(__SANITIZE_THREAD__)
  OwnAccesses() { __tsan_ignore_thread_begin(); }
  ~OwnAccesses() { __tsan_ignore_thread_end(); }
#else
  OwnAccesses() {}
  ~OwnAccesses() {}
#endif
  OwnAccesses(const OwnAccesses&) = delete;
};

// What happened before release(key) in one thread happens before what follows acquire(key) in another.
using Key = char;
inline void release([[maybe_unused]] Key& key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&key);
#endif
}
inline void acquire([[maybe_unused]] Key& key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&key);
#endif
}

}  // namespace simt
