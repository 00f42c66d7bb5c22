#include "cuda/max_pool2d.cuh"
#include "cuda/registration.h"
#include "ops/max_pool2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "max_pool2d";

Tensor forward(const Tensor& input, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
               bool ceil_mode, Tensor* argmax) {
  MaxPool2dParams m{};
  m.dtype = dtype_of(kOp, input);
  const PoolGeometry g = pool_geometry(kOp, kernel, stride, padding, dilation);
  check_pool_input(kOp, input);
  set_geometry(kOp, m, sizes(input), g, ceil_mode);
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Ints size{m.n, m.c, m.oh, m.ow};
  Tensor y = empty(size, x, format);
  if (argmax) *argmax = empty(size, x, format, m.wide_argmax ? ScalarType::Int : ScalarType::Byte);
  if (!y.numel()) return y;
  m.channels_last = format == MemoryFormat::ChannelsLast;
  m.x = x.const_data_ptr(), m.y = y.mutable_data_ptr();
  if (argmax) m.argmax = argmax->mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::max_pool2d(m, stream); });
  return y;
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                                      const Ints& dilation, bool ceil_mode) {
  Tensor argmax;
  Tensor y = forward(x, kernel, stride, padding, dilation, ceil_mode, &argmax);
  return {y, argmax};
}

Tensor max_pool2d_values(const Tensor& x, const Ints& geometry, bool ceil_mode) {
  FASTCNN_CHECK(geometry.size() == 8, kOp, ": expected geometry to have 8 values, but got ", geometry.size());
  const auto at = geometry.begin();
  return forward(x, {at, at + 2}, {at + 2, at + 4}, {at + 4, at + 6}, {at + 6, at + 8}, ceil_mode, nullptr);
}

Tensor backward(const Tensor& grad, const Tensor& argmax, const Ints& size, const Ints& kernel, const Ints& stride,
                const Ints& padding, const Ints& dilation, bool ceil_mode) {
  MaxPool2dParams m{};
  check_one_device(kOp, grad, argmax);
  m.dtype = dtype_of(kOp, grad);
  check_pool_size(kOp, size);
  set_geometry(kOp, m, size, pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode);
  check_argmax(kOp, m, argmax);
  check_pool_grad(kOp, grad, argmax);
  const MemoryFormat format = format_of(argmax);
  const Tensor g = torch::stable::contiguous(grad, format), at = torch::stable::contiguous(argmax, format);
  check_numel(kOp, size);
  Tensor gx = empty(size, g, format);
  if (!gx.numel()) return gx;
  m.channels_last = format == MemoryFormat::ChannelsLast;
  m.x = g.const_data_ptr(), m.y = gx.mutable_data_ptr(), m.argmax = const_cast<void*>(at.const_data_ptr());
  launched(kOp, g, [&](void* stream) { return cuda::max_pool2d_backward(m, stream); });
  return gx;
}

Tensor gather(const Tensor& input, const Tensor& argmax, const Ints& kernel, const Ints& stride, const Ints& padding,
              const Ints& dilation, bool ceil_mode) {
  MaxPool2dParams m{};
  check_one_device(kOp, input, argmax);
  m.dtype = dtype_of(kOp, input);
  check_pool_input(kOp, input);
  set_geometry(kOp, m, sizes(input), pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode);
  check_argmax(kOp, m, argmax);
  const MemoryFormat format = format_of(argmax);
  const Tensor x = torch::stable::contiguous(input, format), at = torch::stable::contiguous(argmax, format);
  Tensor y = empty({m.n, m.c, m.oh, m.ow}, x, format);
  if (!y.numel()) return y;
  m.channels_last = format == MemoryFormat::ChannelsLast;
  m.x = x.const_data_ptr(), m.y = y.mutable_data_ptr(), m.argmax = const_cast<void*>(at.const_data_ptr());
  launched(kOp, x, [&](void* stream) { return cuda::max_pool2d_gather(m, stream); });
  return y;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("max_pool2d", TORCH_BOX(&fastcnn::max_pool2d));
  m.impl("_max_pool2d", TORCH_BOX(&fastcnn::max_pool2d));
  m.impl("_max_pool2d_values", TORCH_BOX(&fastcnn::max_pool2d_values));
  m.impl("max_pool2d_backward", TORCH_BOX(&fastcnn::backward));
  m.impl("max_pool2d_gather", TORCH_BOX(&fastcnn::gather));
}
