// What is not a tensor op. pybind11 appears in this folder only; importing the module registers the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "engine/explain.h"
#include "engine/explain_cuda.h"
#include "ops/arena.h"
#include "ops/isa.h"

namespace py = pybind11;

namespace {

const char* name_of(fastcnn::Isa isa) {
  switch (isa) {
    case fastcnn::Isa::avx512:
      return "avx512";
    case fastcnn::Isa::avx2:
      return "avx2";
    case fastcnn::Isa::baseline:
      break;
  }
  return "baseline";
}

// A hash of up to 64 elements spread evenly over an array of `count`, first and last among them.
uint64_t fingerprint(uintptr_t address, int64_t count, int64_t element_size) {
  constexpr int64_t kProbes = 64;
  const char* data = reinterpret_cast<const char*>(address);
  const int64_t probes = count < kProbes ? count : kProbes;
  uint64_t hash = uint64_t(count);
  for (int64_t i = 0; i < probes; ++i) {
    uint64_t element = 0;
    std::memcpy(&element, data + (probes > 1 ? i * (count - 1) / (probes - 1) : 0) * element_size,
                size_t(element_size));
    hash = (hash ^ element) * 0x9e3779b97f4a7c15;  // 2^64 divided by the golden ratio
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return name_of(fastcnn::cpu_isa()); });
  m.def("lanes", [](bool is_double) {
    return fastcnn::lanes_of(is_double ? fastcnn::Dtype::f64 : fastcnn::Dtype::f32, fastcnn::cpu_isa());
  });
  m.def("bf16_dot", &fastcnn::bf16_dot);
  m.def("fingerprint", &fingerprint);
  m.def("arena_clear", &fastcnn::arena_clear);
  m.def("arena_poison", &fastcnn::arena_poison);
  m.def("arena_use", [] {  // bytes used by tensors, bytes kept for the next
    const fastcnn::ArenaUse use = fastcnn::arena_use();
    return std::pair(use.used, use.kept);
  });
  m.def("arena_growths", [] { return fastcnn::arena_use().growths; });
  m.def("explain_conv2d", &fastcnn::explain_conv2d);
  m.def("explain_cuda_conv2d", &fastcnn::explain_cuda_conv2d);
  m.def("conv2d_is_winograd", &fastcnn::conv2d_is_winograd);
  m.def("supported_capability", [] { return name_of(fastcnn::supported_isa()); });
}
