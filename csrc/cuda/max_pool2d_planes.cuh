#pragma once
#include "ops/max_pool2d.h"

namespace fastcnn::cuda {

// Max pooling of NCHW through shared memory: what a block reads is one piece of memory, which it copies by whole
// sectors, where a warp's lanes would leave out every other element and share few with the neighbours. Where windows
// leave rows out, rows are too long, or positions exceed 31 bits, it does not fit.
bool max_pool2d_planes_fit(const MaxPool2dParams& p, bool backward);
const char* max_pool2d_planes(const MaxPool2dParams& p, void* stream);
const char* max_pool2d_planes_backward(const MaxPool2dParams& p, void* stream);

}  // namespace fastcnn::cuda
