#pragma once
#include "ops/subsample2d.h"

namespace fastcnn::cuda {

// Dense tensors as Subsample2dParams has them, both of one layout; null, or why a kernel could not start.
const char* subsample2d(const Subsample2dParams& p, void* stream);
const char* subsample2d_backward_input(const Subsample2dParams& p, void* stream);
// partial: [subsample2d_units(p)][2][c] of double.
int64_t subsample2d_units(const Subsample2dParams& p);
const char* subsample2d_backward_weight(const Subsample2dParams& p, void* stream);

}  // namespace fastcnn::cuda
