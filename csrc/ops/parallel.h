// torch's thread pool, made safe: after fork() the pool's threads are gone and OpenMP would wait for them
// for ever; and the stable parallel_for replaces a worker's exception by a message without content.
#pragma once
#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>

namespace fastcnn {

// Registered when the library loads: a handler that is installed in the child comes too late.
inline bool& in_forked_child() {
  static bool forked = false;
  return forked;
}
inline const int fork_handler = pthread_atfork(nullptr, nullptr, [] { in_forked_child() = true; });

inline int64_t num_threads() { return in_forked_child() ? 1 : torch::stable::get_num_threads(); }

// f(begin, end) over chunks of [0, n), at least `grain` long; the first exception of any chunk reaches the caller.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain || num_threads() == 1) return f(int64_t{0}, n);
  std::exception_ptr error;
  std::once_flag first;
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      std::call_once(first, [&] { error = std::current_exception(); });
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace fastcnn
