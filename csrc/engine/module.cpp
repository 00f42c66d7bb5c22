// What is not a tensor op. pybind11 appears in this folder only; importing the module registers the ops.
#include <pybind11/pybind11.h>

#include <cstring>

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", [] { return name_of(fastcnn::cpu_isa()); });
  m.def("supported_capability", [] { return name_of(fastcnn::supported_isa()); });
}
