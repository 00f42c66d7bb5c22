// Runs a launch: the blocks one after another, a block's threads by turns, each until its next rendezvous. A finding
// stops the launch, which returns the text. What every access passes through stands here, the rest in machine.cpp.
#pragma once
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "counters.h"
#include "fibers.h"
#include "memory.h"
#include "settings.h"

namespace simt {

struct Stop {};  // unwinds a thread's stack once there is a finding

struct PendingCopy {
  void* shared;
  const void* global;
  size_t valid, bytes;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
  Fiber fiber;
  unsigned id = 0;
  dim3 index;
  State state = State::kDone;
  bool started = false;
  Site site{};            // of the rendezvous that it waits at
  uint64_t accesses = 0;  // since it last ran
  bool warp_parity = false;
  std::vector<PendingCopy> copies;  // cp.async, oldest first
  std::vector<size_t> groups;       // how many of them each committed group has, oldest first
};

// At most one collective is under way in a warp.
struct Warp {
  unsigned arrived = 0;
  const char* name = nullptr;
  Site site{};
  void* arguments[32];
  Key keys[2];
};

class Machine {
 public:
  using Call = void (*)(const void* kernel);
  using Perform = void (*)(void* const* arguments);

  // Null, or a text that holds until this host thread's next launch.
  const char* run(dim3 grid, dim3 block, size_t shared, Call call, const void* kernel);

  // What follows is for the running thread.

  void barrier(const Site& site);
  // The last lane of the warp to arrive performs the collective for all.
  void collective(const char* name, void* arguments, Perform perform, const Site& site);
  void sync_warp(const Site& site);  // unlike other collectives, orders memory accesses

  void aligned(const void* p, size_t bytes, const char* what, const Site& site) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail_misaligned(p, bytes, what, site);
  }
  void global_access(const void* p, size_t bytes, Kind kind, bool read_only, const Site& site) {
    if (++current_->accesses > settings_.spin) fail_spinning(site);
    if (watching_ && bytes > 0) watch(p, bytes, kind, read_only, site);
    count(kind, p, bytes, site);  // of 0 bytes, too: the lane's next access belongs to the next request
  }
  void shared_access(const void* p, size_t bytes, const char* what, const Site& site) {
    if (!shared_.contains(p, bytes)) fail_outside_shared(p, bytes, what, site);
  }
  void count(Kind kind, const void* p, size_t bytes, const Site& site) {
    if (settings_.count) count_access(kind, p, bytes, site);
  }

  [[noreturn]] void fail(const std::string& what);

  Thread& current() { return *current_; }
  const Settings& settings() const { return settings_; }
  SharedMemory& shared() { return shared_; }
  Ranges& ranges() { return ranges_; }
  Counting& counting() { return counting_; }
  std::mutex& lock() { return lock_; }

 private:
  [[noreturn]] void fail_misaligned(const void* p, size_t bytes, const char* what, const Site& site);
  [[noreturn]] void fail_spinning(const Site& site);
  [[noreturn]] void fail_outside_shared(const void* p, size_t bytes, const char* what, const Site& site);
  void watch(const void* p, size_t bytes, Kind kind, bool read_only, const Site& site);
  void count_access(Kind kind, const void* p, size_t bytes, const Site& site);

  void report(const std::string& what);
  void leave(State state);
  void resume(Thread& thread);
  SIMT_UNINSTRUMENTED static void thread_main();
  std::string launch(dim3 grid, dim3 block, size_t shared, Call call, const void* kernel);
  void run_block();
  void wake_barrier();
  std::string deadlock() const;

  static constexpr unsigned kMaxThreads = 1024;
  static constexpr size_t kMaxShared = 227 * 1024;

  std::mutex lock_;
  Settings settings_;
  std::string finding_;
  Fiber host_;
  std::vector<std::unique_ptr<Thread>> threads_;  // they and their stacks serve every launch
  Warp warps_[kMaxThreads / 32];
  unsigned count_ = 0;  // threads of a block
  Thread* current_ = nullptr;
  unsigned at_barrier_ = 0;
  Site barrier_site_{};
  Key barrier_keys_[2], start_key_, end_key_;
  bool barrier_parity_ = false;
  Call call_ = nullptr;
  const void* kernel_ = nullptr;
  std::mt19937_64 random_;
  bool watching_ = false;
  uint32_t block_number_ = 0;
  SharedMemory shared_;
  Ranges ranges_;
  BlockShadow shadow_;
  Counting counting_;
};

extern Machine machine;  // one for the process; launches take turns

}  // namespace simt
