// What a kernel asks of the GPU beyond C++: memory instructions, asynchronous copies, matrix products, exchange
// between threads, conversions. All inline PTX and all intrinsics stand here; under g++ their twins in
// tests/simt/device_host.h check, count and compute the same.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/dtype.h"

namespace fastcnn::cuda {

using half_t = Half;
using bfloat16_t = BFloat16;

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;  // what kernels compute in

// N elements that one instruction moves; N * sizeof(T) is at most 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

constexpr int kWarp = 32, kWarpBits = 5;
constexpr int kSectorBytes = 32;  // of global memory, that move together

template <class T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<half_t> = true;

}  // namespace fastcnn::cuda

#if !defined(__CUDACC__)
#include "device_host.h"
#else
#include <cuda_runtime.h>

namespace fastcnn::cuda {

// By value: of a reference into memory, nvcc would copy byte by byte, as it knows no alignment.
template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<1> {
  using type = uint8_t;
};
template <>
struct BitsOf<2> {
  using type = uint16_t;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint2;
};
template <>
struct BitsOf<16> {
  using type = uint4;
};
template <class T>
using Bits = typename BitsOf<sizeof(T)>::type;

// Global memory. load() may come from the read-only cache: what it reads, no thread of the same launch writes.
template <class T>
__device__ __forceinline__ T load(const T* p) {
  return bit_cast<T>(__ldg(reinterpret_cast<const Bits<T>*>(p)));
}
// Of what the launch itself writes (by this thread, or before a barrier by another of its block).
template <class T>
__device__ __forceinline__ T load_coherent(const T* p) {
  __builtin_assume(__isGlobal(p));
  return bit_cast<T>(*reinterpret_cast<const Bits<T>*>(p));
}
// Zeros, and no access, where !valid.
template <class T>
__device__ __forceinline__ T load_if(bool valid, const T* p) {
  return valid ? load(p) : T{};
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
  __builtin_assume(__isGlobal(p));
  *reinterpret_cast<Bits<T>*>(p) = bit_cast<Bits<T> >(value);
}
// No access where !valid.
template <class T>
__device__ __forceinline__ void store_if(bool valid, T* p, T value) {
  if (valid) store(p, value);
}

// Shared memory.
template <class T>
__device__ __forceinline__ T load_shared(const T* p) {
  __builtin_assume(__isShared(p));
  return bit_cast<T>(*reinterpret_cast<const Bits<T>*>(p));
}
// Zeros, and no access, where !valid.
template <class T>
__device__ __forceinline__ T load_shared_if(bool valid, const T* p) {
  return valid ? load_shared(p) : T{};
}
template <class T>
__device__ __forceinline__ void store_shared(T* p, T value) {
  __builtin_assume(__isShared(p));
  *reinterpret_cast<Bits<T>*>(p) = bit_cast<Bits<T> >(value);
}
__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Copies kBytes from global to shared memory past the registers; where !valid, zeros instead. Both addresses are
// multiples of kBytes, even where nothing is valid.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16)  // .cg: through L2 alone
    asm volatile("{ .reg .pred none; setp.eq.u32 none, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, none; }" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(uint32_t(valid))
                 : "memory");
  else
    asm volatile("{ .reg .pred none; setp.eq.u32 none, %3, 0; cp.async.ca.shared.global [%0], [%1], %2, none; }" ::"r"(
                     shared_address(shared)),
                 "l"(global), "n"(kBytes), "r"(uint32_t(valid))
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of this thread's copies have landed, except those of its last kPending groups.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Exchange of 4 or 8 bytes within a warp, all of whose lanes take part. Where a lane's source lies outside the warp,
// up and down leave it its own value.
constexpr unsigned kFullWarp = 0xffffffffu;
template <int kBytes>
struct ShuffleBitsOf;
template <>
struct ShuffleBitsOf<4> {
  using type = unsigned;
};
template <>
struct ShuffleBitsOf<8> {
  using type = unsigned long long;
};
template <class T>
using ShuffleBits = typename ShuffleBitsOf<sizeof(T)>::type;
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return bit_cast<T>(__shfl_sync(kFullWarp, bit_cast<ShuffleBits<T> >(value), lane));
}
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int delta) {
  return bit_cast<T>(__shfl_up_sync(kFullWarp, bit_cast<ShuffleBits<T> >(value), delta));
}
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int delta) {
  return bit_cast<T>(__shfl_down_sync(kFullWarp, bit_cast<ShuffleBits<T> >(value), delta));
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return bit_cast<T>(__shfl_xor_sync(kFullWarp, bit_cast<ShuffleBits<T> >(value), mask));
}

