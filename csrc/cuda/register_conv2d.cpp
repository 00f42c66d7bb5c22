#include "cuda/conv2d.cuh"
#include "cuda/conv2d_dispatch.h"
#include "cuda/conv2d_op.h"
#include "cuda/registration.h"
#include "ops/conv2d_checks.h"
#include "ops/conv2d_phases.h"
#include "ops/conv_transpose2d_checks.h"

namespace fastcnn {
namespace {

// Added to the accuracy of a call whose float32 products torch allows to be rounded to TF32.
constexpr int64_t kTf32 = 4;

bool read_tf32(const char* op, int64_t accuracy) {
  const bool tf32 = accuracy >= kTf32;
  check_accuracy(op, tf32 ? accuracy - kTf32 : accuracy);
  return tf32;
}

// A weight as it stands, for the kernels that read it by strides.
cuda::WeightStrides strides_of(const Tensor& w, int64_t groups) {
  return {w.stride(0), w.stride(1), w.stride(2), w.stride(3), w.size(0) / groups * w.stride(0)};
}

Tensor pack(const char* op, const Tensor& like, const cuda::Conv2dPack& p) {
  const Tensor packed =
      empty({cuda::packed_layout(p.g, p.to).elements}, like, MemoryFormat::Contiguous, scalar_type_of(p.to));
  cuda::Conv2dPack filled = p;
  filled.packed = packed.mutable_data_ptr();
  launched(op, like, [&](void* stream) { return cuda::pack_conv2d_weight(filled, stream); });
  return packed;
}

Tensor packed_weight(const Tensor& weight, int64_t groups, bool tf32) {
  constexpr const char* kOp = "_pack_weight";
  check_4d(kOp, "weight", weight);
  FASTCNN_CHECK(groups > 0 && weight.size(0) % groups == 0, kOp, ": expected groups to divide weight's ",
                weight.size(0), " output channels, but got ", groups);
  ConvGeometry g{};
  g.groups = groups, g.group_in = weight.size(1), g.group_out = weight.size(0) / groups;
  g.kh = int32_t(weight.size(2)), g.kw = int32_t(weight.size(3));
  const Dtype dtype = dtype_of(kOp, weight);
  return pack(kOp, weight,
              {weight.const_data_ptr(), nullptr, dtype, dtype, strides_of(weight, groups), false, g, tf32});
}

Tensor pack_weight(const Tensor& weight, int64_t groups, bool) { return packed_weight(weight, groups, false); }

// Whether a weight lies in memory as a kernel reads packed ones: of 16 bits, and channels_last.
bool lies_packed(const Tensor& w, const ConvGeometry& g, Dtype dtype) {
  const cuda::PackedLayout layout = cuda::packed_layout(g, dtype);
  const auto same = [&](int d, int64_t stride) { return w.size(d) == 1 || w.stride(d) == stride; };
  return size_of(dtype) == 2 && layout.elements == w.numel() && same(0, layout.strides.o) &&
         same(1, layout.strides.c) && same(2, layout.strides.i) && same(3, layout.strides.j) &&
         cuda::aligned(w.const_data_ptr(), 16);
}

// The weight that a call was given beside its own, of the input's type or, folded, of the accumulator's.
Tensor given(const Tensor& packed, const ConvGeometry& g, Dtype dtype, bool tf32) {
  constexpr const char* kOp = "conv2d";
  const Dtype from = dtype_of(kOp, packed);
  const cuda::PackedLayout layout = cuda::packed_layout(g, from);
  FASTCNN_CHECK(packed.dim() == 1 && packed.numel() == layout.elements && packed.stride(0) == 1 &&
                    (from == dtype || packed.scalar_type() == accumulator_type(dtype)),
                kOp, ": expected packed weight of ", layout.elements, " elements, but got ", str(packed));
  if (from == dtype && !tf32 && cuda::aligned(packed.const_data_ptr(), 16)) return packed;
  return pack(kOp, packed, {packed.const_data_ptr(), nullptr, from, dtype, layout.strides, false, g, tf32});
}

// t in NHWC, at an address that copies of 16 bytes can start from.
Tensor as_nhwc(const Tensor& t) {
  const Tensor n = torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  return cuda::aligned(n.const_data_ptr(), 16) ? n : torch::stable::clone(n);
}

// Its map, without the liberties that strides of sizes of one take.
Map nhwc_map(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return {t.size(0), c, h, w, h * w * c, 1, w * c, c};
}

// y, where its memory is NHWC too, else such a tensor of its size.
Tensor nhwc_output(const Tensor& y) {
  const bool same = is_channels_last(y) || y.size(2) * y.size(3) == 1;
  return same ? y : empty(sizes(y), y, MemoryFormat::ChannelsLast);
}

auto start(cuda::ConvKernel kernel) {
  switch (kernel) {
    case cuda::ConvKernel::mma:
      return cuda::conv2d_mma;
    case cuda::ConvKernel::ffma:
      return cuda::conv2d_ffma;
    case cuda::ConvKernel::grouped:
      return cuda::conv2d_grouped;
    case cuda::ConvKernel::grouped_mma:
      return cuda::conv2d_grouped_mma;
    case cuda::ConvKernel::first_ffma:
      return cuda::conv2d_first_ffma;
    case cuda::ConvKernel::first_mma:
      return cuda::conv2d_first_mma;
    default:
      return cuda::conv2d_direct;
  }
}

// Starts the kernel, on x's device, with the memory that it needs.
void run(const char* op, cuda::ConvKernel kernel, const Tensor& x, cuda::Conv2d p) {
  Tensor partial = x;
  if (kernel == cuda::ConvKernel::mma) {
    p.processors = cuda::processors_of(x.get_device_index());
    if (const int64_t elements = cuda::mma_partial_elements(p)) {
      partial = empty({elements}, x, MemoryFormat::Contiguous, ScalarType::Float);
      p.partial = partial.mutable_data_ptr();
    }
  }
  launched(op, x, [&](void* stream) { return start(kernel)(p, stream); });
}

// x with its border filled as `mode` says.
Tensor pad(const Tensor& x, const Conv2dArgs& a, Padding mode) {
  const Ints size{x.size(0), x.size(1), x.size(2) + 2 * a.padding.h, x.size(3) + 2 * a.padding.w};
  check_numel("conv2d", size);
  const Tensor y = empty(size, x, format_of(x));
  if (!y.numel()) return y;
  const cuda::Pad2d p{
      x.const_data_ptr(), y.mutable_data_ptr(), int64_t(size_of(x.scalar_type())), mode, map_of(x), map_of(y),
      a.padding.h,        a.padding.w};
  launched("conv2d", x, [&](void* stream) { return cuda::pad2d(p, stream); });
  return y;
}

// Memory for y's moments, where the kernel takes them.
void want_moments(cuda::Conv2d& p, cuda::ConvKernel kernel, const Tensor& y, ConvMoments& moments) {
  const int64_t pixels = p.ym.n * p.ym.h * p.ym.w;
  const int processors = cuda::processors_of(y.get_device_index());
  moments.pixels = cuda::moment_pixels(kernel, p.g, p.dtype, p.xm.sc != 1, pixels, processors);
  if (!moments.pixels) return;
  p.slot_pixels = moments.pixels, p.slots = cuda::ceil_div(pixels, moments.pixels);
  moments.data = empty({2, y.size(1), p.slots}, y, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.moments = moments.data->mutable_data_ptr();
}

Tensor convolve(const Tensor& input, const Tensor& weight, const OptionalTensor& packed, const OptionalTensor& bias,
                const OptionalTensor& residual, Conv2dArgs a, bool relu, int64_t accuracy,
                Padding mode = Padding::zeros, ConvMoments* moments = nullptr) {
  constexpr const char* kOp = "conv2d";
  check_one_device(kOp, input, weight, packed, bias, residual);
  cuda::Conv2d p{};
  p.dtype = dtype_of(kOp, input), p.relu = relu;
  p.g = conv_geometry(kOp, input, weight, a);
  check_reach(kOp, input, a, mode);
  const bool tf32 = read_tf32(kOp, accuracy);
  const Ints size = conv_output(kOp, input, weight, p.g);
  check_numel(kOp, size);
  check_bias(kOp, input, weight, bias, packed.has_value());
  check_residual(kOp, input, residual, size);
  Tensor x = dense(input);
  const Tensor y = empty(size, x, conv_format(x, weight));
  if (!y.numel()) return y;
  if (mode != Padding::zeros) x = pad(x, a, mode), p.g.ph = p.g.pw = 0;
  const Tensor b = bias ? torch::stable::contiguous(*bias) : x;
  if (bias) p.bias = b.const_data_ptr(), p.wide_bias = b.scalar_type() != input.scalar_type();
  const bool channels_last = is_channels_last(x) && is_channels_last(y);
  const auto kernel = cuda::choose_forward(p.g, p.dtype, size[2], size[3], channels_last, tf32);
  const bool nhwc = cuda::reads_nhwc(kernel, p.dtype, x.stride(1) == 1);
  const Tensor to = nhwc ? nhwc_output(y) : y, r = residual ? (nhwc ? as_nhwc(*residual) : *residual) : x;
  if (nhwc) x = as_nhwc(x);
  if (residual) p.residual = r.const_data_ptr(), p.rm = nhwc ? nhwc_map(r) : map_of(r);
  p.x = x.const_data_ptr(), p.xm = nhwc ? nhwc_map(x) : map_of(x);
  p.y = to.mutable_data_ptr(), p.ym = nhwc ? nhwc_map(to) : map_of(to);
  const bool by_strides = kernel == cuda::ConvKernel::direct || kernel == cuda::ConvKernel::grouped;
  const bool as_it_is = !packed && (by_strides || lies_packed(weight, p.g, p.dtype));
  const bool rounded = p.dtype == Dtype::f32 && kernel == cuda::ConvKernel::mma;
  const Tensor w = packed     ? given(*packed, p.g, p.dtype, rounded)
                   : as_it_is ? weight
                              : packed_weight(weight, a.groups, rounded);
  p.w = w.const_data_ptr();
  p.ws = by_strides && as_it_is ? strides_of(weight, a.groups) : cuda::packed_layout(p.g, p.dtype).strides;
  if (moments) want_moments(p, kernel, y, *moments);
  run(kOp, kernel, x, p);
  return to.get() == y.get() ? y : torch::stable::contiguous(to);
}

Tensor conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& bias, const OptionalTensor& residual,
              const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, bool relu,
              int64_t accuracy) {
  const Conv2dArgs a = read_args("conv2d", stride, padding, dilation, groups);
  return convolve(x, w, std::nullopt, bias, residual, a, relu, accuracy);
}

Tensor conv2d_packed(const Tensor& x, const Tensor& w, const OptionalTensor& packed, const OptionalTensor& bias,
                     const OptionalTensor& residual, const Ints& geometry, bool relu, int64_t accuracy) {
  Padding mode;
  const Conv2dArgs a = read_flat_args(geometry, mode);
  return convolve(x, w, packed, bias, residual, a, relu, accuracy, mode);
}

// Fills whole.y, the input gradient for whole.x of the convolution `forward`, by convolutions of stride 1: one for each
// phase of its stride.
void adjoint(const char* op, const cuda::Conv2d& whole, const Tensor& grad, const Tensor& weight,
             const ConvGeometry& forward, cuda::ConvKernel kernel) {
  const bool rounded = whole.dtype == Dtype::f32 && kernel == cuda::ConvKernel::mma;
  for (const Phase& down : phases(whole.ym.h, forward.kh, forward.sh, forward.ph, forward.dh))
    for (const Phase& beside : phases(whole.ym.w, forward.kw, forward.sw, forward.pw, forward.dw)) {
      cuda::Conv2d p = whole;
      p.adjoint = false;
      p.g.kh = down.taps, p.g.ph = down.padding, p.g.kw = beside.taps, p.g.pw = beside.padding, p.g.sh = p.g.sw = 1;
      p.y = static_cast<char*>(whole.y) + (down.first * whole.ym.sh + beside.first * whole.ym.sw) * size_of(p.dtype);
      p.ym.h = down.count, p.ym.sh *= down.step, p.ym.w = beside.count, p.ym.sw *= beside.step;
      if (!down.taps || !beside.taps) {  // no window reads these: a sum over no channels
        p.g.kh = p.g.kw = 1, p.g.group_in = 0, p.w = weight.const_data_ptr();
        launched(op, grad, [&](void* stream) { return cuda::conv2d_direct(p, stream); });
        continue;
      }
      cuda::WeightStrides ws = strides_of(weight, forward.groups);
      const void* first_tap =
          static_cast<const char*>(weight.const_data_ptr()) + (down.tap * ws.i + beside.tap * ws.j) * size_of(p.dtype);
      std::swap(ws.o, ws.c);
      ws.i *= down.tap_step, ws.j *= beside.tap_step;
      const Tensor w = pack(op, grad, {first_tap, nullptr, p.dtype, p.dtype, ws, true, p.g, rounded});
      p.w = w.const_data_ptr(), p.ws = cuda::packed_layout(p.g, p.dtype).strides;
      run(op, kernel, grad, p);
    }
}

// y of size [n, c, h, w]: the adjoint, applied to g, of the convolution with `weight` of something of y's size, plus
// bias[c].
Tensor transposed(const char* op, const Tensor& g, const Tensor& weight, const OptionalTensor& bias, const Tensor& y,
                  const ConvGeometry& forward, bool tf32) {
  if (!y.numel()) return y;
  cuda::Conv2d p{};
  p.dtype = dtype_of(op, g), p.adjoint = true, p.g = forward;
  std::swap(p.g.group_in, p.g.group_out);
  const Tensor b = bias ? torch::stable::contiguous(*bias) : g;
  if (bias) p.bias = b.const_data_ptr();
  const auto kernel =
      cuda::choose_adjoint_kernel(p.g, p.dtype, y.size(2), y.size(3), is_channels_last(g) && is_channels_last(y), tf32);
  const bool nhwc = cuda::reads_nhwc(kernel, p.dtype, g.stride(1) == 1);
  const Tensor from = nhwc ? as_nhwc(g) : g, to = nhwc ? nhwc_output(y) : y;
  p.x = from.const_data_ptr(), p.xm = nhwc ? nhwc_map(from) : map_of(from);
  p.y = to.mutable_data_ptr(), p.ym = nhwc ? nhwc_map(to) : map_of(to);
  if (kernel == cuda::ConvKernel::direct) {
    p.w = weight.const_data_ptr(), p.ws = strides_of(weight, forward.groups);
    std::swap(p.ws.o, p.ws.c);
    launched(op, g, [&](void* stream) { return cuda::conv2d_direct(p, stream); });
  } else {
    adjoint(op, p, from, weight, forward, kernel);
  }
  return to.get() == y.get() ? y : torch::stable::contiguous(to);
}

Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& stride,
                             const Ints& padding, const Ints& dilation, int64_t groups, int64_t accuracy) {
  constexpr const char* kOp = "conv2d_backward_input";
  const bool tf32 = read_tf32(kOp, accuracy);
  check_one_device(kOp, grad, weight);
  dtype_of(kOp, grad);
  const Conv2dArgs a = read_args(kOp, stride, padding, dilation, groups);
  check_input_grad_args(kOp, grad, weight, size);
  const Tensor g = dense(grad), dx = empty(size, g, conv_format(g, weight));
  const ConvGeometry forward = conv_geometry(kOp, dx, weight, a);
  check_grad(kOp, grad, conv_output(kOp, dx, weight, forward));
  return transposed(kOp, g, weight, std::nullopt, dx, forward, tf32);
}

Tensor conv_transpose2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
                        const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups) {
  check_one_device(kConvTranspose2d, x, weight, bias);
  Conv2dArgs a;
  const Ints size = conv_transpose_output(x, weight, bias, stride, padding, output_padding, dilation, groups, a);
  const Tensor g = dense(x), y = empty(size, g, conv_format(g, weight));
  return transposed(kConvTranspose2d, g, weight, bias, y, conv_geometry(kConvTranspose2d, y, weight, a), false);
}

