#include "machine.h"

#include <numeric>
#include <stdexcept>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

Machine machine;

const char* Machine::run(dim3 grid, dim3 block, size_t shared, Call call, const void* kernel) {
  thread_local std::string result;
  std::lock_guard<std::mutex> hold(lock_);
  OwnAccesses own;
  try {
    result = launch(grid, block, shared, call, kernel);
  } catch (const std::exception& e) {  // a setting, or no memory
    result = std::string("simt: ") + e.what();
  }
  return result.empty() ? nullptr : result.c_str();
}

// Findings.

void Machine::report(const std::string& what) {
  if (finding_.empty()) finding_ = "simt: " + what;
}

void Machine::fail(const std::string& what) {
  report(what + ", thread " + text(current_->index) + " of block " + text(blockIdx));
  throw Stop{};
}

void Machine::fail_misaligned(const void* p, size_t bytes, const char* what, const Site& site) {
  fail("misaligned " + std::string(what) + " of " + std::to_string(bytes) + " bytes at " + text(site) + ": address " +
       text(p));
}

void Machine::fail_spinning(const Site& site) {
  fail("thread spins: " + std::to_string(settings_.spin) + " accesses without a rendezvous, last at " + text(site));
}

void Machine::fail_outside_shared(const void* p, size_t bytes, const char* what, const Site& site) {
  fail(std::string(what) + " of " + std::to_string(bytes) + " bytes out of bounds at " + text(site) + ": byte " +
       std::to_string(shared_.offset(p)) + " of " + std::to_string(shared_.bytes()) + " of shared memory");
}

void Machine::watch(const void* p, size_t bytes, Kind kind, bool read_only, const Site& site) {
  OwnAccesses own;
  const char* what = kind == kGlobalLoad ? "load" : "store";
  if (ranges_.any() && !ranges_.contain(p, bytes))
    fail("global " + std::string(what) + " of " + std::to_string(bytes) + " bytes out of bounds at " + text(site) +
         ": " + ranges_.describe(p));
  if (settings_.check_blocks) {
    const std::string race = kind == kGlobalStore ? shadow_.write(p, bytes, block_number_)
                                                  : shadow_.read(p, bytes, block_number_, read_only);
    if (!race.empty())
      fail("race between blocks at " + text(site) + ": block " + std::to_string(block_number_) + " " + race);
  }
}

void Machine::count_access(Kind kind, const void* p, size_t bytes, const Site& site) {
  OwnAccesses own;
  counting_.access(kind, current_->id / 32, current_->id % 32, p, unsigned(bytes), site);
}

// Rendezvous.

void Machine::barrier(const Site& site) {
  OwnAccesses own;
  if (at_barrier_ == 0) barrier_site_ = site;
  if (site != barrier_site_)
    fail("divergent barrier: reached at " + text(site) + " while other threads wait at " + text(barrier_site_));
  ++at_barrier_;
  Key& key = barrier_keys_[barrier_parity_];  // the other one may still be acquired from the barrier before
  release(key);
  current_->site = site;
  leave(State::kAtBarrier);
  acquire(key);
}

void Machine::collective(const char* name, void* arguments, Perform perform, const Site& site) {
  OwnAccesses own;
  Thread& thread = *current_;
  Warp& warp = warps_[thread.id / 32];
  if (count_ % 32)
    fail(std::string(name) + " at " + text(site) + " in a block of " + std::to_string(count_) +
         " threads: not whole warps");
  if (warp.arrived == 0) warp.name = name, warp.site = site;
  if ((warp.name != name && std::strcmp(warp.name, name)) || warp.site != site)
    fail("divergent warp: lane " + std::to_string(thread.id % 32) + " reached " + name + " at " + text(site) +
         " while others wait in " + warp.name + " at " + text(warp.site));
  warp.arguments[thread.id % 32] = arguments;
  thread.site = site;
  if (++warp.arrived < 32) return leave(State::kInWarp);
  perform(warp.arguments);
  warp.arrived = 0;
  for (unsigned lane = 0; lane < 32; ++lane) threads_[thread.id / 32 * 32 + lane]->state = State::kReady;
}

void Machine::sync_warp(const Site& site) {
  Key& key = warps_[current_->id / 32].keys[current_->warp_parity ^= 1];  // as for the barrier's
  release(key);
  collective("sync_warp", nullptr, [](void* const*) {}, site);
  acquire(key);
}

// Back to the scheduler, until the state is kReady again.
void Machine::leave(State state) {
  Thread& thread = *current_;
  thread.state = state;
  thread.fiber.switch_to(host_);
  if (!finding_.empty()) throw Stop{};
}

void Machine::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  thread.accesses = 0;
  thread.started = true;
  host_.switch_to(thread.fiber);
}

