// The weight gradient of a 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3):
//   dw = G^T [ sum over tiles of (B^T x B) * (A g A^T) ] G, * point by point, a matrix product over the tiles per
//   point.
// The gradients of a batch, or of as much of it as memory is given for, are transformed first, by all threads. Then
// each thread owns the sums of a range of input channels, transforms these channels of chunk after chunk and
// multiplies.
#pragma once
#include "ops/conv2d.h"

namespace fastcnn {

struct WinogradGradPlan {
  int32_t lanes;
  int64_t panels;         // vectors of output channels per group
  int64_t cols, strips;   // tiles: columns of a chunk, and how many chunks lie side by side
  int64_t rows, bands;    // rows of a chunk, those of all images in one line, and how many there are
  int64_t bands_at_once;  // whose gradients are transformed together
  int64_t parts;          // of the panels; each with all input channels in `pieces` makes up the units of the work
  int64_t pieces;
  int64_t grad_step;       // elements from tile to tile of transformed gradients
  int64_t grads;           // elements of the transformed gradients
  int64_t scratch_stage;   // elements of a thread's copy of tensor or tile, as they are staged or not
  int64_t scratch_inputs;  // elements of its transformed inputs
  bool stage_x, stage_grad;
};

WinogradGradPlan plan_winograd_grad(const Conv2dWeightGradParams& p, Isa isa, int64_t threads);

FASTCNN_DECLARE_KERNEL(
    // Chunks [begin, end) of the group to grads[chunk - first][36 points][tile][grad_step].
    void winograd_grad_transform(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group,
                                 int64_t first, void* grads, void* scratch, int64_t begin, int64_t end);
    // Units [begin, end): adds the products of chunks [first, last) to p.dw, [36 points][c][panel][lane].
    void winograd_grad_multiply(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group,
                                int64_t first, int64_t last, const void* grads, void* scratch, int64_t begin,
                                int64_t end);
    // Panels [begin, end) of the group to out[o][c][3][3], contiguous.
    void winograd_grad_finish(const Conv2dWeightGradParams& p, const WinogradGradPlan& plan, int64_t group, void* out,
                              int64_t begin, int64_t end))

}  // namespace fastcnn
