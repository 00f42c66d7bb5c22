// Numbers that the host knows, to a kernel's memory. They travel as kernel arguments: a copy from the host's memory
// would have to wait for it, and a captured graph would read it after it is gone.
#pragma once
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {

namespace {

struct UploadPart {
  static constexpr int kMost = 896;  // arguments may take 4 KiB
  int32_t values[kMost];
};

__global__ void upload_part(UploadPart part, int count, int32_t* to) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) store(to + i, part.values[i]);
}

const char* upload(const std::vector<int32_t>& values, int32_t* to, void* stream) {
  const int64_t size = int64_t(values.size());
  for (int64_t i = 0; i < size; i += UploadPart::kMost) {
    UploadPart part{};
    const int count = int(size - i < UploadPart::kMost ? size - i : UploadPart::kMost);
    for (int j = 0; j < count; ++j) part.values[j] = values[i + j];
    if (const char* error = launch<upload_part>(Launch{dim3(1), dim3(256), 0, stream}, part, count, to + i))
      return error;
  }
  return nullptr;
}

}  // namespace
}  // namespace fastcnn::cuda
