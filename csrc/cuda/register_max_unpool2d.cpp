#include "cuda/max_unpool2d.cuh"
#include "cuda/registration.h"
#include "ops/max_unpool2d_plan.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "max_unpool2d";

void set_tensors(MaxUnpool2dParams& p, const Tensor& x, const Tensor& indices, Tensor& y, MemoryFormat format) {
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.indices = static_cast<const int64_t*>(indices.const_data_ptr());
}

Tensor max_unpool2d(const Tensor& input, const Tensor& indices, const Ints& output_size, bool sum) {
  check_one_device(kOp, input, indices);
  check_4d(kOp, "input", input);
  const Pair out = pair(kOp, "output_size", output_size, 0);
  MaxUnpool2dParams p = unpool_geometry(kOp, input, indices, out.h, out.w);
  const MemoryFormat format = format_of(input);
  const Tensor x = torch::stable::contiguous(input, format), at = torch::stable::contiguous(indices, format);
  Tensor y = empty({p.n, p.c, out.h, out.w}, x, format);
  if (!y.numel()) return y;
  p.sum = sum;
  set_tensors(p, x, at, y, format);
  const int64_t size = cuda::max_unpool2d_ranges(p);
  Tensor ranges = empty({size}, x, MemoryFormat::Contiguous, ScalarType::Int);
  void* const memory = size ? ranges.mutable_data_ptr() : nullptr;
  launched(kOp, x, [&](void* stream) { return cuda::max_unpool2d(p, memory, stream); });
  return y;
}

Tensor max_unpool2d_gather(const Tensor& input, const Tensor& indices) {
  check_one_device(kOp, input, indices);
  check_4d(kOp, "grad", input);
  check_4d(kOp, "indices", indices);
  const MemoryFormat format = format_of(indices);
  Tensor y = empty(sizes(indices), input, format);
  MaxUnpool2dParams p = gather_geometry(kOp, input, y, indices);
  if (!y.numel()) return y;
  const Tensor x = torch::stable::contiguous(input, format), at = torch::stable::contiguous(indices, format);
  set_tensors(p, x, at, y, format);
  launched(kOp, x, [&](void* stream) { return cuda::max_unpool2d_gather(p, stream); });
  return y;
}

}  // namespace
}  // namespace fastcnn

FASTCNN_CUDA_LIBRARY(m) {
  m.impl("max_unpool2d", TORCH_BOX(&fastcnn::max_unpool2d));
  m.impl("_max_unpool2d", TORCH_BOX(&fastcnn::max_unpool2d));
  m.impl("max_unpool2d_gather", TORCH_BOX(&fastcnn::max_unpool2d_gather));
}
