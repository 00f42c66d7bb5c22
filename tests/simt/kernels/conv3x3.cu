#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastcnn::cuda {
namespace {

constexpr int kWidth = 16, kHeight = 8, kOutputs = 4;  // a block's tile of y: columns, rows, channels

enum class Fault { kNone, kNoBarrier, kRowTooManyGlobal, kRowTooManyShared };

struct Tile {
  float weights[kOutputs][9];
  float x[kHeight + 2][kWidth + 2];
};

// x[c][h][w], weights[k][c][3][3], y[k][h][w]; stride 1, padding 1.
template <Fault kFault>
__global__ void __launch_bounds__(kWidth* kHeight)
    conv3x3_kernel(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  FASTCNN_SHARED(Tile, tile);
  constexpr int kRows = kHeight + 2 + (kFault == Fault::kRowTooManyShared), kColumns = kWidth + 2;
  const int column = threadIdx.x, row = threadIdx.y, thread = row * kWidth + column;
  const int x0 = blockIdx.x * kWidth, y0 = blockIdx.y * kHeight, k0 = blockIdx.z * kOutputs;
  float sum[kOutputs] = {};
  for (int channel = 0; channel < c; ++channel) {
    for (int i = thread; i < kRows * kColumns; i += kWidth * kHeight) {
      const int iy = y0 + i / kColumns - 1, ix = x0 + i % kColumns - 1;
      const bool inside = iy >= 0 && iy < h + (kFault == Fault::kRowTooManyGlobal) && ix >= 0 && ix < w;
      store_shared(&tile->x[0][0] + i, load_if(inside, x + (int64_t(channel) * h + iy) * w + ix));
    }
    for (int i = thread; i < kOutputs * 9; i += kWidth * kHeight) {
      const int output = k0 + i / 9;
      store_shared(&tile->weights[0][0] + i, load_if(output < k, weights + (output * c + channel) * 9 + i % 9));
    }
    sync_block();
    for (int tap = 0; tap < 9; ++tap) {
      const float value = tile->x[row + tap / 3][column + tap % 3];
      for (int o = 0; o < kOutputs; ++o) sum[o] += value * tile->weights[o][tap];
    }
    if constexpr (kFault != Fault::kNoBarrier) sync_block();
  }
  if (y0 + row >= h || x0 + column >= w) return;
  for (int o = 0; o < kOutputs; ++o)
    if (k0 + o < k) store(y + (int64_t(k0 + o) * h + y0 + row) * w + x0 + column, sum[o]);
}

template <Fault kFault>
const char* conv3x3(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  const dim3 grid((w + kWidth - 1) / kWidth, (h + kHeight - 1) / kHeight, (k + kOutputs - 1) / kOutputs);
  return launch<conv3x3_kernel<kFault>>({grid, dim3(kWidth, kHeight), sizeof(Tile), nullptr}, x, weights, y, c, h, w,
                                        k);
}

}  // namespace

extern "C" {
const char* conv3x3_f32(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  return conv3x3<Fault::kNone>(x, weights, y, c, h, w, k);
}
const char* conv3x3_without_barrier(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  return conv3x3<Fault::kNoBarrier>(x, weights, y, c, h, w, k);
}
const char* conv3x3_row_too_many_global(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  return conv3x3<Fault::kRowTooManyGlobal>(x, weights, y, c, h, w, k);
}
const char* conv3x3_row_too_many_shared(const float* x, const float* weights, float* y, int c, int h, int w, int k) {
  return conv3x3<Fault::kRowTooManyShared>(x, weights, y, c, h, w, k);
}
}

}  // namespace fastcnn::cuda
