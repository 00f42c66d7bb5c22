#include "ops/max_pool2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "max_pool2d";

// Runs a kernel over `count` tasks that read about `reads` elements each, with `bytes` of scratch.
template <class Kernel>
void run(const MaxPool2dParams& m, int64_t count, int64_t reads, int64_t bytes, Kernel kernel) {
  parallel_for(count, pool_grain(reads),
               [&](int64_t begin, int64_t end) { kernel(m, static_cast<char*>(Scratch::get(bytes)), begin, end); });
}

Tensor forward(const Tensor& input, const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
               bool ceil_mode, Tensor* argmax) {
  MaxPool2dParams m{};
  m.dtype = dtype_of(kOp, input);
  const PoolGeometry g = pool_geometry(kOp, kernel, stride, padding, dilation);
  check_pool_input(kOp, input);
  const Ints in{input.size(0), input.size(1), input.size(2), input.size(3)};
  set_geometry(kOp, m, in, g, ceil_mode);
  const MemoryFormat wanted = format_of(input), format = kernel_format(m, wanted);
  const Tensor x = dense(input, format);
  const Ints size{m.n, m.c, m.oh, m.ow};
  Tensor y = empty(size, x, format);
  if (argmax) *argmax = empty(size, x, format, m.wide_argmax ? ScalarType::Int : ScalarType::Byte);
  if (y.numel()) {
    m.x = x.const_data_ptr(), m.y = y.mutable_data_ptr();
    if (argmax) m.argmax = argmax->mutable_data_ptr();
    set_layout(m, format, m.n * m.oh);
    const int64_t reads = m.ow * m.kh * m.kw * (m.channels_last ? m.channel_block : 1);
    const Windows rows = row_windows(m), columns = column_windows(m);
    m.rows = rows.data(), m.columns = columns.data();
    run(m, m.tasks(), reads, m.scratch_bytes(), FASTCNN_CPU(max_pool2d));
  }
  if (argmax) *argmax = dense(*argmax, wanted);
  return dense(y, wanted);
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                                      const Ints& dilation, bool ceil_mode) {
  Tensor argmax;
  Tensor y = forward(x, kernel, stride, padding, dilation, ceil_mode, &argmax);
  return {y, argmax};
}

// One list instead of four: each that crosses the stable ABI costs half a microsecond.
Tensor max_pool2d_values(const Tensor& x, const Ints& geometry, bool ceil_mode) {
  FASTCNN_CHECK(geometry.size() == 8, kOp, ": expected geometry to have 8 values, but got ", geometry.size());
  const auto at = geometry.begin();
  return forward(x, {at, at + 2}, {at + 2, at + 4}, {at + 4, at + 6}, {at + 6, at + 8}, ceil_mode, nullptr);
}

Tensor backward(const Tensor& grad, const Tensor& argmax, const Ints& size, const Ints& kernel, const Ints& stride,
                const Ints& padding, const Ints& dilation, bool ceil_mode) {
  MaxPool2dParams m{};
  m.dtype = dtype_of(kOp, grad);
  check_pool_size(kOp, size);
  set_geometry(kOp, m, size, pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode);
  check_argmax(kOp, m, argmax);
  check_pool_grad(kOp, grad, argmax);
  const MemoryFormat wanted = format_of(argmax), format = kernel_format(m, wanted);
  const Tensor g = dense(grad, format), at = dense(argmax, format);
  check_positions(kOp, m, at);
  check_numel(kOp, size);
  Tensor gx = empty(size, g, format);
  if (gx.numel()) {
    m.x = g.const_data_ptr(), m.y = gx.mutable_data_ptr(), m.argmax = const_cast<void*>(at.const_data_ptr());
    set_layout(m, format, m.n * m.h);
    const Windows rows = transposed(row_windows(m), m.h), columns = transposed(column_windows(m), m.w);
    m.rows = rows.data(), m.columns = columns.data();
    const int64_t reads = m.n * m.c * (m.h * m.w + m.oh * m.ow) / m.backward_tasks();
    run(m, m.backward_tasks(), reads, m.backward_scratch_bytes(), FASTCNN_CPU(max_pool2d_backward));
  }
  return dense(gx, wanted);
}

Tensor gather(const Tensor& input, const Tensor& argmax, const Ints& kernel, const Ints& stride, const Ints& padding,
              const Ints& dilation, bool ceil_mode) {
  MaxPool2dParams m{};
  m.dtype = dtype_of(kOp, input);
  check_pool_input(kOp, input);
  set_geometry(kOp, m, {input.size(0), input.size(1), input.size(2), input.size(3)},
               pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode);
  check_argmax(kOp, m, argmax);
  const MemoryFormat format = format_of(argmax);
  const Tensor x = dense(input, format), at = dense(argmax, format);
  check_positions(kOp, m, at);
  Tensor y = empty({m.n, m.c, m.oh, m.ow}, x, format);
  if (y.numel()) {
    m.x = x.const_data_ptr(), m.y = y.mutable_data_ptr(), m.argmax = const_cast<void*>(at.const_data_ptr());
    set_layout(m, format, m.n * m.oh);
    const int64_t reads = m.ow * (m.channels_last ? m.c : 1);
    run(m, m.gather_tasks(), reads, 0, FASTCNN_CPU(max_pool2d_gather));
  }
  return y;
}

}  // namespace
}  // namespace fastcnn

#define GEOMETRY "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("max_pool2d(Tensor x, " GEOMETRY ") -> (Tensor, Tensor)");
  m.def("_max_pool2d(Tensor x, " GEOMETRY ") -> (Tensor, Tensor)");  // without autograd
  // Inference: no argmax is written. geometry: kernel_size, stride, padding and dilation, two each.
  m.def("_max_pool2d_values(Tensor x, int[] geometry, bool ceil_mode) -> Tensor");
  m.def("max_pool2d_backward(Tensor grad, Tensor argmax, SymInt[] size, " GEOMETRY ") -> Tensor");
  m.def("max_pool2d_gather(Tensor x, Tensor argmax, " GEOMETRY ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&fastcnn::max_pool2d));
  m.impl("_max_pool2d", TORCH_BOX(&fastcnn::max_pool2d));
  m.impl("_max_pool2d_values", TORCH_BOX(&fastcnn::max_pool2d_values));
  m.impl("max_pool2d_backward", TORCH_BOX(&fastcnn::backward));
  m.impl("max_pool2d_gather", TORCH_BOX(&fastcnn::gather));
}
