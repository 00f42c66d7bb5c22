#include "cuda/registration.h"
#include "cuda/subsample2d.cuh"
#include "ops/subsample2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "subsample2d";

Tensor subsample2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& kernel,
                   const Ints& stride, double scale) {
  check_one_device(kOp, input, weight, bias);
  check_4d(kOp, "input", input);
  Subsample2dParams p = subsample_geometry(kOp, sizes(input), input, kernel, stride, scale);
  const Tensor w = per_channel(kOp, "weight", input, weight, p.ym.c);
  Tensor b;
  if (bias) {
    b = per_channel(kOp, "bias", input, *bias, p.ym.c);
    p.b = b.const_data_ptr();
  }
  const Tensor x = dense(input);
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  launched(kOp, x, [&](void* stream) { return cuda::subsample2d(p, stream); });
  return y;
}

Tensor backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& kernel,
                      const Ints& stride, double scale) {
  check_one_device(kOp, grad, weight);
  Subsample2dParams p = subsample_geometry(kOp, size, grad, kernel, stride, scale);
  check_subsample_grad(kOp, grad, p);
  const Tensor w = per_channel(kOp, "weight", grad, weight, p.ym.c);
  const Tensor g = dense(grad);
  check_numel(kOp, size);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  launched(kOp, g, [&](void* stream) { return cuda::subsample2d_backward_input(p, stream); });
  return dx;
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel,
                                           const Ints& stride, double scale) {
  check_one_device(kOp, input, grad);
  check_4d(kOp, "input", input);
  Subsample2dParams p = subsample_geometry(kOp, sizes(input), input, kernel, stride, scale);
  check_same_dtype(kOp, "grad", input, grad);
  check_subsample_grad(kOp, grad, p);
  const Tensor x = dense(input), g = torch::stable::contiguous(grad, format_of(x));
  Tensor dw = empty({p.ym.c}, x, MemoryFormat::Contiguous), db = empty({p.ym.c}, x, MemoryFormat::Contiguous);
  p.xm = map_of(x), p.ym = map_of(g);
  p.x = x.const_data_ptr(), p.g = g.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  Tensor partial = empty({cuda::subsample2d_units(p), 2, p.ym.c}, x, MemoryFormat::Contiguous, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  launched(kOp, x, [&](void* stream) { return cuda::subsample2d_backward_weight(p, stream); });
  return {dw, db};
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("_subsample2d", TORCH_BOX(&fastcnn::subsample2d));
  m.impl("subsample2d_backward_input", TORCH_BOX(&fastcnn::backward_input));
  m.impl("subsample2d_backward_weight", TORCH_BOX(&fastcnn::backward_weight));
}
