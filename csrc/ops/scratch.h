// Working memory of a thread, kept from call to call: a fresh allocation of this size costs a page fault per 4 KiB.
#pragma once
#include <cstdlib>
#include <new>

namespace fastcnn {

class Scratch {
 public:
  // At least `bytes`, aligned to a cache line, contents undefined; valid until the thread asks again.
  static void* get(size_t bytes) {
    static thread_local Scratch mine;
    if (bytes > mine.size_) {
      std::free(mine.data_);
      mine.size_ = 0;
      mine.data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (!mine.data_) throw std::bad_alloc();
      mine.size_ = bytes;
    }
    return mine.data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastcnn
