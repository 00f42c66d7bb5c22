#include "async_copy.h"

#include <numeric>

#include "machine.h"

namespace simt {

static void land(const PendingCopy& copy) {
  touch_read(copy.global, copy.valid);
  touch_write(copy.shared, copy.bytes);
  OwnAccesses own;
  std::memcpy(copy.shared, copy.global, copy.valid);
  std::memset(static_cast<char*>(copy.shared) + copy.valid, 0, copy.bytes - copy.valid);
}

void copy_async(void* shared, const void* global, bool valid, size_t bytes, const Site& site) {
  const size_t taken = valid ? bytes : 0;
  machine.aligned(shared, bytes, "cp.async to shared memory", site);
  machine.aligned(global, bytes, "cp.async from global memory", site);
  machine.shared_access(shared, bytes, "cp.async to shared memory", site);
  machine.global_access(global, taken, kGlobalLoad, false, site);
  machine.count(kSharedStore, shared, bytes, site);
  const PendingCopy copy{shared, global, taken, bytes};
  if (machine.settings().copy == Copy::kEager) return land(copy);
  touch_read(global, taken);
  touch_write(shared, bytes);
  OwnAccesses own;
  std::memset(shared, SharedMemory::kPoison, bytes);
  machine.current().copies.push_back(copy);
}

void commit_copies() {
  OwnAccesses own;
  Thread& thread = machine.current();
  const size_t earlier = std::accumulate(thread.groups.begin(), thread.groups.end(), size_t(0));
  thread.groups.push_back(thread.copies.size() - earlier);
}

void wait_copies(size_t pending_groups) {
  std::vector<PendingCopy> landing;
  {
    OwnAccesses own;
    Thread& thread = machine.current();
    size_t copies = 0, groups = 0;
    while (thread.groups.size() - groups > pending_groups) copies += thread.groups[groups++];
    thread.groups.erase(thread.groups.begin(), thread.groups.begin() + long(groups));
    landing.assign(thread.copies.begin(), thread.copies.begin() + long(copies));
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + long(copies));
  }
  for (const PendingCopy& copy : landing) land(copy);
}

}  // namespace simt
