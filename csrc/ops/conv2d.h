// Convolution (cross-correlation) with padding and a fused epilogue.
//   y[n,o,p,q] = act(b[o] + sum over c in the group of o, 0<=i<kh, 0<=j<kw of
//                    w[o,c,i,j] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw] + r[n,o,p,q])
// Its input gradient is the same sum over a weight that is rotated and transposed: of a strided convolution one sum for
// each phase of the stride, or, where it is dilated, too, with zeros between the elements of x (zh, zw > 1).
#pragma once
#include "ops/dtype.h"
#include "ops/isa.h"

namespace fastcnn {

enum class ConvAlgorithm : int32_t {
  direct,        // implicit GEMM: pixels x output channels in registers, broadcast inputs
  direct_bf16,   // the same on pairs of neighbouring channels, whose bfloat16 products one instruction adds
  lane_grouped,  // 1, 2, 4 or 8 channels per group: groups side by side in the lanes of a vector
  winograd,      // 3x3, stride 1: F(4x4, 3x3), a quarter of the multiplications
};

enum class Padding : int32_t { zeros, reflect, replicate, circular };  // torch.nn.Conv2d's padding_mode

struct ConvGeometry {
  int64_t groups, group_in, group_out;  // channels of x and of y per group
  int32_t kh, kw, sh, sw, ph, pw, dh, dw;
  int32_t zh, zw;  // x stands on every zh-th row and zw-th column of the input that the sum sees
  Padding padding;
};

struct Conv2dParams {
  const void* x;
  const void* packed;    // see pack_conv2d_weight
  const void* bias;      // accumulator type, one per lane of packed: [groups][panels*lanes]; or null
  const void* residual;  // as y; or null
  void* y;
  Dtype dtype;  // of x, residual and y
  ConvAlgorithm algorithm;
  Map xm, rm, ym;
  ConvGeometry g;
  bool relu;
  void* moments;  // accumulator type, [moment_slots][2][channels of y]: the mean and the sum of squared deviations from
                  // it of each slot's pixels; or null
};

// Pixels of a row of y whose moments are taken together: a fixed cut, so that no split into tasks changes a bit.
constexpr int64_t kMomentPixels = 56;
inline int64_t moment_slots(const Map& ym) { return ym.n * ym.h * ((ym.w + kMomentPixels - 1) / kMomentPixels); }

// How a call is cut into tasks. Which sums are formed, and in which order, follows from `algorithm` and the
// geometry alone: the split changes no bit of the result.
struct Conv2dPlan {
  bool staged;            // a task copies its part of x: NHWC, zero-padded, in the accumulator type
  int32_t lanes;          // of a vector of accumulators
  int64_t panels;         // vectors of output channels per group
  int64_t rows, cols;     // output pixels of a task; winograd: its 4x4 tiles, the rows of all images in one line
  int64_t bands, strips;  // tasks along the height and the width
  int64_t panel_tasks;    // tasks along the panels
  int64_t panels_per_task;
  int64_t tasks;
  int64_t scratch;        // elements of the accumulator's size that a task needs
  int64_t scratch_stage;  // of them, in its copy of x
};

// A 1x1 convolution of channels_last tensors is a matrix product: all pixels of all images become one row.
void flatten_pixels(Conv2dParams& p);

Conv2dPlan plan_conv2d(const Conv2dParams& p, Isa isa, int64_t threads);
// Winograd's F(4x4, 3x3): outputs of a tile along each axis, and points at which it multiplies.
constexpr int64_t kWinogradOut = 4, kWinogradPoints = 36;
// Elements from one tile's transformed channels to the next one's: whole vectors, and never a power of two, whose rows
// would fall into few sets of L1.
constexpr int64_t winograd_step(int64_t channels, int64_t lanes) {
  return (channels + lanes - 1) / lanes * lanes + lanes;
}
// What a tap multiplies per output: its input channels, or pairs of them.
int64_t terms(const ConvGeometry& g, ConvAlgorithm algorithm);
// The one without tricks: its error is that of the sum as it is written.
ConvAlgorithm strict_conv2d(const ConvGeometry& g, Dtype dtype, Isa isa);
// Whether Winograd's kernel computes it at all.
bool winograd_fits(const ConvGeometry& g);
// accuracy: 0 strict, 1 default, 2 fast. Of ym only the sizes matter. packed: the weight need not be packed for the
// call.
ConvAlgorithm choose_conv2d(const ConvGeometry& g, const Map& ym, Dtype dtype, Isa isa, int64_t accuracy, bool packed);
int32_t lanes_of(Dtype dtype, Isa isa);

// Where the elements of a weight [o][c][i][j] lie: element strides, and the taps in reverse order for the input
// gradient.
struct WeightView {
  const void* w;
  int64_t so, sc, si, sj, sg;  // strides of output channel, input channel, row, column, group
  bool rotated;
};

// direct:       [group][panel][kh][kw][c][lane], lane = output channel, zero where there is none
// direct_bf16:  [group][panel][kh][kw][c/2][lane][2], bfloat16, zero beside the last of an odd number of channels
// lane_grouped: [vector][kh][kw][c][lane], lane = output channel, c = input channel within its group
// winograd:     [group][panel][36 points][c][lane], the transformed taps
int64_t taps(const ConvGeometry& g, ConvAlgorithm algorithm);
// In elements of the accumulator type, whatever is stored in them.
int64_t packed_conv2d_size(const ConvGeometry& g, ConvAlgorithm algorithm, int32_t lanes);

FASTCNN_DECLARE_KERNEL(
    // Panels [begin, end) of the packed weight.
    void pack_conv2d_weight(const WeightView& w, const ConvGeometry& g, Dtype dtype, ConvAlgorithm algorithm,
                            void* packed, int64_t begin, int64_t end);
    // Tasks [begin, end); scratch is the calling thread's.
    void conv2d_direct(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end);
    void conv2d_lane_grouped(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end);
    void conv2d_winograd(const Conv2dParams& p, const Conv2dPlan& plan, void* scratch, int64_t begin, int64_t end))

// dw[o,c,i,j] = sum over n, p, q of g[n,o,p,q] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw]
struct Conv2dWeightGradParams {
  const void* x;
  const void* grad;
  void* dw;  // accumulator type, [group][kh][kw][c][panel][lane]; lane_grouped: as the packed weight
  Dtype dtype;
  Map xm, gm;
  ConvGeometry g;
};

struct Conv2dWeightGradPlan {
  ConvAlgorithm algorithm;
  bool stage_x, stage_grad;
  int32_t lanes;
  int64_t panels;
  int64_t tap_cols;  // taps of a row that are summed one by one: 1 where their inputs lie side by side, else kw
  int64_t weights;   // neighbouring weights, taps times channels, that they leave: kw*group_in, else group_in
  int64_t images, rows, cols;     // output pixels of a block
  int64_t units;                  // independent parts of dw
  int64_t scratch, scratch_grad;  // elements of a block's copies
  int64_t scratch_panels;         // elements of its packed inputs and gradients
};

Conv2dWeightGradPlan plan_conv2d_weight_grad(const Conv2dWeightGradParams& p, Isa isa);

FASTCNN_DECLARE_KERNEL(
    // Units [begin, end); scratch is the calling thread's.
    void conv2d_weight_grad_direct(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, void* scratch,
                                   int64_t begin, int64_t end);
    void conv2d_weight_grad_lane_grouped(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan,
                                         void* scratch, int64_t begin, int64_t end);
    // From the layout of Conv2dWeightGradParams::dw to out[o][c][i][j], contiguous; outputs [begin, end).
    void unpack_conv2d_weight_grad(const Conv2dWeightGradParams& p, const Conv2dWeightGradPlan& plan, void* out,
                                   int64_t begin, int64_t end))

}  // namespace fastcnn
