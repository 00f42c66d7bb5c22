// Overlapping max pooling.
//   y[n,c,p,q] = max over 0<=i<kh, 0<=j<kw of x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw], positions outside x skipped;
//   argmax[n,c,p,q] = i*kw+j of the first maximum in raster order, or of the last NaN (ATen's rules).
//   backward: gx[n,c,h,w] = sum of g[n,c,p,q] over the windows (p,q) whose argmax is at (h,w), in raster order;
//   gather: y[n,c,p,q] = x[n,c] at the place that argmax[n,c,p,q] names.
// A window that holds no position of x (dilation can step over it) has y = -inf and an argmax outside x: no gradient.
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"
#include "ops/window.h"

namespace fastcnn {

constexpr int64_t kScatterChannels = 16;  // a cache line of floats
constexpr int64_t kMostByPlace = 16;      // windows that cover a place, above which scattering them is cheaper

// Plain data: the same struct serves CPU, CUDA and the inference plan. Tensors are dense NHWC or NCHW.
struct MaxPool2dParams {
  const void* x;  // (n, c, h, w); of backward: g (n, c, oh, ow)
  void* y;        // (n, c, oh, ow); of backward: gx (n, c, h, w)
  void* argmax;   // (n, c, oh, ow), uint8, or int32 where wide; forward writes it, null: not wanted
  Dtype dtype;
  bool wide_argmax;  // int32: kh*kw > 256
  bool channels_last;
  int64_t n, c, h, w, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  const Window* rows;     // of each output row (backward: input row) the input rows (output rows) of its windows
  const Window* columns;  // the same for columns
  int64_t channel_block;  // NHWC: channels a task

  int64_t blocks() const { return (c + channel_block - 1) / channel_block; }
  // Independent tasks: of forward output rows of every plane (NCHW) or of every image and channel block (NHWC) ...
  int64_t tasks() const { return channels_last ? n * oh * blocks() : n * c * oh; }
  // ... of gather output rows, and of backward input rows, or planes (of NHWC: groups of channels) where it scatters.
  int64_t gather_tasks() const { return channels_last ? n * oh : n * c * oh; }
  bool scatters() const { return !channels_last || kh * kw > kMostByPlace * sh * sw; }
  int64_t scatter_blocks() const { return (c + kScatterChannels - 1) / kScatterChannels; }
  int64_t backward_tasks() const {
    return !channels_last ? n * c : scatters() ? n * scatter_blocks() : n * h * blocks();
  }
  int64_t ring_slots() const { return (kw - 1) * dw + 1 < w ? (kw - 1) * dw + 1 : w; }
  PhasedRow row() const { return PhasedRow(w, ow, kw, sw, pw, dw); }
  // Windows that may hold one input position.
  int64_t most_covering() const { return (kh < oh ? kh : oh) * (kw < ow ? kw : ow); }
  // Bytes of scratch that a call of the forward kernel needs, and one of the others.
  int64_t scratch_bytes() const {
    constexpr int64_t kWord = 8, kParts = 8 * 64;
    if (channels_last) return kWord * (w + ring_slots() * channel_block) + kParts;
    return kWord * ((2 + (kh < h ? kh : h)) * (row().size() + 8) + kw + ow + kMostLanes) + kParts;
  }
  int64_t backward_scratch_bytes() const {
    constexpr int64_t kWord = 8, kParts = 8 * 64, kPlaces = 256;
    if (!scatters()) return kWord * 2 * most_covering() + kParts;
    return kWord * (4 * kPlaces + h * w * (channels_last ? kScatterChannels : 1)) + kParts;
  }
};

// Tasks [begin, end).
FASTCNN_DECLARE_KERNEL(void max_pool2d(const MaxPool2dParams&, char* scratch, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void max_pool2d_backward(const MaxPool2dParams&, char* scratch, int64_t begin, int64_t end))
FASTCNN_DECLARE_KERNEL(void max_pool2d_gather(const MaxPool2dParams&, char* scratch, int64_t begin, int64_t end))

}  // namespace fastcnn
