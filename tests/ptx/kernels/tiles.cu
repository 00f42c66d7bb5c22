// Kernels with shared memory, each with the faults that the interpreter's checks should find.
#include <cstdint>

enum Fault {
  kNone,
  kGlobalRead,       // one row below the image is read
  kSharedRow,        // one row more than the tile has is filled
  kNoBarrierBefore,  // the tile is read while others still fill it
  kNoBarrierAfter,   // the next channel is filled in while others still read
  kUnwrittenHalo,    // the tile's last column is never filled
  kDivergent,        // the halves of the block wait at different barriers
  kNoWarpBarrier,    // a neighbour's value is read without __syncwarp
  kSharedTail,       // the write behind the end of dynamic shared memory
  kPartialMask,      // a shuffle's mask names a lane that does not come
};

extern "C" __global__ void vector_add(const float* a, const float* b, float* sum, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) sum[i] = a[i] + b[i];
}

extern "C" __global__ void vector_copy(const float4* from, float4* to, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i];
}

// y[k][h][w] = sum over c, r, s of x[c][h + r - 1][w + s - 1] * weight[k][c][r][s]; a block of 16x8 threads makes a
// tile of 16x8 pixels for two output channels.
template <Fault kFault>
__global__ void conv3x3(const float* x, const float* weight, float* y, int channels, int height, int width) {
  constexpr int kTileWidth = 16, kTileHeight = 8, kThreads = kTileWidth * kTileHeight, kOut = 2;
  constexpr int kRow = kTileWidth + 2, kRows = kTileHeight + 2;
  __shared__ float tile[kRows][kRow];
  __shared__ float taps[kOut][9];
  const int thread = threadIdx.y * kTileWidth + threadIdx.x;
  const int left = blockIdx.x * kTileWidth - 1, top = blockIdx.y * kTileHeight - 1, first = blockIdx.z * kOut;
  float sums[kOut] = {};
  for (int c = 0; c < channels; ++c) {
    for (int i = thread; i < (kRows + (kFault == kSharedRow)) * kRow; i += kThreads) {
      int row = top + i / kRow, column = left + i % kRow;
      bool inside = row >= 0 && row < height + (kFault == kGlobalRead) && column >= 0 && column < width;
      if (kFault != kUnwrittenHalo || i % kRow < kRow - 1)
        (&tile[0][0])[i] = inside ? x[(c * height + row) * width + column] : 0.f;
    }
    if (thread < kOut * 9)
      taps[thread / 9][thread % 9] = weight[((first + thread / 9) * channels + c) * 9 + thread % 9];
    if (kFault != kNoBarrierBefore) __syncthreads();
    for (int tap = 0; tap < 9; ++tap)
      for (int k = 0; k < kOut; ++k)
        sums[k] = fmaf(tile[threadIdx.y + tap / 3][threadIdx.x + tap % 3], taps[k][tap], sums[k]);
    if (kFault != kNoBarrierAfter) __syncthreads();
  }
  const int row = top + 1 + threadIdx.y, column = left + 1 + threadIdx.x;
  if (row < height && column < width)
    for (int k = 0; k < kOut; ++k) y[((first + k) * height + row) * width + column] = sums[k];
}

template __global__ void conv3x3<kNone>(const float*, const float*, float*, int, int, int);
template __global__ void conv3x3<kGlobalRead>(const float*, const float*, float*, int, int, int);
template __global__ void conv3x3<kSharedRow>(const float*, const float*, float*, int, int, int);
template __global__ void conv3x3<kNoBarrierBefore>(const float*, const float*, float*, int, int, int);
template __global__ void conv3x3<kNoBarrierAfter>(const float*, const float*, float*, int, int, int);
template __global__ void conv3x3<kUnwrittenHalo>(const float*, const float*, float*, int, int, int);

// sums[block] = the sum of the block's share of x
template <Fault kFault>
__global__ void block_sum(const float* x, float* sums, int n) {
  __shared__ float parts[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  if (kFault == kPartialMask && lane == 31) return;
  for (int distance = 16; distance > 0; distance /= 2) {
    if (kFault == kPartialMask && lane == 30) break;
    sum += __shfl_down_sync(0xffffffffu, sum, distance);
  }
  if (lane == 0) parts[warp] = sum;
  if (kFault == kDivergent) {
    if (threadIdx.x < blockDim.x / 2) {
      __syncthreads();
    } else {
      __syncthreads();
      parts[warp] += 1.f;
    }
  } else {
    __syncthreads();
  }
  if (warp == 0) {
    sum = lane < blockDim.x / 32 ? parts[lane] : 0.f;
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) sums[blockIdx.x] = sum;
  }
}

template __global__ void block_sum<kNone>(const float*, float*, int);
template __global__ void block_sum<kDivergent>(const float*, float*, int);
template __global__ void block_sum<kPartialMask>(const float*, float*, int);

// y[i] = x[i ^ 1] by way of dynamic shared memory, exchanged within warps
template <Fault kFault>
__global__ void swap_neighbours(const float* x, float* y) {
  extern __shared__ float values[];
  values[threadIdx.x + (kFault == kSharedTail)] = x[threadIdx.x];
  if (kFault != kNoWarpBarrier) __syncwarp();
  y[threadIdx.x] = values[threadIdx.x ^ 1];
}

template __global__ void swap_neighbours<kNone>(const float*, float*);
template __global__ void swap_neighbours<kNoWarpBarrier>(const float*, float*);
template __global__ void swap_neighbours<kSharedTail>(const float*, float*);

extern "C" __global__ void spin(const volatile int* flag) {
  while (*flag == 0) {
  }
}
