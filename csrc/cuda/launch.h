// For .cu files: launch<kernel<T>>(config, arguments...) starts a kernel under nvcc and under g++ alike
// (`<<<>>>` is no C++, and a macro would trip over the commas of template arguments).
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <cstdio>

// A kernel's shared memory: T is one struct of all its arrays, or an element type; the launch gives the bytes.
#define FASTCNN_SHARED(T, name)                             \
  extern __shared__ __align__(128) unsigned char shared_[]; \
  T* const name = reinterpret_cast<T*>(shared_)
#else
#include "simt.h"  // tests/simt: CUDA's execution model on the host
#define FASTCNN_SHARED(T, name) T* const name = reinterpret_cast<T*>(simt::shared_memory(sizeof(T)))
#endif

namespace fastcnn::cuda {

struct Launch {
  dim3 grid, block;
  size_t shared;  // bytes of dynamic shared memory
  void* stream;   // cudaStream_t
};

// Multiprocessors of a device; 1 where it does not say.
inline int processors(int device) {
#if defined(__CUDACC__)
  int count;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
#else
  return simt::processors(device);
#endif
}

inline bool is_empty(const Launch& l) { return l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0; }

#if defined(__CUDACC__)

inline const char* describe(cudaError_t error, const Launch& l) {
  thread_local char text[256];
  std::snprintf(text, sizeof text, "%s: %s (grid %ux%ux%u, block %ux%ux%u, %zu bytes of shared memory)",
                cudaGetErrorName(error), cudaGetErrorString(error), l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y,
                l.block.z, l.shared);
  return text;
}

// Null, or what went wrong: a text that holds until this thread's next launch.
template <auto kKernel, class... Args>
const char* launch(const Launch& l, const Args&... args) {
  if (is_empty(l)) return nullptr;
  if (l.shared > 48 * 1024) {  // more than that a kernel gets only on request
    const auto error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, int(l.shared));
    if (error != cudaSuccess) {
      cudaGetLastError();  // takes the error off, lest the next launch report it as its own
      return describe(error, l);
    }
  }
  kKernel<<<l.grid, l.block, l.shared, static_cast<cudaStream_t>(l.stream)>>>(args...);
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : describe(error, l);
}

#else

template <auto kKernel, class... Args>
const char* launch(const Launch& l, const Args&... args) {
  if (is_empty(l)) return nullptr;
  simt::record(__PRETTY_FUNCTION__, l.grid, l.block, l.shared, args...);
  return simt::run(l.grid, l.block, l.shared, [&] { kKernel(args...); });
}

#endif

}  // namespace fastcnn::cuda
