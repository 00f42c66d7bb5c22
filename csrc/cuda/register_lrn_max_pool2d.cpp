#include "cuda/local_response_norm.cuh"
#include "cuda/lrn_max_pool2d.cuh"
#include "cuda/max_pool2d.cuh"
#include "cuda/registration.h"
#include "ops/local_response_norm_plan.h"
#include "ops/max_pool2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "lrn_max_pool2d";

struct Params {
  LocalResponseNormParams norm;
  MaxPool2dParams pool;
};

#define ARGUMENTS                                                                                   \
  int64_t size, double alpha, double beta, double k, int64_t groups, bool relu, const Ints &kernel, \
      const Ints &stride, const Ints &padding, const Ints &dilation, bool ceil_mode
#define PASSED size, alpha, beta, k, groups, relu, kernel, stride, padding, dilation, ceil_mode

Params geometry(const Tensor& x, ARGUMENTS) {
  Params p{};
  p.norm = norm_geometry(kOp, x, size, alpha, beta, k, groups, relu);
  check_pool_input(kOp, x);
  p.pool.dtype = p.norm.dtype;
  set_geometry(kOp, p.pool, sizes(x), pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode);
  p.pool.channels_last = format_of(x) == MemoryFormat::ChannelsLast;
  return p;
}

Tensor forward(const Tensor& input, Params p, Tensor* argmax) {
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Ints size{p.pool.n, p.pool.c, p.pool.oh, p.pool.ow};
  Tensor y = empty(size, x, format);
  if (argmax) *argmax = empty(size, x, format, p.pool.wide_argmax ? ScalarType::Int : ScalarType::Byte);
  if (!y.numel()) return y;
  p.norm.x = x.const_data_ptr(), p.pool.y = y.mutable_data_ptr();
  if (argmax) p.pool.argmax = argmax->mutable_data_ptr();
  if (cuda::lrn_max_pool2d_fits(p.norm, p.pool, false)) {
    launched(kOp, x, [&](void* stream) { return cuda::lrn_max_pool2d(p.norm, p.pool, stream); });
    return y;
  }
  const Tensor between = empty(sizes(x), x, format);
  p.norm.out = between.mutable_data_ptr(), p.pool.x = between.const_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::local_response_norm(p.norm, stream); });
  launched(kOp, x, [&](void* stream) { return cuda::max_pool2d(p.pool, stream); });
  return y;
}

Tensor backward(const Tensor& grad, const Tensor& argmax, const Tensor& input, Params p) {
  check_one_device(kOp, input, grad, argmax);
  check_argmax(kOp, p.pool, argmax);
  check_same_dtype(kOp, "grad", input, grad);
  check_pool_grad(kOp, grad, argmax);
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Tensor g = torch::stable::contiguous(grad, format), at = torch::stable::contiguous(argmax, format);
  Tensor gx = empty(sizes(x), x, format);
  if (!gx.numel()) return gx;
  p.norm.x = x.const_data_ptr(), p.norm.out = gx.mutable_data_ptr();
  p.pool.x = g.const_data_ptr(), p.pool.argmax = const_cast<void*>(at.const_data_ptr());
  if (cuda::lrn_max_pool2d_fits(p.norm, p.pool, true)) {
    launched(kOp, x, [&](void* stream) { return cuda::lrn_max_pool2d_backward(p.norm, p.pool, stream); });
    return gx;
  }
  const Tensor between = empty(sizes(x), x, format);
  p.pool.y = between.mutable_data_ptr(), p.norm.g = between.const_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::max_pool2d_backward(p.pool, stream); });
  launched(kOp, x, [&](void* stream) { return cuda::local_response_norm_backward(p.norm, stream); });
  return gx;
}

std::tuple<Tensor, Tensor> lrn_max_pool2d(const Tensor& x, ARGUMENTS) {
  Tensor argmax;
  Tensor y = forward(x, geometry(x, PASSED), &argmax);
  return {y, argmax};
}

Tensor lrn_max_pool2d_values(const Tensor& x, ARGUMENTS) { return forward(x, geometry(x, PASSED), nullptr); }

Tensor lrn_max_pool2d_backward(const Tensor& grad, const Tensor& argmax, const Tensor& x, ARGUMENTS) {
  return backward(grad, argmax, x, geometry(x, PASSED));
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("lrn_max_pool2d", TORCH_BOX(&fastcnn::lrn_max_pool2d));
  m.impl("_lrn_max_pool2d", TORCH_BOX(&fastcnn::lrn_max_pool2d));
  m.impl("_lrn_max_pool2d_values", TORCH_BOX(&fastcnn::lrn_max_pool2d_values));
  m.impl("lrn_max_pool2d_backward", TORCH_BOX(&fastcnn::lrn_max_pool2d_backward));
}
