// The host's twins of csrc/cuda/device.cuh, included by it: same names, same results, each access checked.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

#include "async_copy.h"
#include "simt.h"
#include "warp.h"

namespace fastcnn::cuda {

using simt::here;
using simt::machine;
using simt::Site;

template <class To, class From>
SIMT_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
SIMT_INLINE T read_memory(const T* p) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  simt::touch_read(p, sizeof(T));
  T value;
  std::memcpy(&value, static_cast<const void*>(p), sizeof value);
  return value;
}
template <class T>
SIMT_INLINE void write_memory(T* p, const T& value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  simt::touch_write(p, sizeof(T));
  std::memcpy(static_cast<void*>(p), &value, sizeof value);
}

template <class T>
SIMT_INLINE T load(const T* p, Site site = here()) {
  machine.aligned(p, sizeof(T), "global load", site);
  machine.global_access(p, sizeof(T), simt::kGlobalLoad, true, site);
  return read_memory(p);
}
template <class T>
SIMT_INLINE T load_coherent(const T* p, Site site = here()) {
  machine.aligned(p, sizeof(T), "global load", site);
  machine.global_access(p, sizeof(T), simt::kGlobalLoad, false, site);
  return read_memory(p);
}
template <class T>
SIMT_INLINE T load_if(bool valid, const T* p, Site site = here()) {
  if (valid) return load(p, site);
  machine.global_access(p, 0, simt::kGlobalLoad, true, site);
  return T{};
}
template <class T>
SIMT_INLINE void store(T* p, T value, Site site = here()) {
  machine.aligned(p, sizeof(T), "global store", site);
  machine.global_access(p, sizeof(T), simt::kGlobalStore, false, site);
  write_memory(p, value);
}
template <class T>
SIMT_INLINE void store_if(bool valid, T* p, T value, Site site = here()) {
  if (valid) return store(p, value, site);
  machine.global_access(p, 0, simt::kGlobalStore, false, site);
}

template <class T>
SIMT_INLINE T load_shared(const T* p, Site site = here()) {
  machine.aligned(p, sizeof(T), "shared load", site);
  machine.shared_access(p, sizeof(T), "shared load", site);
  machine.count(simt::kSharedLoad, p, sizeof(T), site);
  return read_memory(p);
}
template <class T>
SIMT_INLINE T load_shared_if(bool valid, const T* p, Site site = here()) {
  if (valid) return load_shared(p, site);
  machine.count(simt::kSharedLoad, p, 0, site);
  return T{};
}
template <class T>
SIMT_INLINE void store_shared(T* p, T value, Site site = here()) {
  machine.aligned(p, sizeof(T), "shared store", site);
  machine.shared_access(p, sizeof(T), "shared store", site);
  machine.count(simt::kSharedStore, p, sizeof(T), site);
  write_memory(p, value);
}

template <int kBytes>
SIMT_INLINE void cp_async(void* shared, const void* global, bool valid = true, Site site = here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::copy_async(shared, global, valid, kBytes, site);
}
inline void cp_async_commit() { simt::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  simt::wait_copies(kPending);
}

inline void sync_block(Site site = here()) { machine.barrier(site); }
inline void sync_warp(Site site = here()) { machine.sync_warp(site); }

template <class T>
T shuffle_from(T value, int lane, const char* name, const Site& site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  simt::Shuffle mine{0, lane, 0};
  std::memcpy(&mine.value, &value, sizeof value);
  simt::shuffle(mine, name, site);
  std::memcpy(&value, &mine.result, sizeof value);
  return value;
}
inline int lane_index() { return int(machine.current().id % 32); }
template <class T>
T shuffle(T value, int lane, Site site = here()) {
  return shuffle_from(value, lane & 31, "shuffle", site);
}
template <class T>
T shuffle_up(T value, int delta, Site site = here()) {
  const int lane = lane_index();
  return shuffle_from(value, lane - delta < 0 ? lane : lane - delta, "shuffle_up", site);
}
template <class T>
T shuffle_down(T value, int delta, Site site = here()) {
  const int lane = lane_index();
  return shuffle_from(value, lane + delta > 31 ? lane : lane + delta, "shuffle_down", site);
}
template <class T>
T shuffle_xor(T value, int mask, Site site = here()) {
  return shuffle_from(value, (lane_index() ^ mask) & 31, "shuffle_xor", site);
}

inline float to_float(float x) { return x; }
inline float to_float(half_t x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  const float magnitude = bit_cast<float>(rest << 13) * 0x1p112f;  // re-biases the exponent; exact
  return sign ? -magnitude : magnitude;
}
inline float to_float(bfloat16_t x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

inline half_t to_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000)
    return {0x7fff};  // NaN
  else if (magnitude >= 0x477ff000)
    half = 0x7c00;                   // 65520 and more round to infinity
  else if (magnitude >= 0x38800000)  // 2^-14: normal
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  else  // 0.5's last place is a half's smallest subnormal: the sum rounds
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  return {uint16_t(sign | half)};
}
inline bfloat16_t to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return {uint16_t(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <class T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else if constexpr (is_half<T>)
    return to_half(x);
  else
    return to_bfloat16(x);
}
inline float to_tf32(float x) {
  return bit_cast<float>(x != x ? 0x7fffffff : (bit_cast<uint32_t>(x) + 0x1000) & ~0x1fffu);
}

inline void keep(int&) {}
template <class T>
inline void keep(const T*&) {}

inline float rsqrt(float x) { return float(1 / std::sqrt(double(x))); }
inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline double exp2(double x) { return std::exp2(x); }
inline double log2(double x) { return std::log2(x); }

inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, Site site = here()) {
  simt::ldmatrix<1, false>(r, row, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, Site site = here()) {
  simt::ldmatrix<2, false>(r, row, site);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = here()) {
  simt::ldmatrix<4, false>(r, row, site);
}
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, Site site = here()) {
  simt::ldmatrix<1, true>(r, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, Site site = here()) {
  simt::ldmatrix<2, true>(r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = here()) {
  simt::ldmatrix<4, true>(r, row, site);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = here()) {
  simt::Mma mine{d, a, b};
  machine.collective(
      "mma", &mine,
      [](void* const* lanes) {
        simt::multiply_fragments<16>(lanes, simt::PlaceK16{}, [](const uint32_t* registers, int i) {
          return to_float(T{uint16_t(registers[i / 2] >> i % 2 * 16)});
        });
      },
      site);
}
inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = here()) {
  simt::Mma mine{d, a, b};
  machine.collective(
      "mma", &mine,
      [](void* const* lanes) {
        simt::multiply_fragments<8>(lanes, simt::PlaceK8{}, [](const uint32_t* registers, int i) {
          return bit_cast<float>(registers[i] & ~0x1fffu);
        });
      },
      site);
}

}  // namespace fastcnn::cuda
