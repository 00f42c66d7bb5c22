// What the registrations of the CUDA ops share. They are compiled twice: into _C_cuda (namespace fastcnn, key CUDA)
// and, with FASTCNN_SIMT, into the library that runs the same kernels on the CPU (namespace fastcnn_simt, key CPU).
#pragma once
#include "cuda/stream.h"
#include "ops/tensor.h"

#ifdef FASTCNN_SIMT
#define FASTCNN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastcnn_simt, CPU, m)
#else
#include <torch/csrc/stable/accelerator.h>
#define FASTCNN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m)
#endif

namespace fastcnn {

// Tensors elsewhere than x would send a kernel after a pointer that its device does not know.
inline bool beside(const Tensor& x, const Tensor& t) {
  return t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index();
}
inline bool beside(const Tensor& x, const std::optional<Tensor>& t) { return !t || beside(x, *t); }
template <class... Tensors>
void check_one_device(const char* op, const Tensor& x, const Tensors&... others) {
  FASTCNN_CHECK((beside(x, others) && ...), op, ": expected all tensors on one device");
}

// Calls start(stream) with x's device as the current one. start returns null, or what the launch said.
template <class F>
void launched(const char* op, const Tensor& x, const F& start) {
#ifndef FASTCNN_SIMT
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
#endif
  const char* error = start(current_stream(x));
  FASTCNN_CHECK(!error, op, ": the kernel did not run: ", error);
}

}  // namespace fastcnn
