#include "ops/local_conv2d.h"

#include <algorithm>

#include "ops/scratch.h"
#include "ops/tensor.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_conv2d";
constexpr int64_t kMost = int64_t{1} << 31;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t filter(const LocalConv2dParams& p) { return p.xm.c * p.kh * p.kw; }
int64_t positions(const LocalConv2dParams& p) { return p.ym.h * p.ym.w; }

int64_t output_size(int64_t in, int64_t k, int64_t s, int64_t p, int64_t d) {
  const int64_t window = d * (k - 1) + 1;
  FASTCNN_CHECK(in + 2 * p >= window, kOp, ": Calculated padded input size per channel: ", in + 2 * p,
                ". Kernel size: ", window, ". Kernel size can't be greater than actual input size");
  return (in + 2 * p - window) / s + 1;
}

// x: the size of the input; kernel: channels, height, width.
LocalConv2dParams geometry(const Ints& x, const Tensor& like, int64_t outputs, const Ints& kernel, const Ints& stride,
                           const Ints& padding, const Ints& dilation) {
  FASTCNN_CHECK(x.size() == 4, kOp, ": expected 4D input (N, C, H, W), but got ", x.size(), "D");
  FASTCNN_CHECK(kernel.size() == 3, kOp, ": expected kernel to have 3 values, but got ", kernel.size());
  const Pair s = pair(kOp, "stride", stride, 1), pad = pair(kOp, "padding", padding, 0),
             d = pair(kOp, "dilation", dilation, 1), k = pair(kOp, "kernel_size", {kernel[1], kernel[2]}, 1);
  for (const int64_t size : x)
    FASTCNN_CHECK(size >= 0 && size < kMost, kOp, ": expected input sizes from 0 to 2^31, but got ", size);
  FASTCNN_CHECK(kernel[0] == x[1], kOp, ": expected input to have ", kernel[0], " channels, but got ", x[1],
                " channels instead");
  LocalConv2dParams p{};
  p.dtype = dtype_of(kOp, like);
  p.kh = k.h, p.kw = k.w, p.sh = s.h, p.sw = s.w, p.ph = pad.h, p.pw = pad.w, p.dilation_h = d.h, p.dilation_w = d.w;
  p.xm = {x[0], x[1], x[2], x[3], 0, 0, 0, 0};
  p.ym = {x[0], outputs, output_size(x[2], k.h, s.h, pad.h, d.h), output_size(x[3], k.w, s.w, pad.w, d.w), 0, 0, 0, 0};
  const int64_t bytes = cpu_isa() == Isa::avx512 ? 64 : cpu_isa() == Isa::avx2 ? 32 : 16;
  p.lanes = bytes / accumulator_size(p.dtype);
  // Blocks of equal size: no vector but the last of all has lanes without a sample.
  const int64_t vectors = std::max<int64_t>(1, ceil_div(x[0], p.lanes));
  p.blocks = ceil_div(vectors, local_vectors(cpu_isa())), p.vectors = ceil_div(vectors, p.blocks);
  const int64_t samples = p.blocks * p.vectors * p.lanes;
  check_numel(kOp, {samples, x[1], std::max<int64_t>(1, x[2]), std::max<int64_t>(1, x[3])});
  check_numel(kOp, {p.ym.h, p.ym.w, outputs, std::max(samples, ceil_div(outputs, p.lanes) * p.lanes)});
  check_numel(kOp, {p.ym.h, p.ym.w, std::max<int64_t>(1, outputs), x[1], k.h, k.w});
  return p;
}

// Of a weight [p][q][o][c][i][j].
LocalConv2dParams geometry(const Ints& x, const Tensor& like, const Tensor& w, const Ints& stride, const Ints& padding,
                           const Ints& dilation) {
  check_same_dtype(kOp, "weight", like, w);
  FASTCNN_CHECK(w.dim() == 6, kOp,
                ": expected 6D weight (output height, output width, output channels, input channels, kernel height, "
                "kernel width), but got weight of size ",
                str(w));
  const LocalConv2dParams p =
      geometry(x, like, w.size(2), {w.size(3), w.size(4), w.size(5)}, stride, padding, dilation);
  FASTCNN_CHECK(w.size(0) == p.ym.h && w.size(1) == p.ym.w, kOp, ": expected weight of size [", p.ym.h, ", ", p.ym.w,
                ", ...], one filter an output position, but got weight of size ", str(w));
  return p;
}

