#include "ops/conv2d.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "ops/conv2d_checks.h"
#include "ops/conv2d_phases.h"
#include "ops/conv2d_winograd_grad.h"
#include "ops/scratch.h"

namespace fastcnn {
namespace {

// Multiply-adds below which waking the pool (5 microseconds and more) costs more than a second thread saves.
constexpr int64_t kSerialWork = 256 * 1024;

// One panel after another, by all threads.
Tensor pack(const WeightView& view, const ConvGeometry& g, Dtype dtype, ConvAlgorithm algorithm, const Tensor& like) {
  const int32_t lanes = lanes_of(dtype, cpu_isa());
  const int64_t size = packed_conv2d_size(g, algorithm, lanes);
  Tensor packed = empty({size}, like, MemoryFormat::Contiguous, accumulator_type(dtype));
  const int64_t panel = taps(g, algorithm) * terms(g, algorithm) * lanes;
  void* out = packed.mutable_data_ptr();
  if (size)
    parallel_for(size / panel, 1 + 16384 / panel,
                 [&](int64_t b, int64_t e) { FASTCNN_CPU(pack_conv2d_weight)(view, g, dtype, algorithm, out, b, e); });
  return packed;
}

WeightView forward_view(const Tensor& w, int64_t groups) {
  return {
      w.const_data_ptr(), w.stride(0), w.stride(1), w.stride(2), w.stride(3), w.size(0) / groups * w.stride(0), false};
}

// The weight of the input gradient: output channels and input channels change places, taps are rotated.
WeightView rotated_view(const Tensor& w, int64_t groups) {
  return {
      w.const_data_ptr(), w.stride(1), w.stride(0), w.stride(2), w.stride(3), w.size(0) / groups * w.stride(0), true};
}

// Bias in the accumulator type, padded to whole vectors per group.
std::unique_ptr<char[]> pad_bias(const Tensor& bias, const ConvGeometry& g, Dtype dtype) {
  const int32_t lanes = lanes_of(dtype, cpu_isa());
  const bool grouped = strict_conv2d(g, dtype, cpu_isa()) == ConvAlgorithm::lane_grouped;
  const int64_t parts = grouped ? 1 : g.groups, width = bias.size(0) / parts,
                padded = (width + lanes - 1) / lanes * lanes;
  const ScalarType type = accumulator_type(dtype);
  const size_t bytes = accumulator_size(dtype);
  std::unique_ptr<char[]> out(new char[parts * padded * bytes]());
  const Tensor from = bias.scalar_type() == type ? bias : torch::stable::to(bias, type);
  const char* src = static_cast<const char*>(from.const_data_ptr());
  const int64_t step = from.stride(0) * int64_t(bytes);
  for (int64_t i = 0; i < bias.size(0); ++i)
    std::memcpy(out.get() + (i / width * padded + i % width) * bytes, src + i * step, bytes);
  return out;
}

// Tasks in small contiguous batches to whichever thread is free: on a shared machine equal halves end unequally.
template <class F>
void run_tasks(int64_t tasks, int64_t scratch_bytes, int64_t work, const F& f) {
  const int64_t threads = work < kSerialWork ? 1 : num_threads();
  if (threads == 1 || tasks == 1) return f(Scratch::get(scratch_bytes), int64_t{0}, tasks);
  const int64_t batch = std::max<int64_t>(1, tasks / (threads * 8));
  std::atomic<int64_t> next{0};
  parallel_for(threads, 1, [&](int64_t b, int64_t e) {
    for (; b < e; ++b)
      for (int64_t at; (at = next.fetch_add(batch)) < tasks;)
        f(Scratch::get(scratch_bytes), at, std::min(at + batch, tasks));
  });
}

// A block copies all that its windows span, however far dilation spreads them.
void check_copy(int64_t elements) {
  FASTCNN_CHECK(elements < int64_t{1} << 31, "conv2d: padding and dilation make a thread copy ", elements,
                " elements of input; expected fewer than 2^31");
}

void run(const Conv2dParams& p) {
  const int64_t work = p.ym.n * p.ym.h * p.ym.w * p.ym.c * p.g.kh * p.g.kw * p.g.group_in;
  const Conv2dPlan plan = plan_conv2d(p, cpu_isa(), work < kSerialWork ? 1 : num_threads());
  check_copy(plan.scratch);
  const int64_t element = accumulator_size(p.dtype);
  run_tasks(plan.tasks, plan.scratch * element, work, [&](void* scratch, int64_t b, int64_t e) {
    if (p.algorithm == ConvAlgorithm::lane_grouped)
      FASTCNN_CPU(conv2d_lane_grouped)(p, plan, scratch, b, e);
    else if (p.algorithm == ConvAlgorithm::winograd)
      FASTCNN_CPU(conv2d_winograd)(p, plan, scratch, b, e);
    else
      FASTCNN_CPU(conv2d_direct)(p, plan, scratch, b, e);
  });
}

// The algorithm that a packed weight is for: its size tells.
ConvAlgorithm algorithm_of(const Tensor& packed, const ConvGeometry& g, Dtype dtype) {
  const ConvAlgorithm strict = strict_conv2d(g, dtype, cpu_isa());
  const auto size = [&](ConvAlgorithm algorithm) {
    return packed_conv2d_size(g, algorithm, lanes_of(dtype, cpu_isa()));
  };
  const bool winograd = winograd_fits(g) && packed.numel() == size(ConvAlgorithm::winograd);
  FASTCNN_CHECK((winograd || packed.numel() == size(strict)) && packed.dim() == 1 &&
                    packed.scalar_type() == accumulator_type(dtype),
                "conv2d: expected packed weight of ", size(strict), " elements, but got ", str(packed));
  return winograd ? ConvAlgorithm::winograd : strict;
}

Moments make_moments(const Map& ym, Dtype dtype) {
  Moments m;
  m.slots = moment_slots(ym);
  m.row = ym.w, m.pixels = ym.n * ym.h * ym.w;
  m.data.reset(new char[m.slots * 2 * ym.c * accumulator_size(dtype)]);
  return m;
}

Tensor convolve(const Tensor& input, const Tensor& weight, const OptionalTensor& packed, const OptionalTensor& bias,
                const OptionalTensor& residual, const Conv2dArgs& a, bool relu, int64_t accuracy,
                Padding mode = Padding::zeros, Moments* moments = nullptr) {
  constexpr const char* kOp = "conv2d";
  const Dtype dtype = dtype_of(kOp, input);
  Conv2dParams p{};
  p.g = conv_geometry(kOp, input, weight, a);
  p.dtype = dtype, p.relu = relu, p.g.padding = mode;
  check_reach(kOp, input, a, mode);
  check_accuracy(kOp, accuracy);
  const Ints size = conv_output(kOp, input, weight, p.g);
  check_numel(kOp, size);
  std::unique_ptr<char[]> padded_bias;
  check_bias(kOp, input, weight, bias, packed.has_value());
  check_residual(kOp, input, residual, size);
  const Tensor x = dense(input);
  const Tensor y = empty(size, x, conv_format(x, weight));
  if (!y.numel()) return y;
  p.y = y.mutable_data_ptr(), p.ym = map_of(y);
  p.algorithm =
      packed ? algorithm_of(*packed, p.g, dtype) : choose_conv2d(p.g, p.ym, dtype, cpu_isa(), accuracy, false);
  const Tensor held = packed ? *packed : pack(forward_view(weight, a.groups), p.g, dtype, p.algorithm, weight);
  p.packed = held.const_data_ptr();
  if (bias) padded_bias = pad_bias(*bias, p.g, dtype), p.bias = padded_bias.get();
  if (residual) p.residual = residual->const_data_ptr(), p.rm = map_of(*residual);
  p.x = x.const_data_ptr(), p.xm = map_of(x);
  flatten_pixels(p);
  if (moments) *moments = make_moments(p.ym, dtype), p.moments = moments->data.get();
  run(p);
  return y;
}

Tensor conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool relu,
              int64_t accuracy) {
  const Conv2dArgs a = read_args("conv2d", stride, padding, dilation, groups);
  return convolve(x, w, std::nullopt, bias, residual, a, relu, accuracy);
}

// One list instead of three and a number: each list that crosses the stable ABI costs half a microsecond.
Tensor conv2d_packed(const Tensor& x, const Tensor& w, const OptionalTensor& packed, const OptionalTensor& bias,
                     const OptionalTensor& residual, const Ints& geometry, bool relu, int64_t accuracy) {
  Padding mode;
  const Conv2dArgs a = read_flat_args(geometry, mode);
  return convolve(x, w, packed, bias, residual, a, relu, accuracy, mode);
}

Tensor pack_weight(const Tensor& weight, int64_t groups, bool winograd) {
  constexpr const char* kOp = "_pack_weight";
  check_4d(kOp, "weight", weight);
  FASTCNN_CHECK(groups > 0 && weight.size(0) % groups == 0, kOp, ": expected groups to divide weight's ",
                weight.size(0), " output channels, but got ", groups);
  ConvGeometry g{};
  g.groups = groups, g.group_in = weight.size(1), g.group_out = weight.size(0) / groups;
  g.kh = int32_t(weight.size(2)), g.kw = int32_t(weight.size(3));
  const Dtype dtype = dtype_of(kOp, weight);
  FASTCNN_CHECK(!winograd || (g.kh == 3 && g.kw == 3), kOp,
                ": expected a 3x3 kernel for Winograd's algorithm, but got ", "weight of size ", str(weight));
  const ConvAlgorithm algorithm = winograd ? ConvAlgorithm::winograd : strict_conv2d(g, dtype, cpu_isa());
  return pack(forward_view(weight, groups), g, dtype, algorithm, weight);
}

// Fills dx, the adjoint of the convolution f, with its value for g, which is dense; bias: one value a channel of dx.
void adjoint(const Tensor& g, const Tensor& weight, const OptionalTensor& bias, const ConvGeometry& f, Tensor& dx,
             int64_t accuracy) {
  if (!dx.numel()) return;
  const Map whole = map_of(dx);
  for (const Phase& down : phases(whole.h, f.kh, f.sh, f.ph, f.dh))
    for (const Phase& beside : phases(whole.w, f.kw, f.sw, f.pw, f.dw)) {
      Conv2dParams p{};
      p.dtype = dtype_of("conv2d", g);
      p.g = f;
      p.g.group_in = f.group_out, p.g.group_out = f.group_in;
      p.g.kh = down.taps, p.g.ph = down.padding, p.g.zh = down.spread, p.g.sh = 1;
      p.g.kw = beside.taps, p.g.pw = beside.padding, p.g.zw = beside.spread, p.g.sw = 1;
      if (!down.taps || !beside.taps) {  // no window reads these: a sum over no channels, then the bias
        p.g.kh = p.g.kw = 1, p.g.ph = p.g.pw = 0, p.g.group_in = 0;
      }
      WeightView view = rotated_view(weight, f.groups);
      view.w = static_cast<const char*>(view.w) + (down.tap * view.si + beside.tap * view.sj) * size_of(p.dtype);
      view.si *= down.tap_step, view.sj *= beside.tap_step;
      p.x = g.const_data_ptr(), p.xm = map_of(g);
      p.ym = whole;
      p.ym.h = down.count, p.ym.sh *= down.step, p.ym.w = beside.count, p.ym.sw *= beside.step;
      p.algorithm = choose_conv2d(p.g, p.ym, p.dtype, cpu_isa(), accuracy, false);
      const Tensor packed = pack(view, p.g, p.dtype, p.algorithm, weight);
      p.packed = packed.const_data_ptr();
      std::unique_ptr<char[]> padded_bias;
      if (bias) padded_bias = pad_bias(*bias, p.g, p.dtype), p.bias = padded_bias.get();
      p.y = static_cast<char*>(dx.mutable_data_ptr()) +
            (down.first * whole.sh + beside.first * whole.sw) * size_of(p.dtype);
      flatten_pixels(p);
      run(p);
    }
}

Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                             const Ints& padding, const Ints& dilation, int64_t groups, int64_t accuracy) {
  constexpr const char* kOp = "conv2d_backward_input";
  check_accuracy(kOp, accuracy);
  dtype_of(kOp, grad);
  const Conv2dArgs a = read_args(kOp, stride, padding, dilation, groups);
  check_input_grad_args(kOp, grad, weight, size);
  const Tensor g = dense(grad);
  Tensor dx = empty(size, g, conv_format(g, weight));
  const ConvGeometry f = conv_geometry(kOp, dx, weight, a);
  check_grad(kOp, grad, conv_output(kOp, dx, weight, f));
  adjoint(g, weight, std::nullopt, f, dx, accuracy);
  return dx;
}

