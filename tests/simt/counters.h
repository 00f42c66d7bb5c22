// Counts what the memory system would do. The n-th access of each lane of a warp at one line of the kernel, counted
// from the last barrier on, makes one request: as the hardware groups them where lanes do not diverge. (Of lanes that
// skip an access, the later ones fall into earlier requests; load_if keeps the place.)
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "site.h"

namespace simt {

enum Kind : int32_t { kGlobalLoad, kGlobalStore, kSharedLoad, kSharedStore, kLdmatrix, kKinds };

// Of a warp's requests. Units are 32-byte sectors of global memory, wavefronts (cycles) of shared memory; ideal are
// the fewest for the same bytes: sectors all of whose bytes are used, wavefronts without a bank conflict.
struct Traffic {
  uint64_t requests, bytes, units, ideal;
};

struct Counters {
  Traffic traffic[kKinds];
  uint64_t read_bytes, written_bytes;  // of distinct sectors, launch by launch: the least that DRAM must move
  uint64_t mma, barriers, launches;
};

struct SiteTraffic {
  const char* file;
  int32_t line, kind;
  Traffic traffic;
};

class Counting {
 public:
  void reset() { totals_ = {}, sites_.clear(), ids_.clear(); }
  const Counters& totals() const { return totals_; }
  const std::vector<SiteTraffic>& sites() const { return sites_; }

  void begin_launch(unsigned warps) {
    ++totals_.launches;
    for (auto& set : sectors_) set.clear();
    open_.assign(warps, {});
  }
  void end_launch() {
    totals_.read_bytes += kSector * sectors_[kGlobalLoad].size();
    totals_.written_bytes += kSector * sectors_[kGlobalStore].size();
  }
  void mma() { ++totals_.mma; }
  void barrier() { ++totals_.barriers; }

  void access(Kind kind, unsigned warp, unsigned lane, const void* p, unsigned bytes, const Site& site) {
    auto& open = open_[warp];
    const size_t id = id_of(kind, site);
    if (open.size() <= id) open.resize(id + 1);
    auto& at = open[id];
    const size_t nth = at.executed[lane]++;
    if (at.requests.size() <= nth) at.requests.resize(nth + 1);
    at.requests[nth].address[lane] = reinterpret_cast<uintptr_t>(p);
    at.requests[nth].bytes[lane] = uint8_t(bytes);
  }

  // At a barrier and at a block's end no request is still to be joined by a lane.
  void close_requests() {
    for (auto& warp : open_)
      for (size_t id = 0; id < warp.size(); ++id) {
        for (const Request& r : warp[id].requests) tally(sites_[id], r);
        warp[id].requests.clear();
        warp[id].executed = {};
      }
  }

 private:
  static constexpr uintptr_t kSector = 32, kBanks = 32, kWord = 4;

  struct Request {
    std::array<uintptr_t, 32> address{};
    std::array<uint8_t, 32> bytes{};  // 0: the lane takes no part
  };
  struct Open {
    std::array<uint32_t, 32> executed{};
    std::vector<Request> requests;
  };

  size_t id_of(Kind kind, const Site& site) {
    const auto [it, is_new] = ids_.try_emplace({site.file, site.line, kind}, sites_.size());
    if (is_new) sites_.push_back({site.file, site.line, kind, {}});
    return it->second;
  }

  void tally(SiteTraffic& site, const Request& r) {
    Traffic t{1, 0, 0, 0};
    for (const uint8_t bytes : r.bytes) t.bytes += bytes;
    if (t.bytes == 0) return;  // no lane took part
    if (site.kind == kGlobalLoad || site.kind == kGlobalStore)
      count_sectors(r, sectors_[site.kind], t);
    else
      count_wavefronts(r, t);
    for (Traffic* sum : {&site.traffic, &totals_.traffic[site.kind]}) {
      sum->requests += t.requests;
      sum->bytes += t.bytes;
      sum->units += t.units;
      sum->ideal += t.ideal;
    }
  }

  static void count_sectors(const Request& r, std::unordered_set<uintptr_t>& launch, Traffic& t) {
    std::map<uintptr_t, unsigned> distinct;  // lanes that read the same bytes share them
    std::vector<uintptr_t> sectors;
    for (int lane = 0; lane < 32; ++lane) {
      if (r.bytes[lane] == 0) continue;
      unsigned& bytes = distinct[r.address[lane]];
      bytes = std::max<unsigned>(bytes, r.bytes[lane]);
      sectors.push_back(r.address[lane] / kSector);  // an aligned access lies in one sector
    }
    uint64_t used = 0;
    for (const auto& [address, bytes] : distinct) used += bytes;
    std::sort(sectors.begin(), sectors.end());
    sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
    launch.insert(sectors.begin(), sectors.end());
    t.units = sectors.size();
    t.ideal = (used + kSector - 1) / kSector;
  }

  // A wavefront serves one 4-byte word of each bank. Accesses of 8 bytes go by half warps, of 16 by quarters (as do
  // ldmatrix's rows, eight to a matrix); lanes that want the same word share it.
  static void count_wavefronts(const Request& r, Traffic& t) {
    const int widest = *std::max_element(r.bytes.begin(), r.bytes.end());
    const int lanes = widest == 16 ? 8 : widest == 8 ? 16 : 32;
    for (int first = 0; first < 32; first += lanes) {
      std::vector<uintptr_t> words;
      for (int lane = first; lane < first + lanes; ++lane)
        for (unsigned b = 0; b < r.bytes[lane]; b += kWord) words.push_back((r.address[lane] + b) / kWord);
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      std::array<unsigned, kBanks> load{};
      for (const uintptr_t word : words) ++load[word % kBanks];
      t.units += *std::max_element(load.begin(), load.end());
      t.ideal += !words.empty();
    }
  }

  Counters totals_{};
  std::vector<SiteTraffic> sites_;
  std::map<std::tuple<const char*, int, Kind>, size_t> ids_;
  std::vector<std::vector<Open>> open_;  // by warp and site
  std::unordered_set<uintptr_t> sectors_[2];
};

}  // namespace simt