struct WeightGrad {
  decltype(&cuda::conv2d_weight_grad_mma) start;
  decltype(&cuda::mma_weight_grad_splits) splits;
  bool nhwc_x, nhwc_grad;  // how they are read
};

WeightGrad weight_grad(cuda::ConvKernel kernel) {
  switch (kernel) {
    case cuda::ConvKernel::mma:
      return {cuda::conv2d_weight_grad_mma, cuda::mma_weight_grad_splits, true, true};
    case cuda::ConvKernel::ffma:
      return {cuda::conv2d_weight_grad_ffma, cuda::ffma_weight_grad_splits, false, false};
    case cuda::ConvKernel::grouped:
      return {cuda::conv2d_weight_grad_grouped, cuda::grouped_weight_grad_splits, true, true};
    case cuda::ConvKernel::grouped_mma:
      return {cuda::conv2d_weight_grad_grouped_mma, cuda::grouped_mma_weight_grad_splits, true, true};
    case cuda::ConvKernel::first_mma:
      return {cuda::conv2d_first_weight_grad, cuda::first_weight_grad_splits, false, true};
    default:
      return {cuda::conv2d_weight_grad_direct, cuda::direct_weight_grad_splits, false, false};
  }
}

Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input, const Ints& size, const Ints& stride,
                              const Ints& padding, const Ints& dilation, int64_t groups, int64_t accuracy) {
  constexpr const char* kOp = "conv2d_backward_weight";
  const bool tf32 = read_tf32(kOp, accuracy);
  check_one_device(kOp, grad, input);
  cuda::Conv2dWeightGrad p{};
  p.dtype = dtype_of(kOp, grad);
  const Conv2dArgs a = read_args(kOp, stride, padding, dilation, groups);
  check_weight_grad_args(kOp, grad, input, size);
  Tensor dw = empty(size, grad, MemoryFormat::Contiguous);
  p.g = conv_geometry(kOp, input, dw, a);
  check_grad(kOp, grad, conv_output(kOp, input, dw, p.g));
  if (!dw.numel()) return dw;
  if (!grad.numel()) return torch::stable::fill_(dw, 0.0);
  const WeightGrad kernel = weight_grad(
      cuda::choose_weight_grad(p.g, p.dtype, grad.size(2), grad.size(3), input.size(2), input.size(3), tf32));
  const Tensor x = kernel.nhwc_x ? as_nhwc(input) : dense(input), g = kernel.nhwc_grad ? as_nhwc(grad) : dense(grad);
  p.x = x.const_data_ptr(), p.xm = kernel.nhwc_x ? nhwc_map(x) : map_of(x);
  p.grad = g.const_data_ptr(), p.gm = kernel.nhwc_grad ? nhwc_map(g) : map_of(g);
  p.dw = dw.mutable_data_ptr();
  p.splits = kernel.splits(p);
  check_numel(kOp, {p.splits, dw.numel()});
  const Tensor partial = empty({p.splits, dw.numel()}, dw, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.partial = partial.mutable_data_ptr();
  launched(kOp, g, [&](void* stream) {
    const char* error = kernel.start(p, stream);
    return error ? error : cuda::conv2d_weight_grad_finish(p, stream);
  });
  return dw;
}

}  // namespace

Tensor conv2d_on_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Conv2dArgs& a,
                      int64_t accuracy, ConvMoments& moments) {
  return convolve(x, weight, std::nullopt, bias, std::nullopt, a, false, accuracy, Padding::zeros, &moments);
}

}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("conv2d", TORCH_BOX(&fastcnn::conv2d));
  m.impl("_conv2d", TORCH_BOX(&fastcnn::conv2d_packed));
  m.impl("_pack_weight", TORCH_BOX(&fastcnn::pack_weight));
  m.impl("conv2d_backward_input", TORCH_BOX(&fastcnn::conv2d_backward_input));
  m.impl("conv_transpose2d", TORCH_BOX(&fastcnn::conv_transpose2d));
  m.impl("_conv_transpose2d", TORCH_BOX(&fastcnn::conv_transpose2d));
  m.impl("conv2d_backward_weight", TORCH_BOX(&fastcnn::conv2d_backward_weight));
}
