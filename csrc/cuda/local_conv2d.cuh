#pragma once
#include "ops/local_conv2d.h"

namespace fastcnn::cuda {

// Dense tensors as LocalConv2dParams has them (lanes, blocks and copies are the CPU's); null, or why a kernel could not
// start.
const char* local_conv2d(const LocalConv2dParams& p, void* stream);
const char* local_conv2d_backward_input(const LocalConv2dParams& p, void* stream);
const char* local_conv2d_backward_weight(const LocalConv2dParams& p, void* stream);

}  // namespace fastcnn::cuda