void check_grad(const Tensor& g, const LocalConv2dParams& p) {
  FASTCNN_CHECK(
      g.dim() == 4 && g.size(0) == p.ym.n && g.size(1) == p.ym.c && g.size(2) == p.ym.h && g.size(3) == p.ym.w, kOp,
      ": expected grad of size [", p.ym.n, ", ", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got grad of size ",
      str(g));
}

Ints sizes(const Tensor& t) { return Ints(t.sizes().begin(), t.sizes().end()); }

Tensor copy_of(const Tensor& like, const LocalConv2dParams& p, int64_t elements) {
  return empty({elements}, like, MemoryFormat::Contiguous, accumulator_type(p.dtype));
}

// kernel(begin, end) for units of `work` multiply-adds.
template <class Kernel>
void run(int64_t units, int64_t work, const Kernel& kernel) {
  parallel_for(units, 1 + 65536 / std::max<int64_t>(work, 1), kernel);
}

// Copies x, which is dense, into p.samples.
Tensor read_samples(LocalConv2dParams& p, const Tensor& x) {
  const int64_t block = p.vectors * p.lanes;
  Tensor samples = copy_of(x, p, p.blocks * block * p.xm.c * p.xm.h * p.xm.w);
  p.xm = map_of(x), p.x = x.const_data_ptr(), p.samples = samples.mutable_data_ptr();
  p.nhwc = is_channels_last(x);
  const int64_t lines = p.nhwc ? p.xm.h * p.xm.w : p.xm.c, length = p.nhwc ? p.xm.c : p.xm.h * p.xm.w;
  run(p.blocks * lines, 4 * block * length, [&](int64_t b, int64_t e) { FASTCNN_CPU(local_conv2d_samples)(p, b, e); });
  return samples;
}

Tensor local_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                    const Ints& padding, const Ints& dilation) {
  check_4d(kOp, "input", input);
  LocalConv2dParams p = geometry(sizes(input), input, weight, stride, padding, dilation);
  Tensor b;
  if (bias) {
    check_same_dtype(kOp, "bias", input, *bias);
    FASTCNN_CHECK(bias->dim() == 3 && bias->size(0) == p.ym.c && bias->size(1) == p.ym.h && bias->size(2) == p.ym.w,
                  kOp, ": expected bias of size [", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got bias of size ",
                  str(*bias));
    b = torch::stable::contiguous(*bias);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input), w = torch::stable::contiguous(weight);
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  const Tensor samples = read_samples(p, x);
  p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr(), p.ym = map_of(y);
  const int64_t tiles = local_tiles(p.ym.c), scratch = local_conv2d_scratch(p);
  run(positions(p) * tiles, p.ym.n * ceil_div(p.ym.c, tiles) * filter(p),
      [&](int64_t begin, int64_t end) { FASTCNN_CPU(local_conv2d)(p, Scratch::get(scratch), begin, end); });
  return y;
}

Tensor local_conv2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                                   const Ints& padding, const Ints& dilation) {
  LocalConv2dParams p = geometry(size, grad, weight, stride, padding, dilation);
  check_grad(grad, p);
  const Tensor g = dense(grad), w = torch::stable::contiguous(weight);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  const int64_t block = p.vectors * p.lanes;
  Tensor gradients = copy_of(g, p, p.blocks * block * p.ym.c * positions(p));
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  p.gradients = gradients.mutable_data_ptr();
  p.xm = map_of(dx), p.ym = map_of(g), p.nhwc = is_channels_last(dx);
  run(p.blocks * positions(p), 4 * block * p.ym.c,
      [&](int64_t b, int64_t e) { FASTCNN_CPU(local_conv2d_gradients)(p, b, e); });
  // 256 KiB of float32 for dx leave most of an L2 to the weights that stream past it; 16 tasks keep threads busy.
  constexpr int64_t kElements = 64 * 1024, kTasks = 16;
  const int64_t fit = std::max<int64_t>(1, kElements / (p.xm.h * p.xm.w * block));
  p.channels = std::min({fit, p.xm.c, ceil_div(p.xm.c * p.blocks, kTasks)});
  const int64_t scratch = local_conv2d_backward_input_scratch(p);
  run(p.blocks * ceil_div(p.xm.c, p.channels), block * positions(p) * p.ym.c * p.channels * p.kh * p.kw,
      [&](int64_t b, int64_t e) { FASTCNN_CPU(local_conv2d_backward_input)(p, Scratch::get(scratch), b, e); });
  return dx;
}

