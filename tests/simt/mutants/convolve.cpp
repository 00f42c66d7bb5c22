// One of csrc/cuda's convolutions, named by -DKERNEL, on memory of numpy's: without torch, so that a kernel with a
// planted fault is compiled in seconds.
#include <array>

#include "cuda/conv2d.cuh"

using namespace fastcnn;

namespace {

Map nhwc(int64_t n, int64_t h, int64_t w, int64_t c) { return {n, c, h, w, h * w * c, 1, w * c, c}; }

}  // namespace

// x [n][h][w][c] and y NHWC; weight [o][kh][kw][c/groups]; float16. sizes: n, h, w, c, then of y h, w, c, then kh, kw,
// strides and paddings along both axes, groups.
extern "C" __attribute__((visibility("default"))) const char* convolve(const void* x, const void* weight, void* y,
                                                                       const int64_t* sizes) {
  const auto [n, h, w, c] = std::array{sizes[0], sizes[1], sizes[2], sizes[3]};
  const int64_t groups = sizes[13];
  cuda::Conv2d p{};
  p.x = x, p.w = weight, p.y = y, p.dtype = Dtype::f16, p.processors = 1;
  p.xm = nhwc(n, h, w, c), p.ym = nhwc(n, sizes[4], sizes[5], sizes[6]);
  p.g.groups = groups, p.g.group_in = c / groups, p.g.group_out = sizes[6] / groups;
  p.g.kh = int32_t(sizes[7]), p.g.kw = int32_t(sizes[8]), p.g.sh = int32_t(sizes[9]), p.g.sw = int32_t(sizes[10]);
  p.g.ph = int32_t(sizes[11]), p.g.pw = int32_t(sizes[12]), p.g.dh = p.g.dw = 1;
  p.ws = cuda::packed_layout(p.g, p.dtype).strides;
  return cuda::KERNEL(p, nullptr);
}
