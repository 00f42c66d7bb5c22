// What Python calls through ctypes: settings, registered memory, counters.
#include "simt.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using simt::machine;

namespace {
std::lock_guard<std::mutex> locked() { return std::lock_guard<std::mutex>(machine.lock()); }
}  // namespace

// FASTCNN_SIMT_...; null gives the name back to the environment.
EXPORT void fastcnn_simt_set(const char* name, const char* value) {
  const auto hold = locked();
  if (value)
    simt::overrides()[name] = value;
  else
    simt::overrides().erase(name);
}

EXPORT void fastcnn_simt_memory_add(const void* p, uint64_t bytes) {
  const auto hold = locked();
  simt::memory().add(p, bytes);
}
EXPORT void fastcnn_simt_memory_clear() {
  const auto hold = locked();
  simt::memory().clear();
}

EXPORT simt::Counters fastcnn_simt_counters() {
  const auto hold = locked();
  return machine.counting().totals();
}
EXPORT void fastcnn_simt_reset_counters() {
  const auto hold = locked();
  machine.counting().reset();
}
// Fills at most `capacity` entries, returns how many there are.
EXPORT uint64_t fastcnn_simt_sites(simt::SiteTraffic* out, uint64_t capacity) {
  const auto hold = locked();
  const auto& sites = machine.counting().sites();
  std::copy_n(sites.begin(), std::min<uint64_t>(capacity, sites.size()), out);
  return sites.size();
}

EXPORT void fastcnn_simt_reset_launches() {
  const std::lock_guard<std::mutex> hold(simt::trace().lock);
  simt::trace().launches.clear();
}
// Fills at most `capacity` entries, returns how many there are.
EXPORT uint64_t fastcnn_simt_launches(simt::LaunchRecord* out, uint64_t capacity) {
  const std::lock_guard<std::mutex> hold(simt::trace().lock);
  const auto& launches = simt::trace().launches;
  std::copy_n(launches.begin(), std::min<uint64_t>(capacity, launches.size()), out);
  return launches.size();
}
