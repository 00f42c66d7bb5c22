// Torch's side of an op: shapes and strides into plain structs, allocation by torch's layout rules, argument checks.
// The kernels behind csrc/cpu and csrc/cuda see none of this.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/arena.h"
#include "ops/dtype.h"
#include "ops/error.h"
#include "ops/parallel.h"

namespace fastcnn {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline const char* name_of(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return "Float";
    case ScalarType::Double:
      return "Double";
    case ScalarType::Half:
      return "Half";
    case ScalarType::BFloat16:
      return "BFloat16";
    default:
      return "non-floating-point";
  }
}

// The element type of a kernel's tensor; anything but the four floating types is refused.
inline Dtype dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      break;
  }
  FASTCNN_CHECK(false, op, ": expected a tensor of dtype float32, float64, float16 or bfloat16");
  return Dtype::f32;
}

inline ScalarType accumulator_type(Dtype d) { return d == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

inline ScalarType scalar_type_of(Dtype d) {
  constexpr ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  return types[int32_t(d)];
}

inline std::string str(const Tensor& t) {
  std::string s = "[";
  for (int64_t d = 0; d < t.dim(); ++d) s += (d ? ", " : "") + std::to_string(t.size(d));
  return s + "]";
}

inline Ints sizes(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline void check_4d(const char* op, const char* argument, const Tensor& t) {
  FASTCNN_CHECK(t.dim() == 4, op, ": expected 4D ", argument, " (N, C, H, W), but got ", argument, " of size ", str(t));
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& x, const Tensor& t) {
  FASTCNN_CHECK(x.scalar_type() == t.scalar_type(), op, ": Input type (", name_of(x.scalar_type()), ") and ", argument,
                " type (", name_of(t.scalar_type()), ") should be the same");
}

constexpr int64_t kSizeLimit = int64_t{1} << 31;  // of each size and argument: products of two stay far from 2^63

// The stable ABI does not check a SymInt[2]'s length: a list of one would be read past its end.
struct Pair {
  int64_t h, w;
};
inline Pair pair(const char* op, const char* argument, const Ints& v, int64_t at_least) {
  FASTCNN_CHECK(v.size() == 2, op, ": expected ", argument, " to have 2 values, but got ", v.size());
  FASTCNN_CHECK(v[0] >= at_least && v[1] >= at_least && v[0] < kSizeLimit && v[1] < kSizeLimit, op, ": expected ",
                argument, " of at least ", at_least, ", but got (", v[0], ", ", v[1], ")");
  return {v[0], v[1]};
}

// torch's rule for a 4-D tensor: channels_last only where the strides cannot be read as contiguous NCHW.
inline bool is_channels_last(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return true;
}

inline MemoryFormat format_of(const Tensor& t) {
  return is_channels_last(t) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Strides of a tensor without gaps; format counts for 4-D sizes only.
inline Ints dense_strides(const Ints& size, MemoryFormat format) {
  Ints order{1, 3, 2, 0};  // dimensions, fastest first
  if (size.size() != 4 || format != MemoryFormat::ChannelsLast) {
    order.clear();
    for (int64_t d = int64_t(size.size()) - 1; d >= 0; --d) order.push_back(d);
  }
  Ints stride(size.size());
  int64_t step = 1;
  for (const int64_t d : order) stride[d] = step, step *= std::max<int64_t>(1, size[d]);
  return stride;
}

// The number of elements of a tensor to allocate, checked against what an address can reach.
inline void check_numel(const char* op, const Ints& size) {
  __int128 n = 1;
  for (const int64_t s : size) {
    n *= s;
    FASTCNN_CHECK(n < (__int128{1} << 60), op, ": output of this size overflows");
  }
}

inline size_t size_of(ScalarType t) {
  switch (t) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Byte:
      return 1;
    default:
      return 2;
  }
}

inline Tensor empty(const Ints& size, const Tensor& like, MemoryFormat format, ScalarType type) {
  // Straight to the allocator: torch::stable::empty boxes its arguments for the dispatcher, a third of a small op.
  const Ints stride = dense_strides(size, format);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device_type = 0;
  aoti_torch_get_device_type(like.get(), &device_type);
  AtenTensorHandle handle = nullptr;
#ifndef FASTCNN_CUDA  // where the arena is not linked in
  size_t bytes = size_of(type);
  for (const int64_t s : size) bytes *= size_t(s);
  if (device_type == aoti_torch_device_type_cpu() && bytes >= kArenaBytes) {
    void* const block = arena_take(bytes);
    check(block, "fastcnn: no memory for a tensor of this size");
    const auto made = torch_from_blob(
        block, int64_t(size.size()), size.data(), stride.data(), 0, dtype, device_type, -1, &handle,
        aoti_torch_layout_strided(), nullptr, 0, [](void* data, void*) { arena_give_back(data); }, nullptr);
    if (made != 0) arena_give_back(block);
    check(made == 0, "fastcnn: no memory for a tensor of this size");
    return Tensor(handle);
  }
#endif
  const auto status = aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(), dtype, device_type,
                                               like.get_device_index(), &handle);
  check(status == 0, "fastcnn: no memory for a tensor of this size");
  return Tensor(handle);
}
inline Tensor empty(const Ints& size, const Tensor& like, MemoryFormat format) {
  return empty(size, like, format, like.scalar_type());
}

inline Map map_of(const Tensor& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// torch's contiguous. In a forked child its copy would wait for ever for the threads of torch's pool: one thread
// copies.
inline Tensor made_dense(const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  if (!in_forked_child() || !t.is_cpu()) return torch::stable::contiguous(t, format);
  const Ints size = sizes(t), from(t.strides().begin(), t.strides().end()), to = dense_strides(size, format);
  Tensor out = empty(size, t, format, t.scalar_type());
  const size_t bytes = size_of(t.scalar_type());
  const char* const x = static_cast<const char*>(t.const_data_ptr());
  char* const y = static_cast<char*>(out.mutable_data_ptr());
  Ints at(size.size());
  for (int64_t left = t.numel(); left > 0; --left) {
    const int64_t read = std::inner_product(at.begin(), at.end(), from.begin(), int64_t{0});
    const int64_t write = std::inner_product(at.begin(), at.end(), to.begin(), int64_t{0});
    std::memcpy(y + write * bytes, x + read * bytes, bytes);
    for (size_t d = size.size(); d-- > 0 && ++at[d] == size[d];) at[d] = 0;
  }
  return out;
}

inline Tensor zeroed(Tensor t) {
  std::memset(t.mutable_data_ptr(), 0, size_t(t.numel()) * size_of(t.scalar_type()));
  return t;
}

// t itself where it is dense in a format, else a dense copy. Looked at here: even a call of contiguous that has
// nothing to do goes through the dispatcher, boxed, for as long as a small pooling takes.
inline Tensor dense(const Tensor& t, MemoryFormat format) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const bool last = format == MemoryFormat::ChannelsLast;
  const int64_t want[] = {c * h * w, last ? 1 : h * w, last ? w * c : w, last ? c : 1};
  for (int d = 0; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != want[d]) return made_dense(t, format);
  return t;
}
// In its own format: kernels see NCHW or NHWC without gaps.
inline Tensor dense(const Tensor& t) { return dense(t, format_of(t)); }

}  // namespace fastcnn
