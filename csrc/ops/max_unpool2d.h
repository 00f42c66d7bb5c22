// Max pooling's partial inverse: values go back to where the maxima were.
//   y[n,c,at] = the last in raster order of the x[n,c,i] with indices[n,c,i] == at, or their sum in raster order, or 0;
//   gather: y[n,c,i] = x[n,c,indices[n,c,i]].
// at and i count the positions of a plane in raster order. gather is the adjoint of the sum.
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

// Tensors are dense NHWC or NCHW, all in one of the two.
struct MaxUnpool2dParams {
  const void* x;
  const int64_t* indices;  // within the planes that are not `places` large
  void* y;
  Dtype dtype;
  bool channels_last, sum;
  int64_t n, c;
  int64_t pixels;    // of indices, and of x (gather: of y)
  int64_t places;    // of y (gather: of x)
  int64_t block;     // channels a task: 1 of NCHW
  int64_t* invalid;  // an index that is no place, where there is one: it is left out

  int64_t blocks() const { return (c + block - 1) / block; }
  int64_t tasks() const { return n * blocks(); }
  bool sums_apart() const { return sum && size_of(dtype) == 2; }  // in 16 bits they would round at every step
};

FASTCNN_DECLARE_KERNEL(void max_unpool2d(const MaxUnpool2dParams&, float* sums, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void max_unpool2d_gather(const MaxUnpool2dParams&, int64_t begin, int64_t end))

}  // namespace fastcnn
