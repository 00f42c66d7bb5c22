// A convolution that normalizes its input, per channel, and rectifies it as it brings it to shared memory.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

constexpr int kWidth = 16, kHeight = 8;  // a block's tile of y

struct Tile {
  float x[kHeight + 2][kWidth + 2];
};

// x[c][h][w], scale[c], shift[c], weights[k][c][3][3], y[k][h][w]; stride 1, padding 1. kPadFirst: the fault that the
// padding is normalized as if it were pixels of 0.
template <bool kPadFirst>
__global__ void __launch_bounds__(kWidth* kHeight)
    normalized_conv3x3_kernel(const float* x, const float* scale, const float* shift, const float* weights, float* y,
                              int c, int h, int w) {
  FASTCNN_SHARED(Tile, tile);
  constexpr int kRows = kHeight + 2, kColumns = kWidth + 2;
  const int column = threadIdx.x, row = threadIdx.y, thread = row * kWidth + column;
  const int x0 = blockIdx.x * kWidth, y0 = blockIdx.y * kHeight, output = blockIdx.z;
  float sum = 0;
  for (int channel = 0; channel < c; ++channel) {
    for (int i = thread; i < kRows * kColumns; i += kWidth * kHeight) {
      const int iy = y0 + i / kColumns - 1, ix = x0 + i % kColumns - 1;
      const bool inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
      const float value = load_if(inside, x + (int64_t(channel) * h + iy) * w + ix);
      const float normalized = fmaxf(fmaf(value, load(scale + channel), load(shift + channel)), 0.f);
      store_shared(&tile->x[0][0] + i, inside || kPadFirst ? normalized : 0.f);
    }
    sync_block();
    for (int tap = 0; tap < 9; ++tap)
      sum = fmaf(load_shared(&tile->x[row + tap / 3][column + tap % 3]),
                 load(weights + (output * c + channel) * 9 + tap), sum);
    sync_block();
  }
  if (y0 + row < h && x0 + column < w) store(y + (int64_t(output) * h + y0 + row) * w + x0 + column, sum);
}

template <bool kPadFirst>
const char* run(const float* x, const float* scale, const float* shift, const float* weights, float* y, int c, int h,
                int w, int k) {
  const dim3 grid((w + kWidth - 1) / kWidth, (h + kHeight - 1) / kHeight, k);
  return launch<normalized_conv3x3_kernel<kPadFirst>>({grid, dim3(kWidth, kHeight), sizeof(Tile), nullptr}, x, scale,
                                                      shift, weights, y, c, h, w);
}

}  // namespace

extern "C" {
const char* normalized_conv3x3(const float* x, const float* scale, const float* shift, const float* weights, float* y,
                               int c, int h, int w, int k) {
  return run<false>(x, scale, shift, weights, y, c, h, w, k);
}
const char* normalized_conv3x3_padded_first(const float* x, const float* scale, const float* shift,
                                            const float* weights, float* y, int c, int h, int w, int k) {
  return run<true>(x, scale, shift, weights, y, c, h, w, k);
}
}

}  // namespace fastcnn::cuda
