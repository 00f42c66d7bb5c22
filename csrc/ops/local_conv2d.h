// Locally connected ("unshared") convolution: every output position has a filter and a bias of its own.
//   y[n,o,p,q] = b[o,p,q] + sum over c, 0<=i<kh, 0<=j<kw of w[p,q,o,c,i,j] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw]
// A weight is used once a sample. Kernels therefore hold the samples in the lanes of a vector: each weight is then read
// once a call, in the order it lies in memory, and multiplies whole vectors whatever the number of channels.
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

struct LocalConv2dParams {
  const void* x;
  const void* w;
  const void* b;  // may be null
  const void* g;  // backward: the gradient of y
  void* out;      // y, or dx
  void* dw;
  void* db;
  Dtype dtype;
  Map xm, ym;
  bool nhwc;  // of x, or of g; both are without gaps
  int64_t kh, kw, sh, sw, ph, pw, dilation_h, dilation_w;
  int64_t lanes;           // of a vector of accumulators
  int64_t vectors;         // of samples in a block, local_vectors at most
  int64_t blocks;          // of samples; the last is filled up with zeros
  void* samples;           // accumulator type, [block][c][h][w][sample of the block]
  void* gradients;         // backward_input: [block][position][o][sample of the block]
                           // backward_weight: [position][n][o], o rounded up to whole vectors
  int64_t channels;        // backward_input: of a unit
  int64_t panels_at_once;  // backward_weight: vectors of output channels of a unit, kLocalPanels at most
};

// What a kernel holds in registers: vectors of samples by weights; output channels; vectors of output channels.
constexpr int64_t local_vectors(Isa isa) { return isa == Isa::avx512 ? 4 : 2; }
constexpr int64_t kLocalOutputs = 6;
constexpr int64_t kLocalPanels = 2;
constexpr int64_t local_tiles(int64_t outputs) { return (outputs + kLocalOutputs - 1) / kLocalOutputs; }

// Bytes of scratch that a thread needs.
int64_t local_conv2d_scratch(const LocalConv2dParams&);
int64_t local_conv2d_backward_input_scratch(const LocalConv2dParams&);

FASTCNN_DECLARE_KERNEL(
    // Units: the blocks, times their lines of contiguous elements: planes of channels, or pixels of all channels.
    void local_conv2d_samples(const LocalConv2dParams&, int64_t begin, int64_t end);
    // Units: positions times tiles of output channels.
    void local_conv2d(const LocalConv2dParams&, void* scratch, int64_t begin, int64_t end);
    // Units: blocks times positions; then blocks times parts of the input channels.
    void local_conv2d_gradients(const LocalConv2dParams&, int64_t begin, int64_t end);
    void local_conv2d_backward_input(const LocalConv2dParams&, void* scratch, int64_t begin, int64_t end);
    // Units: positions; then positions times parts of the output channels.
    void local_conv2d_gradient_rows(const LocalConv2dParams&, int64_t begin, int64_t end);
    void local_conv2d_backward_weight(const LocalConv2dParams&, void* scratch, int64_t begin, int64_t end))

}  // namespace fastcnn
