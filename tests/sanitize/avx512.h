// The AVX-512 kernels' source on a CPU that has AVX2 alone: included before every file of the library. The compiler
// takes vectors of 64 bytes apart, the intrinsics that the kernels use stand here, lane by lane, and the CPU is said to
// have what it lacks. Tiles, masks and accesses to memory are those of AVX-512; instructions and speed are not.
#pragma once
#include <immintrin.h>

#define __builtin_cpu_supports(feature) 1

#if defined(FASTCNN_LOWERED)  // one of the AVX-512 kernels
#define __AVX512F__ 1
#define FASTCNN_NO_ASSEMBLY 1

namespace lowered {

constexpr int kLanes = 16;

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
}
inline __m512d fmadd(__m512d a, __m512d b, __m512d c) {
  for (int i = 0; i < kLanes / 2; ++i) a[i] = __builtin_fma(a[i], b[i], c[i]);
  return a;
}
inline __m512 max(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 rsqrt(__m512 a) {
  for (int i = 0; i < kLanes; ++i) a[i] = 1 / __builtin_sqrtf(a[i]);
  return a;
}
inline __m512 widen(__m256i halves) {
  __m512 floats;
  const __m256 parts[] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                          _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  __builtin_memcpy(&floats, parts, sizeof floats);
  return floats;
}
inline __m256i narrow(__m512 floats) {
  __m256 parts[2];
  __builtin_memcpy(parts, &floats, sizeof floats);
  return _mm256_set_m128i(_mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT));
}
inline __m512i widen(__m128i bytes) {
  __m512i words;
  const __m256i parts[] = {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  __builtin_memcpy(&words, parts, sizeof words);
  return words;
}
inline __m512 load(unsigned mask, const float* p) {
  __m512 v{};
  for (int i = 0; i < kLanes; ++i)
    if (mask >> i & 1) v[i] = p[i];
  return v;
}
inline void store(float* p, unsigned mask, __m512 v) {
  for (int i = 0; i < kLanes; ++i)
    if (mask >> i & 1) p[i] = v[i];
}
inline unsigned nan(__m512 a) {
  unsigned mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= unsigned(a[i] != a[i]) << i;
  return mask;
}
inline unsigned not_positive_normal(__m512 a) {
  unsigned mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= unsigned(!(a[i] >= 0x1p-126f && a[i] <= 0x1.fffffep127f)) << i;
  return mask;
}

}  // namespace lowered

// With the arguments that the kernels give: all lanes, rounding to nearest, a comparison with itself, these classes.
#define _mm512_fmadd_ps(a, b, c) lowered::fmadd(a, b, c)
#define _mm512_fmadd_pd(a, b, c) lowered::fmadd(a, b, c)
#define _mm512_maskz_max_ps(all, a, b) lowered::max(a, b)
#define _mm512_maskz_rsqrt14_ps(all, a) lowered::rsqrt(a)
#define _mm512_maskz_cvtph_ps(all, a) lowered::widen(a)
#define _mm512_maskz_cvtps_ph(all, a, rounding) lowered::narrow(a)
#define _mm512_maskz_cvtepu8_epi32(all, a) lowered::widen(a)
#define _mm512_maskz_loadu_ps(mask, p) lowered::load(mask, p)
#define _mm512_mask_storeu_ps(p, mask, v) lowered::store(p, mask, v)
#define _mm512_cmp_ps_mask(a, b, unordered) lowered::nan(a)
#define _mm512_fpclass_ps_mask(a, classes) lowered::not_positive_normal(a)
#endif