void Machine::thread_main() {
  Machine& m = machine;
  m.current_->fiber.entered(m.host_);
  acquire(m.start_key_);  // not end_key_: a key that threads both take and give would order them
  try {
    m.call_(m.kernel_);
    if (const size_t n = m.current_->copies.size())
      m.fail("thread ended with " + std::to_string(n) + " cp.async in flight");
  } catch (const Stop&) {
  } catch (const std::exception& e) {
    m.report(e.what());
  }
  release(m.end_key_);
  m.current_->state = State::kDone;
  m.current_->fiber.switch_to(m.host_, true);
}

// The scheduler.

std::string Machine::launch(dim3 grid, dim3 block, size_t shared, Call call, const void* kernel) {
  settings_ = read_settings();
  finding_.clear();
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) return "simt: invalid configuration: block " + text(block);
  if (grid.x > 0x7fffffffu || grid.y > 0xffff || grid.z > 0xffff)
    return "simt: invalid configuration: grid " + text(grid);
  if (shared > kMaxShared) return "simt: invalid configuration: " + std::to_string(shared) + " bytes of shared memory";

  count_ = unsigned(threads);
  call_ = call, kernel_ = kernel;
  gridDim = grid, blockDim = block;
  random_.seed(settings_.seed);
  watching_ = ranges_.any() || settings_.check_blocks;
  shadow_.clear();
  if (settings_.count) counting_.begin_launch((count_ + 31) / 32);
  host_.adopt_current();
  while (threads_.size() < count_) threads_.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i]->id = i;
    threads_[i]->index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  }

  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> shuffled;
  if (settings_.order == Order::kShuffle) {
    shuffled.resize(blocks);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
  }
  for (uint64_t i = 0; i < blocks && finding_.empty(); ++i) {
    const uint64_t b = settings_.order == Order::kForward   ? i
                       : settings_.order == Order::kReverse ? blocks - 1 - i
                                                            : shuffled[i];
    block_number_ = uint32_t(b);
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    shared_.begin_block(shared);
    run_block();
    if (const std::string overrun = shared_.end_block(); !overrun.empty())
      report(overrun + ", block " + text(blockIdx));
    if (settings_.count) counting_.close_requests();
  }
  if (settings_.count) counting_.end_launch();
  return finding_;
}

void Machine::run_block() {
  release(start_key_);
  for (Warp& warp : warps_) warp.arrived = 0;
  at_barrier_ = 0;
  std::vector<Thread*> order;
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.state = State::kReady;
    thread.started = false;
    thread.warp_parity = false;
    thread.copies.clear();
    thread.groups.clear();
    thread.fiber.start(thread_main);
    order.push_back(&thread);
  }
  if (settings_.order == Order::kReverse) std::reverse(order.begin(), order.end());

  for (bool progress = true; progress && finding_.empty();) {
    progress = false;
    if (settings_.order == Order::kShuffle) std::shuffle(order.begin(), order.end(), random_);
    for (Thread* thread : order)
      if (thread->state == State::kReady && finding_.empty()) resume(*thread), progress = true;
    if (at_barrier_ == count_ && finding_.empty()) wake_barrier();
  }
  if (finding_.empty()) {
    const bool all_done = std::all_of(order.begin(), order.end(), [](Thread* t) { return t->state == State::kDone; });
    if (!all_done) report(deadlock() + ", block " + text(blockIdx));
  }
  for (Thread* thread : order)  // with a finding: each one's stack unwinds
    if (thread->started && thread->state != State::kDone) resume(*thread);
  acquire(end_key_);
}

void Machine::wake_barrier() {
  at_barrier_ = 0;
  barrier_parity_ = !barrier_parity_;
  for (unsigned i = 0; i < count_; ++i) threads_[i]->state = State::kReady;
  if (settings_.count) counting_.barrier(), counting_.close_requests();
}

// No thread can go on: says who waits for whom.
std::string Machine::deadlock() const {
  const auto place = [](const Thread& t) {
    return t.state == State::kDone ? std::string("has ended") : "waits at " + text(t.site);
  };
  for (unsigned w = 0; w < count_ / 32; ++w)
    for (unsigned lane = 0; warps_[w].arrived > 0 && lane < 32; ++lane)
      if (const Thread& t = *threads_[w * 32 + lane]; t.state != State::kInWarp)
        return std::string("lane missing from a warp collective: ") + warps_[w].name + " at " + text(warps_[w].site) +
               " waits for lane " + std::to_string(lane) + " of warp " + std::to_string(w) + ", which " + place(t);
  for (unsigned i = 0; i < count_; ++i)
    if (const Thread& t = *threads_[i]; t.state != State::kAtBarrier)
      return "thread missing from a barrier: " + std::to_string(at_barrier_) + " of " + std::to_string(count_) +
             " threads wait at " + text(barrier_site_) + ", thread " + text(t.index) + " " + place(t);
  return "deadlock";
}

}  // namespace simt
