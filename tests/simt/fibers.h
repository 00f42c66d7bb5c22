// A fiber is a stack of its own and the place where its run halted. One host thread runs all of them by turns.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "sanitizer.h"
#if defined(__x86_64__) && !defined(FASTCNN_SIMT_UCONTEXT)
#define SIMT_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace simt {

// An overflow of the stack hits the page below it, to which nothing may write.
class Stack {
 public:
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr size_t kBytes = 256 * 1024;  // sanitized frames are larger
#else
  static constexpr size_t kBytes = 64 * 1024;
#endif
  Stack() : guard_(size_t(sysconf(_SC_PAGESIZE))) {
    void* p =
        mmap(nullptr, guard_ + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<char*>(p);
    if (mprotect(mapping_, guard_, PROT_NONE) != 0) throw std::bad_alloc();
  }
  ~Stack() { munmap(mapping_, guard_ + kBytes); }
  Stack(const Stack&) = delete;
  char* bottom() const { return mapping_ + guard_; }

 private:
  size_t guard_;
  char* mapping_;
};

#if defined(SIMT_ASSEMBLY)
// Saves the callee-saved registers and the stack pointer, takes up those of another stack.
extern "C" void fastcnn_simt_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".weak fastcnn_simt_switch\n"
    ".hidden fastcnn_simt_switch\n"
    ".type fastcnn_simt_switch, @function\n"
    "fastcnn_simt_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
    "  ret\n"
    ".size fastcnn_simt_switch, .-fastcnn_simt_switch\n");

class Context {
 public:
  void start(char* bottom, size_t bytes, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(bottom + bytes);
    *--top = nullptr;                              // entry's return address: it has none, and so its stack is aligned
    *--top = reinterpret_cast<void*>(entry);       // where the first switch returns to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that it takes up
    stack_pointer_ = top;
  }
  SIMT_UNINSTRUMENTED void switch_to(Context& other) { fastcnn_simt_switch(&stack_pointer_, other.stack_pointer_); }

 private:
  void* stack_pointer_ = nullptr;
};
#else
class Context {
 public:
  void start(char* bottom, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  SIMT_UNINSTRUMENTED void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};
#endif

// The host thread's own stack is a Fiber, too, that never starts.
class Fiber {
 public:
  ~Fiber() {
    delete stack_;
#if defined(__SANITIZE_THREAD__)
    if (owns_tsan_) __tsan_destroy_fiber(tsan_);
#endif
  }

  // The next switch to this fiber calls entry, which never returns and begins with entered(from).
  void start(void (*entry)()) {
    if (!stack_) stack_ = new Stack;
#if defined(__SANITIZE_ADDRESS__)
    // The entry's own frame, from which nothing returned; all deeper ones were left.
    __asan_unpoison_memory_region(stack_->bottom() + Stack::kBytes - 4096, 4096);
    bottom_ = stack_->bottom(), bytes_ = Stack::kBytes, fake_ = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
    if (!owns_tsan_) tsan_ = __tsan_create_fiber(0), owns_tsan_ = true;
#endif
    context_.start(stack_->bottom(), Stack::kBytes, entry);
  }

  // Marks the host thread's own fiber.
  void adopt_current() {
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  // Halts this fiber and runs the other, until something switches back. The switch orders no memory accesses: that
  // the host runs fibers by turns must not hide from ThreadSanitizer what a GPU would run at once.
  SIMT_UNINSTRUMENTED void switch_to(Fiber& other, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(other.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, other.bottom_, other.bytes_);
#endif
    context_.switch_to(other.context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

  // First thing on a fresh fiber's stack; `from` learns where its own stack lies.
  void entered([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.bytes_);
#endif
  }

 private:
  Context context_;
  Stack* stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* fake_ = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan_ = nullptr;
  bool owns_tsan_ = false;
#endif
};

}  // namespace simt