// Fills dw, which is contiguous.
void winograd_weight_grad(Conv2dWeightGradParams p, Tensor& dw) {
  const int64_t threads = num_threads(), element = accumulator_size(p.dtype);
  const WinogradGradPlan plan = plan_winograd_grad(p, cpu_isa(), threads);
  check_copy(plan.scratch_stage + plan.scratch_inputs);
  const auto buffer = [&](int64_t elements) {
    return empty({elements}, dw, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  };
  const Tensor sums = buffer(kWinogradPoints * p.g.group_in * plan.panels * plan.lanes),
               transformed = buffer(plan.grads);
  p.dw = sums.mutable_data_ptr();
  void *grads = transformed.mutable_data_ptr(), *out = dw.mutable_data_ptr();
  for (int64_t group = 0; group < p.g.groups; ++group) {
    for (int64_t band = 0; band < plan.bands; band += plan.bands_at_once) {
      const int64_t first = band * plan.strips, last = std::min(band + plan.bands_at_once, plan.bands) * plan.strips;
      parallel_for(last - first, 1, [&](int64_t b, int64_t e) {
        FASTCNN_CPU(winograd_grad_transform)
        (p, plan, group, first, grads, Scratch::get(plan.scratch_stage * element), first + b, first + e);
      });
      parallel_for(plan.parts * plan.pieces, 1, [&](int64_t b, int64_t e) {
        void* scratch = Scratch::get((plan.scratch_stage + plan.scratch_inputs) * element);
        FASTCNN_CPU(winograd_grad_multiply)(p, plan, group, first, last, grads, scratch, b, e);
      });
    }
    parallel_for(plan.panels, 1,
                 [&](int64_t b, int64_t e) { FASTCNN_CPU(winograd_grad_finish)(p, plan, group, out, b, e); });
  }
}

Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input, const Ints& size, const Ints& stride,
                              const Ints& padding, const Ints& dilation, int64_t groups, int64_t accuracy) {
  constexpr const char* kOp = "conv2d_backward_weight";
  check_accuracy(kOp, accuracy);
  const Dtype dtype = dtype_of(kOp, grad);
  const Conv2dArgs a = read_args(kOp, stride, padding, dilation, groups);
  check_weight_grad_args(kOp, grad, input, size);
  Tensor dw = empty(size, grad, MemoryFormat::Contiguous);
  Conv2dWeightGradParams p{};
  p.dtype = dtype;
  p.g = conv_geometry(kOp, input, dw, a);
  check_grad(kOp, grad, conv_output(kOp, input, dw, p.g));
  if (!dw.numel()) return dw;
  if (!grad.numel()) return zeroed(dw);
  const Tensor x = dense(input), g = dense(grad);
  p.x = x.const_data_ptr(), p.xm = map_of(x);
  p.grad = g.const_data_ptr(), p.gm = map_of(g);
  if (choose_conv2d(p.g, p.gm, dtype, cpu_isa(), accuracy, false) == ConvAlgorithm::winograd) {
    winograd_weight_grad(p, dw);
    return dw;
  }
  const Conv2dWeightGradPlan plan = plan_conv2d_weight_grad(p, cpu_isa());
  check_copy(plan.scratch + plan.scratch_grad + plan.scratch_panels);
  const ScalarType type = accumulator_type(dtype);
  const int64_t taps = int64_t{p.g.kh} * p.g.kw * p.g.group_in * plan.panels * plan.lanes;
  const bool grouped = plan.algorithm == ConvAlgorithm::lane_grouped;
  const Tensor sums = empty({grouped ? taps : p.g.groups * taps}, grad, MemoryFormat::Contiguous, type);
  p.dw = sums.mutable_data_ptr();
  const int64_t bytes = (plan.scratch + plan.scratch_grad + plan.scratch_panels) * accumulator_size(dtype);
  const int64_t work = grad.numel() * p.g.kh * p.g.kw * p.g.group_in;
  parallel_for(plan.units, work < kSerialWork ? plan.units : 1, [&](int64_t b, int64_t e) {
    if (grouped)
      FASTCNN_CPU(conv2d_weight_grad_lane_grouped)(p, plan, Scratch::get(bytes), b, e);
    else
      FASTCNN_CPU(conv2d_weight_grad_direct)(p, plan, Scratch::get(bytes), b, e);
  });
  void* out = dw.mutable_data_ptr();
  parallel_for(size[0], 1 + 16384 / (dw.numel() / size[0]),
               [&](int64_t b, int64_t e) { FASTCNN_CPU(unpack_conv2d_weight_grad)(p, plan, out, b, e); });
  return dw;
}

}  // namespace