std::tuple<Tensor, Tensor> local_conv2d_backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                                        const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_4d(kOp, "input", input);
  check_same_dtype(kOp, "grad", input, grad);
  FASTCNN_CHECK(grad.dim() == 4, kOp, ": expected 4D grad, but got grad of size ", str(grad));
  LocalConv2dParams p = geometry(sizes(input), input, grad.size(1), kernel, stride, padding, dilation);
  check_grad(grad, p);
  Tensor dw = empty({p.ym.h, p.ym.w, p.ym.c, p.xm.c, p.kh, p.kw}, input, MemoryFormat::Contiguous);
  Tensor db = empty({p.ym.c, p.ym.h, p.ym.w}, input, MemoryFormat::Contiguous);
  if (!grad.numel()) return {torch::stable::fill_(dw, 0.0), torch::stable::fill_(db, 0.0)};
  const Tensor g = dense(grad), x = dense(input);
  const Tensor samples = read_samples(p, x);
  const int64_t panels = ceil_div(p.ym.c, p.lanes);
  Tensor gradients = copy_of(g, p, positions(p) * p.ym.n * panels * p.lanes);
  p.g = g.const_data_ptr(), p.ym = map_of(g), p.gradients = gradients.mutable_data_ptr();
  p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  run(positions(p), 4 * p.ym.n * p.ym.c,
      [&](int64_t b, int64_t e) { FASTCNN_CPU(local_conv2d_gradient_rows)(p, b, e); });
  p.panels_at_once = std::min(panels, kLocalPanels);
  const int64_t scratch = local_conv2d_scratch(p);
  run(positions(p) * ceil_div(panels, p.panels_at_once), p.ym.n * p.panels_at_once * p.lanes * filter(p),
      [&](int64_t b, int64_t e) { FASTCNN_CPU(local_conv2d_backward_weight)(p, Scratch::get(scratch), b, e); });
  return {dw, db};
}

}  // namespace

int64_t local_conv2d_scratch(const LocalConv2dParams& p) {
  return 64 + filter(p) * (2 * int64_t{sizeof(int64_t)} + kLocalOutputs * accumulator_size(p.dtype));
}

int64_t local_conv2d_backward_input_scratch(const LocalConv2dParams& p) {
  const int64_t weights = p.channels * p.kh * p.kw;
  const int64_t dx = p.channels * p.xm.h * p.xm.w * p.vectors * p.lanes;
  return 64 + 2 * int64_t{sizeof(int64_t)} * weights + (dx + p.ym.c * weights) * accumulator_size(p.dtype);
}

}  // namespace fastcnn

#define GEOMETRY "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("local_conv2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");
  m.def("_local_conv2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");  // without autograd
  m.def("local_conv2d_backward_input(Tensor grad, Tensor weight, SymInt[] size, " GEOMETRY ") -> Tensor");
  // kernel: input channels, height, width
  m.def("local_conv2d_backward_weight(Tensor grad, Tensor x, SymInt[3] kernel, " GEOMETRY ") -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("local_conv2d", TORCH_BOX(&fastcnn::local_conv2d));
  m.impl("_local_conv2d", TORCH_BOX(&fastcnn::local_conv2d));
  m.impl("local_conv2d_backward_input", TORCH_BOX(&fastcnn::local_conv2d_backward_input));
  m.impl("local_conv2d_backward_weight", TORCH_BOX(&fastcnn::local_conv2d_backward_weight));
}
