// torch's current stream. The symbol lives in libtorch_cuda, which a CPU build of torch lacks: it is looked up in the
// library that torch has loaded, so that nothing here links against it and one build serves every torch.
#pragma once
#include <dlfcn.h>

#include "ops/tensor.h"

namespace fastcnn {

inline void* current_stream(const Tensor& t) {
#ifdef FASTCNN_SIMT
  (void)t;
  return nullptr;
#else
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* lib = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    return lib ? reinterpret_cast<Get>(dlsym(lib, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  check(get && get(t.get_device_index(), &stream) == 0, "fastcnn: this torch has no CUDA stream");
  return stream;
#endif
}

}  // namespace fastcnn
