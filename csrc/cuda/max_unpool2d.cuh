#pragma once
#include "ops/max_unpool2d.h"

namespace fastcnn::cuda {

// Dense tensors as MaxUnpool2dParams has them (its blocks and `invalid` are the CPU's); null, or why a kernel could not
// start. An index that is no place cannot be reported without a halt of the device: its value is left out, and gather
// gives 0 for it.
// ranges: memory of max_unpool2d_ranges(p) int32, null where that is 0.
int64_t max_unpool2d_ranges(const MaxUnpool2dParams& p);
const char* max_unpool2d(const MaxUnpool2dParams& p, void* ranges, void* stream);
const char* max_unpool2d_gather(const MaxUnpool2dParams& p, void* stream);

}  // namespace fastcnn::cuda
