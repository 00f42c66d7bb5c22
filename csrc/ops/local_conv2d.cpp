#include <algorithm>

#include "ops/local_conv2d_plan.h"
#include "ops/scratch.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "local_conv2d";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t filter(const LocalConv2dParams& p) { return p.xm.c * p.kh * p.kw; }
int64_t positions(const LocalConv2dParams& p) { return p.ym.h * p.ym.w; }

// Cuts the samples into blocks of equal size: no vector but the last of all has lanes without a sample.
LocalConv2dParams with_blocks(LocalConv2dParams p) {
  const int64_t bytes = cpu_isa() == Isa::avx512 ? 64 : cpu_isa() == Isa::avx2 ? 32 : 16;
  p.lanes = bytes / accumulator_size(p.dtype);
  const int64_t vectors = std::max<int64_t>(1, ceil_div(p.xm.n, p.lanes));
  p.blocks = ceil_div(vectors, local_vectors(cpu_isa())), p.vectors = ceil_div(vectors, p.blocks);
  const int64_t samples = p.blocks * p.vectors * p.lanes;
  check_numel(kOp, {samples, p.xm.c, std::max<int64_t>(1, p.xm.h), std::max<int64_t>(1, p.xm.w)});
  check_numel(kOp, {p.ym.h, p.ym.w, p.ym.c, std::max(samples, ceil_div(p.ym.c, p.lanes) * p.lanes)});
  return p;
}

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
  LocalConv2dParams p = with_blocks(local_geometry(kOp, sizes(input), input, weight, stride, padding, dilation));
  Tensor b;
  if (bias) {
    b = local_bias(kOp, input, *bias, p);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input), w = made_dense(weight);
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
  LocalConv2dParams p = with_blocks(local_geometry(kOp, size, grad, weight, stride, padding, dilation));
  check_local_grad(kOp, grad, p);
  const Tensor g = dense(grad), w = made_dense(weight);
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
  LocalConv2dParams p =
      with_blocks(local_geometry(kOp, sizes(input), input, grad.size(1), kernel, stride, padding, dilation));
  check_local_grad(kOp, grad, p);
  Tensor dw = empty({p.ym.h, p.ym.w, p.ym.c, p.xm.c, p.kh, p.kw}, input, MemoryFormat::Contiguous);
  Tensor db = empty({p.ym.c, p.ym.h, p.ym.w}, input, MemoryFormat::Contiguous);
  if (!grad.numel()) return {zeroed(dw), zeroed(db)};
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
