// conv2d_bn_relu in training, as csrc/ops/conv2d_bn_relu.cpp has it.
#include "cuda/batch_norm_args.h"
#include "cuda/conv2d_op.h"

namespace fastcnn {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOp = "conv2d_bn_relu";

Tensor vectors(const Ints& size, const Tensor& like) {
  return empty(size, like, MemoryFormat::Contiguous, accumulator_type(dtype_of(kOp, like)));
}

Four forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
             const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Ints& stride, const Ints& padding,
             const Ints& dilation, int64_t groups, double eps, bool relu, int64_t accuracy) {
  check_one_device(kOp, x, weight, bias, residual, bn_weight, bn_bias);
  ConvMoments taken{};
  const Tensor z = conv2d_on_cuda(x, weight, bias, read_args(kOp, stride, padding, dilation, groups), accuracy, taken);
  if (residual) check_like(kOp, "residual", *residual, z);
  const MemoryFormat format = format_of(z);
  cuda::BatchNormReluArgs p = norm_args(kOp, z, format, relu, eps);
  p.weight = channel_values(kOp, "bn_weight", bn_weight, p.c, 1);
  p.bias = channel_values(kOp, "bn_bias", bn_bias, p.c, 0);
  Tensor y = empty(sizes(z), z, format), mean = vectors({p.c}, z), var = vectors({p.c}, z);
  if (!y.numel()) return {y, z, torch::stable::fill_(mean, 0.0), torch::stable::fill_(var, 0.0)};
  const Tensor r = residual ? torch::stable::contiguous(*residual, format) : z;
  if (residual) p.residual = r.const_data_ptr();
  const cuda::ChannelSlots slots =
      taken.data ? cuda::cut_channel(1, p.n * p.pixels, taken.pixels) : cuda::moment_slots(p);
  Tensor moments = taken.data ? *taken.data : vectors({2, p.c, slots.count}, z), affine = vectors({2, p.c}, z);
  p.y = y.mutable_data_ptr(), p.affine = affine.mutable_data_ptr();
  launched(kOp, z, [&](void* stream) {
    void* const data = moments.mutable_data_ptr();
    const char* error = taken.data ? nullptr : cuda::batch_norm_moments(p, data, stream);
    if (!error)
      error = cuda::batch_norm_statistics(p, slots, data, mean.mutable_data_ptr(), var.mutable_data_ptr(), stream);
    return error ? error : cuda::batch_norm_relu_by_affine(p, stream);
  });
  return {y, z, mean, var};
}

Tensor normalize(const Tensor& conv, const Tensor& mean, const Tensor& var, const OptionalTensor& bn_weight,
                 const OptionalTensor& bn_bias, const OptionalTensor& residual, double eps, bool relu) {
  check_one_device(kOp, conv, mean, var, bn_weight, bn_bias, residual);
  check_4d(kOp, "z", conv);
  dtype_of(kOp, conv);
  return normalized(kOp, {"mean", "var", "bn_weight", "bn_bias"}, conv, mean, var, bn_weight, bn_bias, residual, eps,
                    relu);
}

Four backward(const Tensor& grad, const Tensor& conv, const OptionalTensor& y, const Tensor& mean, const Tensor& var,
              const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, double eps, bool relu, bool masked) {
  check_one_device(kOp, grad, conv, y, mean, var, bn_weight, bn_bias);
  check_4d(kOp, "z", conv);
  check_like(kOp, "grad", grad, conv);
  if (y) check_like(kOp, "y", *y, conv);
  dtype_of(kOp, conv);
  const Tensor z = dense(conv);
  const MemoryFormat format = format_of(z);
  cuda::BatchNormReluGrad p{};
  p.norm = norm_args(kOp, z, format, relu, eps);
  const int64_t channels = p.norm.c;
  p.norm.weight = channel_values(kOp, "bn_weight", bn_weight, channels, 1);
  p.norm.bias = channel_values(kOp, "bn_bias", bn_bias, channels, 0);
  p.norm.mean = channel_values(kOp, "mean", mean, channels, 0);
  p.norm.var = channel_values(kOp, "var", var, channels, 1);
  Tensor dz = empty(sizes(z), z, format), dr = empty(masked ? sizes(z) : Ints{0}, z, format);
  Tensor dw = vectors({channels}, z), db = vectors({channels}, z);
  if (!z.numel()) return {dz, dr, torch::stable::fill_(dw, 0.0), torch::stable::fill_(db, 0.0)};
  const Tensor g = torch::stable::contiguous(grad, format), out = y ? torch::stable::contiguous(*y, format) : z;
  p.grad = g.const_data_ptr(), p.dx = dz.mutable_data_ptr();
  if (y) p.out = out.const_data_ptr();
  if (masked) p.masked = dr.mutable_data_ptr();
  Tensor sums = vectors({2, channels, cuda::gradient_slots(p).count}, z), affine = vectors({4, channels}, z);
  p.sums = sums.mutable_data_ptr(), p.norm.affine = affine.mutable_data_ptr();
  p.dweight = dw.mutable_data_ptr(), p.dbias = db.mutable_data_ptr();
  launched(kOp, z, [&](void* stream) { return cuda::batch_norm_relu_backward(p, stream); });
  return {dz, dr, dw, db};
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("conv2d_bn_relu", TORCH_BOX(&fastcnn::forward));
  m.impl("_conv2d_bn_relu", TORCH_BOX(&fastcnn::forward));
  m.impl("normalize_conv2d", TORCH_BOX(&fastcnn::normalize));
  m.impl("_normalize_conv2d", TORCH_BOX(&fastcnn::normalize));
  m.impl("_batch_norm_relu_backward", TORCH_BOX(&fastcnn::backward));
}
