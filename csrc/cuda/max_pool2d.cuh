#pragma once
#include "ops/max_pool2d.h"

namespace fastcnn::cuda {

// Dense tensors as MaxPool2dParams has them (its windows and channel blocks are the CPU's); null, or why a kernel could
// not start. An argmax that names no place of its window in x is left out: forward makes none.
const char* max_pool2d(const MaxPool2dParams& p, void* stream);
const char* max_pool2d_backward(const MaxPool2dParams& p, void* stream);
const char* max_pool2d_gather(const MaxPool2dParams& p, void* stream);

}  // namespace fastcnn::cuda
