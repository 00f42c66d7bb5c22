// Picks the best compiled instruction set once, at load.
#pragma once
#include <cstdlib>
#include <cstring>

namespace fastcnn {

enum class Isa { baseline, avx2, avx512 };

inline Isa supported_isa() {
#ifdef FASTCNN_X86
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

// FASTCNN_CPU_CAPABILITY, else ATEN_CPU_CAPABILITY, may lower it, so that one machine tests all.
inline Isa cpu_isa() {
  static const Isa isa = [] {
    const Isa has = supported_isa();
    const char* want = std::getenv("FASTCNN_CPU_CAPABILITY");
    if (!want) want = std::getenv("ATEN_CPU_CAPABILITY");
    if (!want) return has;
    const Isa top = !std::strcmp(want, "avx512") ? Isa::avx512 : !std::strcmp(want, "avx2") ? Isa::avx2 : Isa::baseline;
    return top < has ? top : has;
  }();
  return isa;
}

// Whether bfloat16 convolutions multiply pairs of products by vdpbf16ps. AMD's Zen 4 does one of 512 bits a cycle,
// twice its float32 rate; Intel's Sapphire Rapids reaches half of the rate of its two float32 units. FASTCNN_BF16_DOT=0
// or 1 overrides, where the CPU has the instruction.
inline bool bf16_dot() {
  static const bool on = [] {
#ifdef FASTCNN_X86
    if (cpu_isa() != Isa::avx512 || !__builtin_cpu_supports("avx512bf16")) return false;
    const char* want = std::getenv("FASTCNN_BF16_DOT");
    return want ? !std::strcmp(want, "1") : bool(__builtin_cpu_is("amd"));
#else
    return false;
#endif
  }();
  return on;
}

// Declares a kernel in every ISA's namespace: FASTCNN_DECLARE_KERNEL(void max_pool2d(const MaxPool2dParams&, ...));
// FASTCNN_CPU(max_pool2d) is the one of the chosen ISA.
#ifdef FASTCNN_X86
#define FASTCNN_DECLARE_KERNEL(...) \
  namespace baseline {              \
  __VA_ARGS__;                      \
  }                                 \
  namespace avx2 {                  \
  __VA_ARGS__;                      \
  }                                 \
  namespace avx512 {                \
  __VA_ARGS__;                      \
  }
#define FASTCNN_CPU(name)                                                   \
  (::fastcnn::cpu_isa() == ::fastcnn::Isa::avx512 ? ::fastcnn::avx512::name \
   : ::fastcnn::cpu_isa() == ::fastcnn::Isa::avx2 ? ::fastcnn::avx2::name   \
                                                  : ::fastcnn::baseline::name)
#else
#define FASTCNN_DECLARE_KERNEL(...) \
  namespace baseline {              \
  __VA_ARGS__;                      \
  }
#define FASTCNN_CPU(name) (::fastcnn::baseline::name)
#endif

}  // namespace fastcnn
