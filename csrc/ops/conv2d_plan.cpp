// Which convolution kernel runs and how its work is cut: pure functions of sizes, dtype and instruction set.
#include <algorithm>

#include "ops/conv2d_winograd_grad.h"

namespace fastcnn {
namespace {

// Elements of a task's copy of x. 512 KiB of float32 leave half of a 1 MiB L2 to the weights that stream past it; CPUs
// without AVX-512 have 256 or 512 KiB of L2.
constexpr int64_t kStageElements = 128 * 1024;
int64_t stage_elements(Isa isa) { return isa == Isa::avx512 ? kStageElements : kStageElements / 4; }

// Elements of a block's output.
constexpr int64_t kOutputElements = 128 * 1024;

// Enough tasks that the last one to finish costs little, where there is work for that many.
constexpr int64_t kTasksPerThread = 8;

// Weights that every thread may read all of: 128 KiB of float32 are a quarter of a 512 KiB L2.
constexpr int64_t kFewWeights = 32 * 1024;

// Pixels of a block: fewer do not repay the panel of weights that each block streams from L2. Blocks of less than a row
// are multiples of it, so that they begin where a slot of moments does.
constexpr int64_t kLeastPixels = kMomentPixels;

// The packed gradients of a block: 512 KiB of float32 stay in L2 beside its inputs. Its pixels: as many as make the
// reading and writing of a tile of dw cheap, as few as leave its inputs in L1.
constexpr int64_t kGradElements = 128 * 1024, kMostGradPixels = 6 * kLeastPixels;

// The transformed inputs of a block: 1.25 MiB of float32. And not more tiles than repay the reading of a weight.
constexpr int64_t kWinogradElements = 320 * 1024, kMostWinogradTiles = 56;
// The transforms of a chunk of the weight gradient: 16 MiB of float32. And the fewest tiles whose products repay a pass
// over the sums.
constexpr int64_t kChunkElements = 4 * 1024 * 1024, kLeastChunk = 28;
// The transformed gradients of a weight gradient: 64 MiB of float32.
constexpr int64_t kGradBufferElements = 16 * 1024 * 1024;
// Fewer channels leave a vector idle.
constexpr int64_t kLeastWinogradChannels = 16;

// Vectors of output channels that the direct kernel takes at once, on narrow maps.
constexpr int64_t kPanelsAtOnce = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool needs_conversion(Dtype d) { return d == Dtype::f16 || d == Dtype::bf16; }

// Rows and columns of x that a block of output rows or columns reads.
int64_t in_rows(const ConvGeometry& g, int64_t rows) { return (rows - 1) * g.sh + (g.kh - 1) * int64_t{g.dh} + 1; }
int64_t in_cols(const ConvGeometry& g, int64_t cols) { return (cols - 1) * g.sw + (g.kw - 1) * int64_t{g.dw} + 1; }

// Whether a tap of some output pixel of ym lies outside x.
bool reads_padding(const ConvGeometry& g, const Map& xm, const Map& ym) {
  return g.ph > 0 || g.pw > 0 || in_rows(g, ym.h) - g.ph > xm.h || in_cols(g, ym.w) - g.pw > xm.w;
}

struct BlockShape {
  int64_t rows, cols;
};

// The block's outputs, too, stay in L2 while the kernel adds panel after panel to each pixel's channels.
BlockShape within_output(BlockShape block, int64_t channels) {
  const int64_t pixels = std::max(kLeastPixels, kOutputElements / std::max<int64_t>(1, channels));
  block.rows = std::clamp<int64_t>(pixels / block.cols, 1, block.rows);
  if (block.rows == 1) block.cols = std::min(block.cols, std::max(kLeastPixels, pixels / kLeastPixels * kLeastPixels));
  return block;
}

// Output pixels whose part of x has about `most` elements: whole rows if one fits.
BlockShape block_shape(const ConvGeometry& g, const Map& ym, int64_t channels, int64_t most) {
  channels = std::max<int64_t>(1, channels);
  int64_t cols = ym.w;
  if (in_rows(g, 1) * in_cols(g, cols) * channels > most) {
    const int64_t fit = (most / (in_rows(g, 1) * channels) - (g.kw - 1) * int64_t{g.dw} - 1) / g.sw + 1;
    cols = std::min(ym.w, std::max(kLeastPixels, fit / kLeastPixels * kLeastPixels));
  }
  const int64_t fit = most / (in_cols(g, cols) * channels);
  const int64_t rows = fit <= in_rows(g, 1) ? 1 : (fit - in_rows(g, 1)) / g.sh + 1;
  return within_output({std::clamp<int64_t>(rows, 1, ym.h), cols}, ym.c);
}

// Whether Winograd's kernel is the faster one, in multiply-adds per pair of input and output channel: for each,
// products, the time to fetch its weights from L3 or memory, or to pack them, and for Winograd the transforms, which
// grow with the sum of the channels instead.
bool winograd_pays(const ConvGeometry& g, const Map& ym, bool packed) {
  constexpr double kTransformTime = 16, kFetchTime = 16, kPackTime = 64;
  const double weight_time = packed ? kFetchTime : kFetchTime + kPackTime;
  if (g.group_in < kLeastWinogradChannels || g.group_out < kLeastWinogradChannels) return false;
  const double tiles = double(ym.n) * double(ceil_div(ym.h, kWinogradOut)) * double(ceil_div(ym.w, kWinogradOut));
  const double pixels = double(ym.n) * double(ym.h) * double(ym.w);
  const double transforms = kTransformTime * (1 / double(g.group_in) + 1 / double(g.group_out));
  return 9 * (pixels + weight_time) > kWinogradPoints * (tiles * (1 + transforms) + weight_time);
}

// Blocks of 4x4 tiles whose transformed inputs stay in L2: rows of whole images' width, or parts of one that begin
// where a slot of moments does.
Conv2dPlan plan_winograd(const Conv2dParams& p, Isa isa, int64_t threads) {
  const ConvGeometry& g = p.g;
  Conv2dPlan plan{};
  plan.lanes = lanes_of(p.dtype, isa);
  plan.staged = needs_conversion(p.dtype) || p.xm.sc != 1;
  plan.panels = ceil_div(g.group_out, plan.lanes);
  const int64_t step = winograd_step(g.group_in, plan.lanes), slot = kMomentPixels / kWinogradOut;
  const int64_t down = p.ym.n * ceil_div(p.ym.h, kWinogradOut), across = ceil_div(p.ym.w, kWinogradOut);
  const int64_t most = std::clamp(kWinogradElements / (kWinogradPoints * step), slot, kMostWinogradTiles);
  plan.cols = across <= most ? across : most / slot * slot;
  plan.rows = plan.cols == across ? most / across : 1;
  plan.strips = ceil_div(across, plan.cols);
  plan.bands = ceil_div(down, plan.rows), plan.rows = ceil_div(down, plan.bands);

  const int64_t wanted = threads > 1 ? threads * kTasksPerThread : 1;
  plan.panels_per_task = plan.panels;
  if (const int64_t blocks = g.groups * plan.strips * plan.bands; blocks < wanted) {
    const int64_t parts = std::min(ceil_div(plan.panels, kPanelsAtOnce), ceil_div(wanted, blocks));
    plan.panels_per_task = ceil_div(ceil_div(plan.panels, parts), kPanelsAtOnce) * kPanelsAtOnce;
  }
  plan.panel_tasks = ceil_div(plan.panels, plan.panels_per_task);
  plan.tasks = g.groups * plan.strips * plan.bands * plan.panel_tasks;
  plan.scratch_stage = ceil_div((plan.staged ? (plan.cols - 1) * kWinogradOut + 6 : 6) * 6 * g.group_in, 16) * 16;
  plan.scratch = plan.scratch_stage + kWinogradPoints * plan.rows * plan.cols * (step + 2 * plan.lanes);
  return plan;
}

}  // namespace

int64_t terms(const ConvGeometry& g, ConvAlgorithm algorithm) {
  return algorithm == ConvAlgorithm::direct_bf16 ? (g.group_in + 1) / 2 : g.group_in;
}

int32_t lanes_of(Dtype dtype, Isa isa) {
  const int32_t bytes = isa == Isa::avx512 ? 64 : isa == Isa::avx2 ? 32 : 16;
  return bytes / accumulator_size(dtype);
}

ConvAlgorithm strict_conv2d(const ConvGeometry& g, Dtype dtype, Isa isa) {
  // From 16 channels on, a vector of one group's outputs is full; below, its lanes would mostly idle.
  const bool side_by_side = g.groups > 1 && g.group_in == g.group_out && (g.group_in & (g.group_in - 1)) == 0 &&
                            g.group_in <= 8 && g.group_in <= lanes_of(dtype, isa);
  if (side_by_side) return ConvAlgorithm::lane_grouped;
  return dtype == Dtype::bf16 && bf16_dot() ? ConvAlgorithm::direct_bf16 : ConvAlgorithm::direct;
}

bool winograd_fits(const ConvGeometry& g) {
  // Where padding reaches further than the kernel, outputs are zero that a tile would give its neighbours' rounding.
  const bool inside = g.ph >= 0 && g.ph < 3 && g.pw >= 0 && g.pw < 3;
  return inside && g.kh == 3 && g.kw == 3 && g.sh == 1 && g.sw == 1 && g.dh == 1 && g.dw == 1 && g.zh == 1 &&
         g.zw == 1 && g.padding == Padding::zeros;
}

ConvAlgorithm choose_conv2d(const ConvGeometry& g, const Map& ym, Dtype dtype, Isa isa, int64_t accuracy, bool packed) {
  const bool winograd = accuracy > 0 && winograd_fits(g) && winograd_pays(g, ym, packed);
  return winograd ? ConvAlgorithm::winograd : strict_conv2d(g, dtype, isa);
}

int64_t taps(const ConvGeometry& g, ConvAlgorithm algorithm) {
  return algorithm == ConvAlgorithm::winograd ? kWinogradPoints : int64_t{g.kh} * g.kw;
}

int64_t packed_conv2d_size(const ConvGeometry& g, ConvAlgorithm algorithm, int32_t lanes) {
  const int64_t vectors = algorithm == ConvAlgorithm::lane_grouped ? ceil_div(g.groups * g.group_out, lanes)
                                                                   : g.groups * ceil_div(g.group_out, lanes);
  return vectors * taps(g, algorithm) * terms(g, algorithm) * lanes;
}

void flatten_pixels(Conv2dParams& p) {
  const auto dense_nhwc = [](const Map& m) { return m.sc == 1 && m.sh == m.w * m.sw && m.sn == m.h * m.sh; };
  const ConvGeometry& g = p.g;
  const bool pointwise = g.kh == 1 && g.kw == 1 && g.sh == 1 && g.sw == 1 && g.ph == 0 && g.pw == 0 && g.zh == 1 &&
                         g.zw == 1 && p.xm.h == p.ym.h && p.xm.w == p.ym.w;
  if (!pointwise || !dense_nhwc(p.xm) || !dense_nhwc(p.ym) || (p.residual && !dense_nhwc(p.rm))) return;
  for (Map* m : {&p.xm, &p.ym, &p.rm}) m->w *= m->n * m->h, m->n = m->h = 1;
}

Conv2dPlan plan_conv2d(const Conv2dParams& p, Isa isa, int64_t threads) {
  if (p.algorithm == ConvAlgorithm::winograd) return plan_winograd(p, isa, threads);
  const ConvGeometry& g = p.g;
  Conv2dPlan plan{};
  plan.lanes = lanes_of(p.dtype, isa);
  const bool grouped = p.algorithm == ConvAlgorithm::lane_grouped;
  const bool padded = reads_padding(g, p.xm, p.ym);
  // The grouped kernel leaves out the taps behind a border of zeros: a copy would cost it as much as its arithmetic.
  plan.staged = needs_conversion(p.dtype) || g.zh > 1 || g.zw > 1 || p.xm.sc != 1 ||
                (padded && (!grouped || g.padding != Padding::zeros));
  const int64_t channels = grouped ? g.groups * g.group_in : terms(g, p.algorithm);
  const int64_t images = p.ym.n * (grouped ? 1 : g.groups);
  plan.panels = ceil_div(grouped ? g.groups * g.group_out : g.group_out, plan.lanes);
  BlockShape block = block_shape(g, p.ym, channels, stage_elements(isa));

  // Share the work: first by output channels, since each thread then streams only its part of the weights, unless these
  // are few; then by pixels, of which a block keeps at least kLeastPixels.
  const int64_t wanted = threads > 1 ? threads * kTasksPerThread : 1;
  const auto blocks = [&] { return images * ceil_div(p.ym.h, block.rows) * ceil_div(p.ym.w, block.cols); };
  plan.panels_per_task = plan.panels;
  const int64_t weights = plan.panels * plan.lanes * g.kh * g.kw * channels;
  const bool few_weights = weights <= kFewWeights && images * p.ym.h * p.ym.w >= wanted * kLeastPixels;
  if (!grouped && !few_weights && blocks() < wanted) {
    const int64_t parts = std::min(ceil_div(plan.panels, kPanelsAtOnce), ceil_div(wanted, blocks()));
    plan.panels_per_task = ceil_div(ceil_div(plan.panels, parts), kPanelsAtOnce) * kPanelsAtOnce;
  }
  plan.panel_tasks = ceil_div(plan.panels, plan.panels_per_task);
  if (const int64_t more = ceil_div(wanted, blocks() * plan.panel_tasks); more > 1) {
    if (p.ym.h > 1)
      block.rows = std::max({int64_t{1}, ceil_div(kLeastPixels, block.cols), block.rows / more});
    else
      block.cols = std::min(block.cols, ceil_div(block.cols, more * kLeastPixels) * kLeastPixels);
  }
  plan.bands = ceil_div(p.ym.h, block.rows), plan.rows = ceil_div(p.ym.h, plan.bands);
  plan.strips = ceil_div(p.ym.w, block.cols), plan.cols = block.cols;
  plan.tasks = images * plan.strips * plan.bands * plan.panel_tasks;
  plan.scratch = plan.scratch_stage = plan.staged ? in_rows(g, plan.rows) * in_cols(g, plan.cols) * channels : 0;
  return plan;
}

Conv2dWeightGradPlan plan_conv2d_weight_grad(const Conv2dWeightGradParams& p, Isa isa) {
  const ConvGeometry& g = p.g;
  Conv2dWeightGradPlan plan{};
  plan.algorithm = strict_conv2d(g, p.dtype, isa);
  plan.lanes = lanes_of(p.dtype, isa);
  const bool grouped = plan.algorithm == ConvAlgorithm::lane_grouped;
  plan.stage_x = needs_conversion(p.dtype) || p.xm.sc != 1 || reads_padding(g, p.xm, p.gm);
  plan.stage_grad = needs_conversion(p.dtype) || p.gm.sc != 1;
  const int64_t channels = grouped ? g.groups * g.group_in : g.group_in;
  const int64_t outputs = grouped ? g.groups * g.group_out : g.group_out;
  plan.panels = ceil_div(outputs, plan.lanes);
  const bool side_by_side = g.kw == 1 || (g.dw == 1 && (plan.stage_x || g.groups == 1));
  plan.tap_cols = side_by_side ? 1 : g.kw;
  plan.weights = (side_by_side ? g.kw : 1) * g.group_in;
  BlockShape block = block_shape(g, p.gm, channels, kStageElements);
  const int64_t tile = isa == Isa::avx512 ? 14 : 6;
  plan.images = 1;
  if (!grouped) {
    const int64_t pixels = std::clamp(kGradElements / (plan.panels * plan.lanes), kLeastPixels, kMostGradPixels);
    block.cols = std::min(block.cols, pixels);
    block.rows = std::clamp<int64_t>(pixels / block.cols, 1, block.rows);
    if (block.rows == p.gm.h && block.cols == p.gm.w)
      plan.images = std::clamp<int64_t>(pixels / (block.rows * block.cols), 1, p.gm.n);
  }
  plan.rows = ceil_div(p.gm.h, ceil_div(p.gm.h, block.rows)), plan.cols = block.cols;
  plan.units = grouped ? plan.panels * g.kh : g.groups * g.kh * plan.tap_cols * ceil_div(plan.weights, tile);
  const auto whole_lines = [](int64_t elements) { return ceil_div(elements, 16) * 16; };
  const int64_t inputs = plan.images * in_rows(g, plan.rows) * in_cols(g, plan.cols) * channels;
  const int64_t pixels = plan.images * plan.rows * plan.cols;
  plan.scratch = plan.stage_x ? whole_lines(inputs) : 0;
  plan.scratch_grad = plan.stage_grad ? whole_lines(pixels * outputs) : 0;
  plan.scratch_panels = grouped ? 0 : pixels * (tile + plan.panels * plan.lanes);
  return plan;
}

WinogradGradPlan plan_winograd_grad(const Conv2dWeightGradParams& p, Isa isa, int64_t threads) {
  const ConvGeometry& g = p.g;
  WinogradGradPlan plan{};
  plan.lanes = lanes_of(p.dtype, isa);
  plan.panels = ceil_div(g.group_out, plan.lanes);
  plan.grad_step = winograd_step(g.group_out, plan.lanes);
  plan.stage_x = needs_conversion(p.dtype) || p.xm.sc != 1;
  plan.stage_grad = needs_conversion(p.dtype) || p.gm.sc != 1;
  // Each chunk reads and writes all sums once and each tile its transforms: as many tiles as make the first the smaller
  // part, as long as the transforms stay in L3.
  const int64_t channels = g.group_in + g.group_out, twice_mean = 2 * g.group_in * g.group_out / channels;
  const int64_t most = std::clamp(kChunkElements / (kWinogradPoints * channels), kLeastChunk, twice_mean + kLeastChunk);
  const int64_t down = p.gm.n * ceil_div(p.gm.h, kWinogradOut), across = ceil_div(p.gm.w, kWinogradOut);
  plan.cols = std::min(across, most), plan.strips = ceil_div(across, plan.cols);
  plan.rows = std::clamp<int64_t>(most / plan.cols, 1, down);
  plan.bands = ceil_div(down, plan.rows), plan.rows = ceil_div(down, plan.bands);
  const int64_t band = kWinogradPoints * plan.rows * plan.cols * plan.strips * plan.grad_step;
  plan.bands_at_once = std::clamp<int64_t>(kGradBufferElements / band, 1, plan.bands);
  plan.grads = plan.bands_at_once * band;
  // Channels in pieces of a register tile; panels are parted only where those are too few for the threads.
  plan.pieces = ceil_div(g.group_in, isa == Isa::avx512 ? 14 : 6);
  plan.parts = std::min(ceil_div(threads, plan.pieces), ceil_div(plan.panels, int64_t{2}));
  const auto copy = [&](bool staged, int64_t size, int64_t c) {
    return (staged ? (plan.cols - 1) * kWinogradOut + size : size) * size * c;
  };
  const int64_t stage = std::max(copy(plan.stage_x, 6, g.group_in), copy(plan.stage_grad, 4, g.group_out));
  plan.scratch_stage = ceil_div(stage, 16) * 16;
  plan.scratch_inputs = kWinogradPoints * plan.rows * plan.cols * winograd_step(g.group_in, plan.lanes);
  return plan;
}

}  // namespace fastcnn
