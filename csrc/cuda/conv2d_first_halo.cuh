// The part of an image that a block's windows cover, in shared memory: row by row, channels innermost, zeros around the
// image.
#pragma once
#include <cstdlib>

#include "cuda/conv2d.cuh"
#include "cuda/conv2d_first_tile.h"
#include "cuda/device.cuh"
#include "cuda/divisor.h"

namespace fastcnn::cuda {

// Whether an image's rows are runs of pixels with their channels, the order of the halo.
inline bool pixels_adjoin(const Map& m) { return m.sw == m.c && (m.sc == 1 || m.c == 1); }

// Starts put(place, valid, from) for every element: its place in the halo and where it comes from. A warp takes a line:
// a row of pixels where these adjoin, else a row of one channel; a thread has kAhead elements under way.
template <int kAhead, class T, class Put>
__device__ __forceinline__ void for_each_of_halo(const T* x, const Map& m, const FirstTile& t, int h0, int w0,
                                                 bool adjoin, const Divisor& by_channels, const Put& put) {
  const int channels = int(m.c), run = adjoin ? channels : 1, spread = adjoin ? 1 : channels;
  const int lines = adjoin ? t.height : t.height * channels, length = t.width * run;
  const int first = w0 * run, size = int(m.w) * run;
  const int64_t step = adjoin ? 1 : m.sw;
  for (int line = threadIdx.x / kWarp; line < lines; line += blockDim.x / kWarp) {
    uint32_t channel = 0;
    const int row = adjoin ? line : int(by_channels.divide(line, channel)), h = h0 + row;
    const bool inside = uint32_t(h) < uint32_t(m.h);
    const T* from = x + (inside ? h * m.sh : 0) + channel * m.sc;
    const int to = row * t.pitch + int(channel);
#pragma unroll kAhead
    for (int e = threadIdx.x % kWarp; e < length; e += kWarp) {
      const bool valid = inside && uint32_t(first + e) < uint32_t(size);
      put(to + e * spread, valid, valid ? from + (first + e) * step : x);
    }
  }
}

// Null, or what 32 bits do not count.
inline const char* first_refusal(const Map& x, const ConvGeometry& g) {
  const int64_t h = x.h + 2 * std::abs(int64_t{g.ph}), w = x.w + 2 * std::abs(int64_t{g.pw});
  return h > kMostIndex || w > kMostIndex / kFirstInputs ? "an axis exceeds 2^31 positions" : nullptr;
}

// Where a block's tile lies.
struct FirstPlace {
  int64_t n;
  int row, column, channel;  // its first output
};

struct FirstGrid {
  Divisor by_channel_blocks, by_across, by_down;
  int channels;
  int64_t blocks;

  FirstGrid() = default;
  FirstGrid(const Map& y, const FirstTile& t, int channels_of_block) {
    const int64_t deep = ceil_div(y.c, channels_of_block);
    const int64_t across = ceil_div(y.w, t.columns), down = ceil_div(y.h, t.rows);
    channels = channels_of_block, blocks = y.n * down * across * deep;
    by_channel_blocks = Divisor(deep), by_across = Divisor(across), by_down = Divisor(down);
  }
  __device__ __forceinline__ FirstPlace place(const FirstTile& t, int block) const {
    uint32_t down, across, deep;
    const uint32_t n = by_down.divide(by_across.divide(by_channel_blocks.divide(block, deep), across), down);
    return {n, int(down) * t.rows, int(across) * t.columns, int(deep) * channels};
  }
};

}  // namespace fastcnn::cuda
