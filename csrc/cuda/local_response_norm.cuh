#pragma once
#include "ops/local_response_norm.h"

namespace fastcnn::cuda {

// Dense tensors as LocalResponseNormParams has them; null, or why a kernel could not start.
const char* local_response_norm(const LocalResponseNormParams& p, void* stream);
const char* local_response_norm_backward(const LocalResponseNormParams& p, void* stream);

}  // namespace fastcnn::cuda
