// Max unpooling's arguments, checked: what the CPU's and the CUDA op share.
#pragma once
#include "ops/max_unpool2d.h"
#include "ops/tensor.h"

namespace fastcnn {

// `small` has a value for each index; the other tensor, of `h` by `w`, is what the indices point into.
inline MaxUnpool2dParams unpool_geometry(const char* op, const Tensor& small, const Tensor& indices, int64_t h,
                                         int64_t w) {
  check_4d(op, "indices", indices);
  FASTCNN_CHECK(indices.scalar_type() == ScalarType::Long, op, ": expected elements in indices to be of dtype int64");
  FASTCNN_CHECK(str(small) == str(indices), op, ": Expected shape of indices to be same as that of the input tensor (",
                str(small), ") but got indices tensor with shape: ", str(indices));
  MaxUnpool2dParams p{};
  p.dtype = dtype_of(op, small);
  p.n = small.size(0), p.c = small.size(1), p.pixels = small.size(2) * small.size(3);
  p.places = h * w;
  check_numel(op, {p.n, p.c, h, w});
  return p;
}

// Of gather: y is empty, with a value for each index into x's planes.
inline MaxUnpool2dParams gather_geometry(const char* op, const Tensor& x, const Tensor& y, const Tensor& indices) {
  MaxUnpool2dParams p = unpool_geometry(op, y, indices, x.size(2), x.size(3));
  FASTCNN_CHECK(x.size(0) == p.n && x.size(1) == p.c && (p.places > 0 || !y.numel()), op, ": expected grad of ", p.n,
                " images of ", p.c, " channels, as indices has, but got grad of size ", str(x));
  return p;
}

}  // namespace fastcnn
