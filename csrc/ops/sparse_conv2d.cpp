#include <algorithm>

#include "ops/sparse_conv2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "sparse_conv2d";
constexpr int64_t kLanes = 16;   // of the widest vector: scratch is read and written in whole vectors
constexpr int64_t kChunks = 16;  // partial sums of the weight's gradient, at most

int64_t input_planes(const SparseConv2dParams& p) {
  return p.xm.c * p.phases_h * p.phases_w * p.rows * p.pitch + kLanes;
}
int64_t gradient_planes(const SparseConv2dParams& p) {
  const int64_t reach = (p.kh - 1) / p.sh * p.pitch + (p.kw - 1) / p.sw;
  return p.ym.c * (reach + p.rows * p.pitch) + kLanes;
}
int64_t one_plane(const SparseConv2dParams& p) { return p.rows * p.pitch + kLanes; }
int64_t terms(const SparseConv2dParams& p) { return 4 * p.links * p.kh * p.kw; }  // 16 bytes each, in elements of 4

template <class Kernel>
void run(const SparseConv2dParams& p, int64_t units, int64_t samples, const Kernel& kernel) {
  const int64_t work = samples * p.links * p.kh * p.kw * p.ym.h * p.ym.w;  // multiply-accumulates a unit
  parallel_for(units, 1 + 65536 / std::max<int64_t>(work, 1), [&](int64_t b, int64_t e) {
    std::vector<double> scratch((p.scratch * accumulator_size(p.dtype) + 7) / 8);
    kernel(p, b, e, scratch.data());
  });
}

Tensor sparse_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& counts,
                     const Ints& indices, const Ints& stride, const Ints& padding) {
  check_4d(kOp, "input", input);
  SparseConv2dParams p =
      sparse_geometry(kOp, sizes(input), input, counts, indices, sparse_kernel(kOp, weight), stride, padding);
  check_sparse_weight(kOp, input, weight, p);
  const Tensor x = dense(input), w = made_dense(weight);
  Tensor b;
  if (bias) {
    b = sparse_bias(kOp, input, *bias, p);
    p.b = b.const_data_ptr();
  }
  Tensor y = empty({p.ym.n, p.ym.c, p.ym.h, p.ym.w}, x, format_of(x));
  if (!y.numel()) return y;
  p.xm = map_of(x), p.ym = map_of(y);
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.out = y.mutable_data_ptr();
  p.scratch = input_planes(p) + one_plane(p) + terms(p);
  run(p, p.ym.n, 1, FASTCNN_CPU(sparse_conv2d));
  return y;
}

Tensor sparse_conv2d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& size, const Ints& counts,
                                    const Ints& indices, const Ints& stride, const Ints& padding) {
  SparseConv2dParams p = sparse_geometry(kOp, size, grad, counts, indices, sparse_kernel(kOp, weight), stride, padding);
  check_sparse_weight(kOp, grad, weight, p);
  check_sparse_grad(kOp, grad, p);
  const Tensor g = dense(grad), w = made_dense(weight);
  Tensor dx = empty(size, g, format_of(g));
  if (!dx.numel()) return dx;
  p.xm = map_of(dx), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.w = w.const_data_ptr(), p.out = dx.mutable_data_ptr();
  p.scratch = gradient_planes(p) + one_plane(p) + terms(p);
  run(p, p.xm.n, 1, FASTCNN_CPU(sparse_conv2d_backward_input));
  return dx;
}

std::tuple<Tensor, Tensor> sparse_conv2d_backward_weight(const Tensor& grad, const Tensor& input,
                                                         const Ints& kernel_size, const Ints& counts,
                                                         const Ints& indices, const Ints& stride, const Ints& padding) {
  check_4d(kOp, "input", input);
  SparseConv2dParams p = sparse_geometry(kOp, sizes(input), input, counts, indices, kernel_size, stride, padding);
  check_same_dtype(kOp, "grad", input, grad);
  check_sparse_grad(kOp, grad, p);
  const Tensor g = dense(grad), x = dense(input);
  Tensor dw = empty({p.links, p.kh, p.kw}, x, MemoryFormat::Contiguous);
  Tensor db = empty({p.ym.c}, x, MemoryFormat::Contiguous);
  p.xm = map_of(x), p.ym = map_of(g);
  p.g = g.const_data_ptr(), p.x = x.const_data_ptr(), p.dw = dw.mutable_data_ptr(), p.db = db.mutable_data_ptr();
  p.chunk = std::max<int64_t>((p.ym.n + kChunks - 1) / kChunks, 1);
  p.scratch = 2 * p.kh * p.kw + input_planes(p) + gradient_planes(p);
  const int64_t chunks = (p.ym.n + p.chunk - 1) / p.chunk;
  std::vector<double> partial(chunks * (p.links * p.kh * p.kw + p.ym.c));
  p.partial = partial.data();
  run(p, chunks, p.chunk, FASTCNN_CPU(sparse_conv2d_backward_weight));
  FASTCNN_CPU(sparse_conv2d_sum_partials)(p, chunks);
  return {dw, db};
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY "SymInt[] counts, SymInt[] indices, SymInt[2] stride, SymInt[2] padding"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("sparse_conv2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");
  m.def("_sparse_conv2d(Tensor x, Tensor weight, Tensor? bias, " GEOMETRY ") -> Tensor");  // without autograd
  m.def("sparse_conv2d_backward_input(Tensor grad, Tensor weight, SymInt[] size, " GEOMETRY ") -> Tensor");
  m.def("sparse_conv2d_backward_weight(Tensor grad, Tensor x, SymInt[2] kernel_size, " GEOMETRY
        ") -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("sparse_conv2d", TORCH_BOX(&fastcnn::sparse_conv2d));
  m.impl("_sparse_conv2d", TORCH_BOX(&fastcnn::sparse_conv2d));
  m.impl("sparse_conv2d_backward_input", TORCH_BOX(&fastcnn::sparse_conv2d_backward_input));
  m.impl("sparse_conv2d_backward_weight", TORCH_BOX(&fastcnn::sparse_conv2d_backward_weight));
}
