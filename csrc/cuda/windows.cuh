// Which windows of a pooling hold a position of its input.
#pragma once
#include "cuda/divisor.h"

namespace fastcnn::cuda {

// The first window that holds position i, and one behind the last: those q with q*s - pad <= i < q*s - pad + span.
__device__ inline void covering(int i, int out, int span, const Divisor& s, int pad, int& begin, int& end) {
  const int last = int(s.divide(i + pad)), first = i + pad - span;  // first < 0: from the first window on
  begin = first < 0 ? 0 : int(s.divide(first)) + 1;
  end = last < out ? last + 1 : out;
}

}  // namespace fastcnn::cuda
