// Copies that convolutions need: of a weight into the order their kernels read, of an input into its padded form.
#include "cuda/conv2d.cuh"
#include "cuda/device.cuh"
#include "cuda/divisor.h"
#include "cuda/tiles.h"

namespace fastcnn::cuda {
namespace {

constexpr int64_t kMostElements = kMostIndex - kConvThreads;  // which 32-bit indices reach

Launch one_thread_each(int64_t elements, void* stream) {
  return {dim3(unsigned((elements + kConvThreads - 1) / kConvThreads)), dim3(kConvThreads), 0, stream};
}

struct PackParams {
  const void* w;
  void* packed;
  WeightStrides ws;
  bool rotated, channels_inner, tf32;
  int elements, group_out, kh, kw;
  Divisor by_filled, by_group_in, by_kw, by_kh, by_group_out, by_row, by_sum;
};

template <class From, class To>
__global__ void __launch_bounds__(kConvThreads) pack_kernel(PackParams p) {
  const int e = blockIdx.x * kConvThreads + threadIdx.x;
  if (e >= p.elements) return;
  uint32_t o, c, i, j, g;
  if (p.channels_inner) {
    g = p.by_group_out.divide(p.by_sum.divide(e, i), o);
    i = p.by_row.divide(i, j), j = p.by_group_in.divide(j, c);
  } else {
    g = p.by_kh.divide(p.by_kw.divide(p.by_group_in.divide(p.by_filled.divide(e, o), c), j), i);
  }
  const bool exists = int(o) < p.group_out && int(i) < p.kh && int(j) < p.kw;
  if (p.rotated && exists) i = p.kh - 1 - i, j = p.kw - 1 - j;
  const From w =
      load_if(exists, static_cast<const From*>(p.w) + g * p.ws.g + o * p.ws.o + c * p.ws.c + i * p.ws.i + j * p.ws.j);
  if constexpr (sizeof(From) == 8)
    store(static_cast<To*>(p.packed) + e, w);
  else
    store(static_cast<To*>(p.packed) + e, from_float<To>(p.tf32 ? to_tf32(to_float(w)) : to_float(w)));
}

struct PadParams {
  const void* x;
  void* y;
  Padding mode;
  bool channels_last;
  int elements, channels, h, w, ph, pw;
  Map xm;
  Divisor by_channels, by_w, by_h;
};

// The position of the input that stands at `at` of its padded form.
__device__ __forceinline__ int source(int at, int size, Padding mode) {
  if (at >= 0 && at < size) return at;
  if (mode == Padding::replicate) return at < 0 ? 0 : size - 1;
  if (mode == Padding::reflect) return at < 0 ? -at : 2 * (size - 1) - at;
  return at < 0 ? at + size : at - size;
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) pad_kernel(PadParams p) {
  const int e = blockIdx.x * kConvThreads + threadIdx.x;
  if (e >= p.elements) return;
  uint32_t n, c, h, w;
  if (p.channels_last)
    n = p.by_h.divide(p.by_w.divide(p.by_channels.divide(e, c), w), h);
  else
    n = p.by_channels.divide(p.by_h.divide(p.by_w.divide(e, w), h), c);
  const int64_t from = n * p.xm.sn + c * p.xm.sc + source(int(h) - p.ph, p.h, p.mode) * p.xm.sh +
                       source(int(w) - p.pw, p.w, p.mode) * p.xm.sw;
  store(static_cast<T*>(p.y) + e, load(static_cast<const T*>(p.x) + from));
}

template <class T>
const char* run_pad(const Pad2d& c, void* stream) {
  const int64_t elements = c.ym.n * c.ym.c * c.ym.h * c.ym.w;
  if (elements > kMostElements) return "the padded input is too large for one grid";
  const PadParams p{c.x,
                    c.y,
                    c.mode,
                    c.ym.sc == 1 && c.ym.c > 1,
                    int(elements),
                    int(c.ym.c),
                    int(c.xm.h),
                    int(c.xm.w),
                    int(c.ph),
                    int(c.pw),
                    c.xm,
                    Divisor(c.ym.c),
                    Divisor(c.ym.w),
                    Divisor(c.ym.h)};
  return launch<pad_kernel<T>>(one_thread_each(elements, stream), p);
}

}  // namespace

const char* pack_conv2d_weight(const Conv2dPack& c, void* stream) {
  const PackedLayout layout = packed_layout(c.g, c.to);
  if (layout.elements > kMostElements) return "the weight is too large for one grid";
  if (layout.elements == 0) return nullptr;
  const PackParams p{c.w,
                     c.packed,
                     c.ws,
                     c.rotated,
                     layout.channels_inner,
                     c.tf32,
                     int(layout.elements),
                     int(c.g.group_out),
                     c.g.kh,
                     c.g.kw,
                     Divisor(layout.group_out),
                     Divisor(c.g.group_in),
                     Divisor(c.g.kw),
                     Divisor(c.g.kh),
                     Divisor(c.g.group_out),
                     Divisor(layout.strides.i),
                     Divisor(layout.strides.o)};
  const Launch l = one_thread_each(layout.elements, stream);
  if (c.from == Dtype::f32 && c.to == Dtype::f16) return launch<pack_kernel<float, half_t>>(l, p);
  if (c.from == Dtype::f32 && c.to == Dtype::bf16) return launch<pack_kernel<float, bfloat16_t>>(l, p);
  if (c.from != c.to) return "the weight's type is not the input's";
  const char* error = nullptr;
  switch_dtype(c.to, [&](auto element) {
    using T = decltype(element);
    error = launch<pack_kernel<T, T>>(l, p);
  });
  return error;
}

const char* pad2d(const Pad2d& p, void* stream) {
  switch (p.element_bytes) {
    case 2:
      return run_pad<half_t>(p, stream);
    case 4:
      return run_pad<float>(p, stream);
    default:
      return run_pad<double>(p, stream);
  }
}

}  // namespace fastcnn::cuda