// Conversions: round to nearest even, NaN stays NaN.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}
__device__ __forceinline__ float to_float(bfloat16_t x) { return __uint_as_float(uint32_t(x.bits) << 16); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  T t;
  if constexpr (sizeof(T) == 4)
    t = x;
  else if constexpr (is_half<T>)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(t.bits) : "f"(x));
  else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(t.bits) : "f"(x));
  return t;
}
__device__ __forceinline__ float to_tf32(float x) {  // to nearest, ties away from zero
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// float32: one instruction each, of a relative error below 2^-21; log2's is absolute between 0.5 and 2. float64: as
// libm.
__device__ __forceinline__ float rsqrt(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double rsqrt(double x) { return ::rsqrt(x); }
__device__ __forceinline__ double exp2(double x) { return ::exp2(x); }
__device__ __forceinline__ double log2(double x) { return ::log2(x); }

// Keeps x in a register: nvcc may else compute it anew wherever it is used, inside of a loop, too.
__device__ __forceinline__ void keep(int& x) { asm volatile("" : "+r"(x)); }
template <class T>
__device__ __forceinline__ void keep(const T*& p) {
  asm volatile("" : "+l"(p));
}

// ldmatrix: 8x8 matrices of 16-bit elements from shared memory. Row r of matrix j is the 16 bytes at the address that
// lane 8j+r gives; the other lanes' addresses are unused. Lane l gets in r[j] row l/4, columns 2(l%4) and 2(l%4)+1 of
// matrix j; transposed, rows 2(l%4) and 2(l%4)+1 of column l/4.
__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b by one warp, a row-major (16 x k), b column-major (k x 8), sums in float32. With g = lane/4, t = lane%4:
//   d[i]:                         row g + 8(i/2),     column 2t + i%2
//   k16, a's element i of 8:      row g + 8((i/2)%2), column 2t + i%2 + 8(i/4)    (elements 2j and 2j+1 are a[j])
//   k16, b's element i of 4:      row 2t + i%2 + 8(i/2), column g                 (elements 2j and 2j+1 are b[j])
//   k8 (tf32), a[i]:              row g + 8(i%2),     column t + 4(i/2)
//   k8 (tf32), b[i]:              row t + 4i,         column g
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (is_half<T>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The low 13 bits of a's and b's float32 patterns are ignored: round by to_tf32 first, or the product truncates.
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fastcnn::cuda
#endif

namespace fastcnn::cuda {

// How many elements behind the start of its sector p lies.
template <class T>
__device__ __forceinline__ int behind_sector(const T* p) {
  return int(reinterpret_cast<uintptr_t>(p) % kSectorBytes / sizeof(T));
}

// Any element type to what the kernel computes in, and back.
template <class T>
__device__ __forceinline__ Acc<T> to_acc(T x) {
  if constexpr (sizeof(T) == 8)
    return x;
  else
    return to_float(x);
}
template <class T>
__device__ __forceinline__ T from_acc(Acc<T> x) {
  if constexpr (sizeof(T) == 8)
    return x;
  else
    return from_float<T>(x);
}

}  // namespace fastcnn::cuda
