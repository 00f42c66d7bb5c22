#include "cuda/registration.h"
#include "cuda/sparse_conv2d.cuh"
#include "ops/sparse_conv2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "sparse_conv2d";

// start(table, stream), the table with memory of its own on x's device.
template <class F>
void run(const Tensor& x, std::vector<int32_t> values, const F& start) {
  Tensor memory = empty({int64_t(values.size())}, x, MemoryFormat::Contiguous, ScalarType::Int);
  const cuda::LinkTable table{std::move(values), static_cast<int32_t*>(memory.mutable_data_ptr())};
  launched(kOp, x, [&](void* stream) { return start(table, stream); });
}

Tensor sparse_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& counts,
                     const Ints& indices, const Ints& stride, const Ints& padding) {
  check_one_device(kOp, input, weight, bias);
  check_4d(kOp, "input", input);
  SparseConv2dParams p =
      sparse_geometry(kOp, sizes(input), input, counts, indices, sparse_kernel(kOp, weight), stride, padding);
  check_sparse_weight(kOp, input, weight, p);
  const Tensor x = dense(input), w = torch::stable::contiguous(weight);
  Tensor b;
  if (bias) {
    b = sparse_bias(kOp, input, *bias, p);
    p.b = b.const_data_ptr();
  }
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  run(x, cuda::links_by_output(p), [&](const auto& table, void* s) { return cuda::sparse_conv2d(p, table, s); });
  return y;
}

Tensor backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& counts,
                      const Ints& indices, const Ints& stride, const Ints& padding) {
  check_one_device(kOp, grad, weight);
  SparseConv2dParams p = sparse_geometry(kOp, size, grad, counts, indices, sparse_kernel(kOp, weight), stride, padding);
  check_sparse_weight(kOp, grad, weight, p);
  check_sparse_grad(kOp, grad, p);
  const Tensor g = dense(grad), w = torch::stable::contiguous(weight);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  run(g, cuda::links_by_input(p),
      [&](const auto& table, void* s) { return cuda::sparse_conv2d_backward_input(p, table, s); });
  return dx;
}

std::tuple<Tensor, Tensor> backward_weight(const Tensor& grad, const Tensor& input, const Ints& kernel_size,
                                           const Ints& counts, const Ints& indices, const Ints& stride,
                                           const Ints& padding) {
  check_one_device(kOp, input, grad);
  check_4d(kOp, "input", input);
  SparseConv2dParams p = sparse_geometry(kOp, sizes(input), input, counts, indices, kernel_size, stride, padding);
  check_same_dtype(kOp, "grad", input, grad);
  check_sparse_grad(kOp, grad, p);
  const Tensor g = dense(grad), x = dense(input);
  Tensor dw = empty({p.links, p.kh, p.kw}, x, MemoryFormat::Contiguous);
  Tensor db = empty({p.ym.c}, x, MemoryFormat::Contiguous);
  p.xm = map_of(x), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.x = x.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  const Ints sums{cuda::sparse_conv2d_pieces(p), p.links * p.kh * p.kw + p.ym.c};
  Tensor partial = empty(sums, x, MemoryFormat::Contiguous, accumulator_type(p.dtype));
  p.partial = partial.mutable_data_ptr();
  run(x, cuda::links_in_order(p),
      [&](const auto& table, void* s) { return cuda::sparse_conv2d_backward_weight(p, table, s); });
  return {dw, db};
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("sparse_conv2d", TORCH_BOX(&fastcnn::sparse_conv2d));
  m.impl("_sparse_conv2d", TORCH_BOX(&fastcnn::sparse_conv2d));
  m.impl("sparse_conv2d_backward_input", TORCH_BOX(&fastcnn::backward_input));
  m.impl("sparse_conv2d_backward_weight", TORCH_BOX(&fastcnn::backward_weight));
}
