// Local response normalization across channels (Krizhevsky et al. 2012, section 3.3).
//   s[c] = k + alpha * sum over c-before <= j <= c+after of x[j]^2, channels outside the tensor skipped;  y = x /
//   s^beta. dx[c] = g[c]/s[c]^beta - 2*alpha*beta * x[c] * sum over c-after <= j <= c+before of
//   g[j]*x[j]/s[j]^(beta+1).
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

// The tensors are dense [outer][channels][inner]: NCHW is [n][c][h*w], NHWC is [n*h*w][c][1]; a tower of a grouped
// normalization is one more `outer`, because its channels lie side by side in both.
struct LocalResponseNormParams {
  const void* x;
  const void* g;  // backward only: the gradient of y
  void* out;      // y, backward: dx
  Dtype dtype;
  bool relu;  // max(x, 0) takes the place of x
  int64_t outer, channels, inner;
  int64_t before, after;  // both less than channels
  double alpha, beta, k;
  int64_t length, units;  // a unit of work: `length` rows of channels (inner == 1), else `length` pixels of one outer
  int64_t scratch;        // elements of the accumulator type that a thread needs, zeroed
  // inner > 1: channels of the output to make. Offset i of x is i - g_shift of g and i - out_shift of out, so that
  // these may be planes of some channels only.
  int64_t first, last, g_shift, out_shift;
};

FASTCNN_DECLARE_KERNEL(void local_response_norm(const LocalResponseNormParams&, int64_t begin, int64_t end,
                                                void* scratch))
FASTCNN_DECLARE_KERNEL(void local_response_norm_backward(const LocalResponseNormParams&, int64_t begin, int64_t end,
                                                         void* scratch))

}  // namespace fastcnn