Tensor conv2d_with_moments(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Conv2dArgs& a,
                           int64_t accuracy, Moments& moments) {
  return convolve(x, weight, std::nullopt, bias, std::nullopt, a, false, accuracy, Padding::zeros, &moments);
}

Tensor transposed_conv2d(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                         const Ints& size, const Conv2dArgs& a) {
  const Tensor g = dense(x);
  Tensor y = empty(size, g, conv_format(g, weight));
  adjoint(g, weight, bias, conv_geometry(op, y, weight, a), y, 0);
  return y;
}

}  // namespace fastcnn

#define GEOMETRY "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, " GEOMETRY
        ", bool relu, int accuracy) -> Tensor");
  // Without autograd. packed: of _pack_weight; geometry: stride, padding and dilation (two each), groups and
  // maybe torch.nn.Conv2d's padding_mode: 0 zeros, 1 reflect, 2 replicate, 3 circular. A packed weight decides between
  // direct and Winograd, whatever accuracy says. int[] since torch asks what each SymInt may be: 0.2 us apiece.
  m.def(
      "_conv2d(Tensor x, Tensor weight, Tensor? packed, Tensor? bias, Tensor? residual, int[] geometry, bool relu, "
      "int accuracy) -> Tensor");
  m.def("_pack_weight(Tensor weight, SymInt groups, bool winograd=False) -> Tensor");
  m.def("conv2d_backward_input(Tensor grad, Tensor weight, SymInt[4] input_size, " GEOMETRY
        ", int accuracy=1) -> Tensor");
  m.def("conv2d_backward_weight(Tensor grad, Tensor x, SymInt[4] weight_size, " GEOMETRY ", int accuracy=1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&fastcnn::conv2d));
  m.impl("_conv2d", TORCH_BOX(&fastcnn::conv2d_packed));
  m.impl("_pack_weight", TORCH_BOX(&fastcnn::pack_weight));
  m.impl("conv2d_backward_input", TORCH_BOX(&fastcnn::conv2d_backward_input));
  m.impl("conv2d_backward_weight", TORCH_BOX(&fastcnn::conv2d_backward_weight));
}
