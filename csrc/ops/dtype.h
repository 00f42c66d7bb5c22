// Element types as plain enumerators and bit patterns: what kernels know of torch's dtypes.
#pragma once
#include <cstdint>

namespace fastcnn {

enum class Dtype : int32_t { f32, f64, f16, bf16 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr int64_t size_of(Dtype d) { return d == Dtype::f64 ? 8 : d == Dtype::f32 ? 4 : 2; }

// Kernels sum in float64 for float64, in float32 for all others.
constexpr int64_t accumulator_size(Dtype d) { return d == Dtype::f64 ? 8 : 4; }

// Calls f with a value of the element type that `d` names: switch_dtype(d, [&](auto t) { kernel<decltype(t)>(p); }).
template <class F>
inline void switch_dtype(Dtype d, const F& f) {
  switch (d) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::f16:
      return f(Half{});
    case Dtype::bf16:
      return f(BFloat16{});
  }
}

// A 4-D tensor's shape and element strides, in torch's order n, c, h, w.
struct Map {
  int64_t n, c, h, w;
  int64_t sn, sc, sh, sw;

  bool channels_last() const { return sc == 1 && (c > 1 || (sw == 1 && sh == w)); }
};

}  // namespace fastcnn
