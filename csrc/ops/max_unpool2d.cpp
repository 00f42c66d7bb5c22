#include "ops/max_unpool2d_plan.h"
#include "ops/scratch.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "max_unpool2d";

// Cuts the work into tasks and runs the kernel on all; `h` and `w` are those of the planes that indices point into.
template <class Kernel>
void run(MaxUnpool2dParams& p, MemoryFormat format, int64_t h, int64_t w, const Kernel& kernel) {
  constexpr int64_t kChannels = 16;  // a cache line of floats
  p.channels_last = format == MemoryFormat::ChannelsLast;
  // Whole images are read in the order of memory, but must be enough for the threads, and their sums small.
  const bool whole = p.n >= 2 * num_threads() && !p.sums_apart();
  p.block = !p.channels_last ? 1 : whole ? p.c : std::min(p.c, kChannels);
  int64_t invalid = 0;  // is a place: nothing is empty here
  p.invalid = &invalid;
  const int64_t elements = p.n * p.c * (p.pixels + p.places) / p.tasks();
  parallel_for(p.tasks(), 1 + 32768 / elements, kernel);
  FASTCNN_CHECK(invalid == 0, kOp, ": Found an invalid max index: ", invalid, " (output volumes are of size ", h, "x",
                w, ")");
}

Tensor max_unpool2d(const Tensor& input, const Tensor& indices, const Ints& output_size, bool sum) {
  check_4d(kOp, "input", input);
  const Pair out = pair(kOp, "output_size", output_size, 0);
  MaxUnpool2dParams p = unpool_geometry(kOp, input, indices, out.h, out.w);
  const MemoryFormat format = format_of(input);
  const Tensor x = dense(input, format), at = dense(indices, format);
  Tensor y = empty({p.n, p.c, out.h, out.w}, x, format);
  if (!y.numel()) return y;
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.indices = static_cast<const int64_t*>(at.const_data_ptr()), p.sum = sum;
  run(p, format, out.h, out.w, [&](int64_t begin, int64_t end) {
    const int64_t sums = p.sums_apart() ? p.places * p.block : 0;
    FASTCNN_CPU(max_unpool2d)(p, static_cast<float*>(Scratch::get(sums * sizeof(float))), begin, end);
  });
  return y;
}

Tensor max_unpool2d_gather(const Tensor& input, const Tensor& indices) {
  check_4d(kOp, "grad", input);
  check_4d(kOp, "indices", indices);
  const int64_t h = input.size(2), w = input.size(3);
  const MemoryFormat format = format_of(indices);
  Tensor y = empty({indices.size(0), indices.size(1), indices.size(2), indices.size(3)}, input, format);
  MaxUnpool2dParams p = gather_geometry(kOp, input, y, indices);
  if (!y.numel()) return y;
  const Tensor x = dense(input, format), at = dense(indices, format);
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.indices = static_cast<const int64_t*>(at.const_data_ptr());
  run(p, format, h, w, [&](int64_t begin, int64_t end) { FASTCNN_CPU(max_unpool2d_gather)(p, begin, end); });
  return y;
}

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("max_unpool2d(Tensor x, Tensor indices, SymInt[2] output_size, bool sum) -> Tensor");
  m.def("_max_unpool2d(Tensor x, Tensor indices, SymInt[2] output_size, bool sum) -> Tensor");  // without autograd
  m.def("max_unpool2d_gather(Tensor x, Tensor indices) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("max_unpool2d", TORCH_BOX(&fastcnn::max_unpool2d));
  m.impl("_max_unpool2d", TORCH_BOX(&fastcnn::max_unpool2d));
  m.impl("max_unpool2d_gather", TORCH_BOX(&fastcnn::max_unpool2d_gather));
}
