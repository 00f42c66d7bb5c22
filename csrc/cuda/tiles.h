// Tile sizes of the CUDA kernels, and why.
#pragma once
#include <cstdint>

namespace fastcnn::cuda {

// Shared memory that a block may take: without a wish of its own, 48 KiB, of which four fit every chip from sm_80 on;
// 99 KiB is the most that sm_86, 89 and 120 give one block.
constexpr int64_t kSharedBytes = 48 << 10, kMostSharedBytes = 99 << 10;

// Local response normalization. kAhead: the memory of an H100 answers after some 600 ns, in which it could send 2 MB,
// 15 KB an SM; 1024 threads of an SM with four requests of 4 bytes keep 16 KB under way.
constexpr int kNormThreads = 256, kAhead = 4, kNormPixels = 64;

// Pooling. A block's elements, of up to 16 bytes each: of AlexNet's 27x27 maps (NHWC, float) 9 rows of 32 channels,
// whose 19 input rows of 55 pixels take 134 KB: within the first-level cache of an A100 or H100.
constexpr int kPoolThreads = 256, kPoolLanes = 8, kPoolElements = 2048;

// Normalization with pooling: strips of rows are cut short of kLeastRows only to make some four blocks for each of an
// H100's 132 processors, since a strip reads the rows again that it shares with the next.
constexpr int kFusedThreads = 256, kLeastRows = 4;
constexpr int64_t kEnoughBlocks = 528;

// __launch_bounds__ names the blocks that a processor should hold at least: left to choose, ptxas spills registers into
// local memory where a few bytes of them buy one block more.

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid

inline bool aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace fastcnn::cuda
