// Tile sizes of the CUDA kernels, and why.
#pragma once
#include <cstdint>

namespace fastcnn::cuda {

// Shared memory that a block may take: without a wish of its own, 48 KiB, of which two fit every chip from sm_80 on,
// three an A100 and four an H100; 99 KiB is the most that sm_86, 89 and 120 give one block.
constexpr int64_t kSharedBytes = 48 << 10, kMostSharedBytes = 99 << 10;

// Local response normalization. kAhead: the memory of an H100 answers after some 600 ns, in which it could send 2 MB,
// 15 KB an SM; 1024 threads of an SM with four requests of 4 bytes keep 16 KB under way.
constexpr int kNormThreads = 256, kAhead = 4, kNormPixels = 64;

// Batch normalization: vectors of 16 bytes a thread, under way at once; backward reads two or three tensors.
constexpr int kAffineThreads = 256, kAffineAhead = 4, kGradAhead = 2;

// Pooling. A block's elements, of up to 16 bytes each: of AlexNet's 27x27 maps (NHWC, float) 9 rows of 32 channels,
// whose 19 input rows of 55 pixels take 134 KB: within the first-level cache of an A100 or H100.
// kPoolStacked: of small NCHW planes a block takes several, two elements a thread.
constexpr int kPoolThreads = 256, kPoolLanes = 8, kPoolElements = 2048, kPoolStacked = 2 * kPoolThreads;
// NCHW: what a block reads passes through so many bytes of its shared memory: of ResNet's 112x112 maps (float) 53 rows
// for 26 of windows. Four blocks fit every chip from sm_80 on. It writes at most kPoolElements, at least kPoolFewest.
constexpr int64_t kPoolBytes = 24 << 10, kPoolFewest = 256;
// Positions of a window from which several threads share it: one thread's chain of loads would be as long as the
// memory's latency allows, and global pooling has too few outputs to hide that.
constexpr int64_t kPoolLargeWindow = 32;

// Subsampling. Threads a block; outputs whose products a thread sums in their own precision before double takes over.
constexpr int kSubsampleThreads = 256, kSubsampleChain = 8;

// Sparse convolution. Weight gradient: positions that a warp sums, and the most such pieces, which one thread adds up.
constexpr int kSparseThreads = 256;
constexpr int64_t kSparsePositions = 1024, kSparsePieces = 64;

// Local convolution: products of kLocalTile by kLocalTile, a thread an element, kLocalDepth terms at a time.
constexpr int kLocalTile = 16, kLocalDepth = 32, kLocalThreads = kLocalTile * kLocalTile;

// Max unpooling. A warp holds so many bytes of its planes in shared memory: 8 warps take 48 KiB, and four such blocks
// keep 32 warps of a processor waiting for memory. kUnpoolChunk: indices whose range is noted together.
constexpr int kUnpoolWarps = 8, kUnpoolBytes = 6 << 10, kUnpoolChunk = 32;

// Normalization with pooling: strips of rows are cut short of kLeastRows only to make some four blocks for each of an
// H100's 132 processors, since a strip reads the rows again that it shares with the next.
// kFusedBand: pixels of x for whose rows as many rows of y move together, in NCHW.
constexpr int kFusedThreads = 256, kLeastRows = 4, kFusedBand = 64;
constexpr int64_t kEnoughBlocks = 528;

// Convolution without shared memory: 16 sums a thread take two loads of 4 elements to 16 products.
constexpr int kConvThreads = 128, kDirectPixels = 4;

// Convolution by halo tile. Four rows of outputs a thread read a weight once for four products.
constexpr int kGroupedThreads = 256, kGroupedRows = 4;
// Its weight gradient: of three taps and four neighbouring pixels, a thread reads six positions of x where others read
// twelve. kGradPart: neighbouring channels of the gradient.
constexpr int kGradTaps = 3, kGradPixels = 4, kGradPart = 4;
// On tensor cores: a warp for each group of 8 channels of a line of all banks.
constexpr int kPlaneThreads = 256;

// First layers, of at most kFirstInputs input channels. Float32: a warp's pixels, and weights of each output that a
// stage holds. 16 bits: a warp's pixels, the fewest warps of a block, and pairs of weights. A third stage would cost
// the halo its room.
constexpr int kFirstInputs = 4, kFirstStages = 2, kFirstPixels = 64, kFirstDepth = 16;
constexpr int kWarpPixels = 32, kFirstWarps = 2, kFirstPairs = 16;

// __launch_bounds__ names the blocks that a processor should hold at least: left to choose, ptxas spills registers into
// local memory where a few bytes of them buy one block more.

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid

// The exponent of the largest power of two up to n, but `most` at most.
inline int log2_floor(int64_t n, int most) {
  int bits = 0;
  while (bits < most && int64_t{2} << bits <= n) ++bits;
  return bits;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles of a matrix product in FFMA, pixels x channels: the largest that yields a block for each of an H100's 132
// processors.
enum class GemmTile { k128x128, k128x64, k64x64 };
inline GemmTile gemm_tile(int64_t pixels, int64_t channels, int64_t groups) {
  const int64_t rows = (pixels + 127) / 128 * groups;
  if (channels > 64 && rows * ((channels + 127) / 128) >= 132) return GemmTile::k128x128;
  return rows * ((channels + 63) / 64) >= 132 ? GemmTile::k128x64 : GemmTile::k64x64;
}

// Tiles of a matrix product on tensor cores. A warp's share of 64x64 reads 2 bytes of shared memory to 32 products of
// 16 bits: with what is copied into it, 94% of the 128 bytes a clock that a processor of an H100 has for mma.sync at
// its full rate there; 64x32 takes 3 bytes, 32x32 4. The 128 or 96 sums a thread leave room for 8 warps on a processor.
// 128x192: of 192 outputs (AlexNet's groups, GoogLeNet, Inception), 128 columns would leave a quarter idle.
enum class MmaTile { k128x192, k128x128, k128x64, k64x64 };
template <int kM, int kN>
struct MmaTraits {
  static constexpr int kWarpM = kM == 64 ? 32 : 64, kWarpN = kN == 192 ? 48 : kN == 128 ? 64 : 32;
  static constexpr int kThreads = kM / kWarpM * (kN / kWarpN) * 32, kStages = kM == 64 ? 4 : 3;
  static constexpr int kBlocks = kN == 192 ? 1 : kN == 128 ? 2 : kM == 128 ? 3 : 4;
};
inline MmaTile mma_tile(int64_t pixels, int64_t channels, int64_t groups) {
  const auto blocks = [&](int m, int n) { return ceil_div(pixels, m) * ceil_div(channels, n) * groups; };
  const auto filled = [&](int n) { return ceil_div(channels, n) * n; };
  if (channels > 128 && filled(192) < filled(128) && blocks(128, 192) >= 132) return MmaTile::k128x192;
  if (channels > 64 && blocks(128, 128) >= 132) return MmaTile::k128x128;
  return blocks(128, 64) >= 132 ? MmaTile::k128x64 : MmaTile::k64x64;
}

// What a block that computes part of a tile's sum costs, in steps of a sum (64 bytes of each operand's rows): before
// its pipeline is full; and its partial sums, written and read once, for whose 8 bytes the memory of an A100 or H100
// takes as long as tensor cores for 19 or 23 steps. kFinishSteps: the second launch's 2 us, by a tile of 128x128.
constexpr int64_t kPieceSteps = 2, kPartialSteps = 20, kFinishSteps = 8, kMostPieces = 32;

// Taps of an axis that those products take: a pixel keeps a word of bits for both axes, and one to spare.
constexpr int kMostTaps = 15;

// Ranges of pixels that weight gradients are summed over separately, where `blocks` blocks cover the weight: so many
// that the blocks fill the 132 processors of an H100 four times, but none of fewer than 256 pixels. A function of sizes
// alone, so that the sums are the same on every chip.
inline int64_t weight_grad_splits(int64_t pixels, int64_t blocks) {
  const int64_t wanted = (4 * 132 + blocks - 1) / blocks, most = (pixels + 255) / 256;
  const int64_t splits = wanted < most ? wanted : most, chunk = (pixels + splits - 1) / splits;
  return (pixels + chunk - 1) / chunk;
}

// Threads that add up an element of the weight's partial gradients: of few elements several, at least eight sums each.
// One thread's chain of loads would take longer than the rest: depthwise convolutions have 9 elements a channel.
inline int weight_grad_rows(int64_t elements, int64_t splits) {
  int rows = 1;
  while (rows < 32 && 16 * rows <= splits && elements * rows < 132 * 1024) rows *= 2;
  return rows;
}

// Ranges of halo tiles, where a block takes one of `deep` ranges of channels: four blocks a processor, of at least four
// tiles, since each ends with sums to store; but as many as there are until every processor has one.
inline int64_t grouped_grad_splits(int64_t tiles, int64_t deep) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t filling = least(ceil_div(4 * 132, deep), ceil_div(tiles, 4)), one_each = ceil_div(132, deep);
  return ceil_div(tiles, ceil_div(tiles, least(tiles, filling > one_each ? filling : one_each)));
}

inline bool aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace fastcnn::cuda
