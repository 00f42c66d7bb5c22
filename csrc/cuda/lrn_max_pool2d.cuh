#pragma once
#include "ops/local_response_norm.h"
#include "ops/max_pool2d.h"

namespace fastcnn::cuda {

// Both ops' params for whole tensors, as they would be called one after the other, but that the tensor between them,
// norm.out and pool.x (backward: pool.y and norm.g), does not exist. Null, or why a kernel could not start.
const char* lrn_max_pool2d(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, void* stream);
const char* lrn_max_pool2d_backward(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, void* stream);

// Whether a block's shared memory holds what they need of even one channel; else the two ops must run apart.
bool lrn_max_pool2d_fits(const LocalResponseNormParams& norm, const MaxPool2dParams& pool, bool backward);

}  // namespace fastcnn::cuda
