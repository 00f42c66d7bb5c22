// Local response normalization, then max pooling, in one pass over x (Krizhevsky et al. 2012, sections 3.3 and 3.4).
//   t = local_response_norm(x), (y, argmax) = max_pool2d(t);  dx = local_response_norm_backward(gt, x) with
//   gt = max_pool2d_backward(g, argmax).
// t and gt never exist as a whole: a task makes a band of one of them in scratch that stays in the second-level cache,
// by the two ops' own kernels, whose bits it therefore has. A band of NHWC is some rows of an image, of NCHW some
// channels of one.
#pragma once
#include "ops/local_response_norm_plan.h"
#include "ops/max_pool2d_plan.h"

namespace fastcnn {

struct LRNMaxPool2dPlan {
  LocalResponseNormParams norm;  // of a whole image
  MaxPool2dParams pool;
  Windows rows, columns;
  MemoryFormat format;  // of the kernels
  int64_t groups;
  int64_t length, bands;  // rows (NHWC) or channels of a tower (NCHW) that a task makes, tasks an image
  int64_t held;           // elements of a band with its surroundings

  int64_t tasks() const { return pool.n * bands; }
  int64_t element() const { return size_of(pool.dtype); }
  int64_t pixels() const { return pool.h * pool.w; }
};

}  // namespace fastcnn
