#include "cuda/map_tile.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sparse_conv2d.cuh"
#include "cuda/upload.cuh"
#include "cuda/windows.cuh"

namespace fastcnn::cuda {
namespace {

// Strides of a map; positions of one axis need no 64 bits.
struct View {
  int64_t n, c, h, w;
  int height, width;
  __host__ __device__ int64_t at(int64_t image, int64_t channel, int row, int column) const {
    return image * n + channel * c + row * h + column * w;
  }
};

struct Params {
  const void *x, *w, *b, *g;
  void *out, *dw, *db, *partial;
  const int32_t* table;
  View xv, yv;
  int links, outputs, kh, kw, sh, sw, ph, pw;
  Divisor by_sh, by_sw, by_x_channels, by_y_channels;
};

// The image and the channel of a block's element.
__device__ __forceinline__ void image_of(const MapBlock<1>& block, const Divisor& channels, int64_t& n, int64_t& c) {
  uint32_t channel;
  const uint32_t image = channels.divide(uint32_t(block.plane), channel);
  if (block.t.channels_last)
    n = block.plane;
  else
    n = image, c = channel;
}

// A thread an output. table: where each output's links begin, and one behind the last; then the links' inputs.
template <class T>
__global__ void __launch_bounds__(kSparseThreads) sparse_conv2d_kernel(Params p, MapTile t) {
  using A = Acc<T>;
  const MapBlock<1> block(t);
  const T *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.w);
  for (int e = threadIdx.x; e < t.size(); e += kSparseThreads) {
    int64_t n, o;
    int row, column;
    if (!block.at(e, o, row, column)) continue;
    image_of(block, p.by_y_channels, n, o);
    const int h0 = row * p.sh - p.ph, w0 = column * p.sw - p.pw;
    A sum = p.b ? to_acc(load(static_cast<const T*>(p.b) + o)) : A(0);
    const int end = load(p.table + o + 1);
    for (int link = load(p.table + o); link < end; ++link) {
      const int c = load(p.table + p.outputs + 1 + link);
      for (int i = h0 < 0 ? -h0 : 0; i < p.kh && h0 + i < p.xv.height; ++i)
        for (int j = w0 < 0 ? -w0 : 0; j < p.kw && w0 + j < p.xv.width; ++j)
          sum +=
              to_acc(load(w + (int64_t(link) * p.kh + i) * p.kw + j)) * to_acc(load(x + p.xv.at(n, c, h0 + i, w0 + j)));
    }
    store(static_cast<T*>(p.out) + p.yv.at(n, o, row, column), from_acc<T>(sum));
  }
}

// A thread an input. table: where each input's links begin, and one behind the last; then the links, then their
// outputs.
template <class T>
__global__ void __launch_bounds__(kSparseThreads, 4)
    sparse_conv2d_backward_input_kernel(Params p, MapTile t, int channels) {
  using A = Acc<T>;
  const MapBlock<1> block(t);
  const T *g = static_cast<const T*>(p.g), *w = static_cast<const T*>(p.w);
  for (int e = threadIdx.x; e < t.size(); e += kSparseThreads) {
    int64_t n, c;
    int h, v, top, bottom, left, right;
    if (!block.at(e, c, h, v)) continue;
    image_of(block, p.by_x_channels, n, c);
    covering(h, p.yv.height, p.kh, p.by_sh, p.ph, top, bottom);
    covering(v, p.yv.width, p.kw, p.by_sw, p.pw, left, right);
    A sum = 0;
    const int end = load(p.table + c + 1);
    for (int k = load(p.table + c); k < end; ++k) {
      const int link = load(p.table + channels + 1 + k), o = load(p.table + channels + 1 + p.links + k);
      for (int row = top; row < bottom; ++row) {
        const int i = h + p.ph - row * p.sh, j = v + p.pw - left * p.sw;
        const T *weight = w + (int64_t(link) * p.kh + i) * p.kw + j, *from = g + p.yv.at(n, o, row, left);
        for (int column = left; column < right; ++column, weight -= p.sw, from += p.yv.w)
          sum += to_acc(load(weight)) * to_acc(load(from));
      }
    }
    store(static_cast<T*>(p.out) + p.xv.at(n, c, h, v), from_acc<T>(sum));
  }
}

// The sums over output positions that make dw and db, cut into pieces.
struct Sums {
  int64_t count;  // links * kh * kw, then one for each output's bias
  int64_t weights;
  int positions, piece, pieces;
  Divisor by_pieces, by_taps, by_kw, by_height, by_width;

  explicit Sums(const SparseConv2dParams& p) {
    weights = p.links * p.kh * p.kw, count = weights + p.ym.c;
    const int64_t all = p.ym.n * p.ym.h * p.ym.w, least = ceil_div(all, kSparsePieces);
    const int64_t size = ceil_div(least > kSparsePositions ? least : kSparsePositions, kWarp) * kWarp;
    positions = int(all), piece = int(size), pieces = int(ceil_div(all, size));
    by_pieces = Divisor(pieces ? pieces : 1), by_taps = Divisor(p.kh * p.kw), by_kw = Divisor(p.kw);
    by_height = Divisor(p.ym.h), by_width = Divisor(p.ym.w);
  }
};

// A warp a sum and piece. table: the links' inputs, then their outputs.
template <class T>
__global__ void __launch_bounds__(kSparseThreads) sparse_conv2d_partial_kernel(Params p, Sums s) {
  using A = Acc<T>;
  const int lane = threadIdx.x % kWarp;
  uint32_t piece;
  const uint32_t number = s.by_pieces.divide((blockIdx.x * kSparseThreads + threadIdx.x) / kWarp, piece);
  if (number >= s.count) return;
  const bool weight = number < s.weights;
  uint32_t tap = 0, j = 0;
  const uint32_t link = weight ? s.by_taps.divide(number, tap) : 0;
  const int i = int(s.by_kw.divide(tap, j));
  const int64_t c = weight ? load(p.table + link) : 0, o = weight ? load(p.table + p.links + link) : number - s.weights;
  const T *x = static_cast<const T*>(p.x), *g = static_cast<const T*>(p.g);
  const int first = int(piece) * s.piece, end = s.positions - first < s.piece ? s.positions : first + s.piece;
  A sum = 0;
  for (int at = first + lane; at < end; at += kWarp) {
    uint32_t row, column;
    const int64_t n = s.by_height.divide(s.by_width.divide(at, column), row);
    const int h = int(row) * p.sh - p.ph + i, v = int(column) * p.sw - p.pw + int(j);
    const bool inside = !weight || (h >= 0 && h < p.xv.height && v >= 0 && v < p.xv.width);
    if (!inside) continue;
    const A gradient = to_acc(load(g + p.yv.at(n, o, int(row), int(column))));
    sum += weight ? gradient * to_acc(load(x + p.xv.at(n, c, h, v))) : gradient;
  }
  sum = sum_lanes(sum);
  if (lane == 0) store(static_cast<A*>(p.partial) + piece * s.count + number, sum);
}

template <class T>
__global__ void __launch_bounds__(kSparseThreads) sparse_conv2d_sum_kernel(Params p, Sums s) {
  using A = Acc<T>;
  const int64_t number = int64_t(blockIdx.x) * kSparseThreads + threadIdx.x;
  if (number >= s.count) return;
  A sum = 0;
#pragma unroll 4
  for (int piece = 0; piece < s.pieces; ++piece)
    sum += load(static_cast<const A*>(p.partial) + piece * s.count + number);
  T* to = number < s.weights ? static_cast<T*>(p.dw) + number : static_cast<T*>(p.db) + (number - s.weights);
  store(to, from_acc<T>(sum));
}

constexpr int64_t kMost = (int64_t{1} << 31) - 1;

const char* refused(const SparseConv2dParams& p) {
  if (p.xm.h + 2 * p.ph > kMost || p.xm.w + 2 * p.pw > kMost) return "an axis exceeds 2^31 positions";
  if (p.xm.c >= kMost || p.ym.c >= kMost || 2 * p.links + p.xm.c + p.ym.c >= kMost)
    return "there are more than 2^31 channels or links";
  return nullptr;
}

View view_of(const Map& m) { return {m.sn, m.sc, m.sh, m.sw, int(m.h), int(m.w)}; }

Params params_of(const SparseConv2dParams& p, const LinkTable& table) {
  Params k{};
  k.x = p.x, k.w = p.w, k.b = p.b, k.g = p.g, k.out = p.out, k.dw = p.dw, k.db = p.db, k.partial = p.partial;
  k.table = table.memory, k.xv = view_of(p.xm), k.yv = view_of(p.ym);
  k.links = int(p.links), k.outputs = int(p.ym.c);
  k.kh = int(p.kh), k.kw = int(p.kw), k.sh = int(p.sh), k.sw = int(p.sw), k.ph = int(p.ph), k.pw = int(p.pw);
  k.by_sh = Divisor(p.sh), k.by_sw = Divisor(p.sw);
  k.by_x_channels = Divisor(p.xm.c ? p.xm.c : 1), k.by_y_channels = Divisor(p.ym.c ? p.ym.c : 1);
  return k;
}

// f(element, grid, tile) over the map `m` that a kernel writes, the table in its place.
template <class F>
const char* over_map(const SparseConv2dParams& p, const Map& m, const LinkTable& table, void* stream, const F& f) {
  if (const char* error = refused(p)) return error;
  const MapTile tile(m.sc == 1 && m.c > 1, m.n, m.c, m.h, m.w, 1);
  if (tile.blocks > kMostBlocks) return "the tensor is too large for one grid";
  const char* error = upload(table.values, table.memory, stream);
  if (error) return error;
  switch_dtype(p.dtype, [&](auto element) {
    error = f(element, Launch{dim3(unsigned(tile.blocks)), dim3(kSparseThreads), 0, stream}, tile);
  });
  return error;
}

}  // namespace

std::vector<int32_t> links_by_output(const SparseConv2dParams& p) {
  std::vector<int32_t> table(1, 0);
  for (int64_t o = 0; o < p.ym.c; ++o) table.push_back(table.back() + int32_t(p.counts[o]));
  table.insert(table.end(), p.indices, p.indices + p.links);
  return table;
}

std::vector<int32_t> links_in_order(const SparseConv2dParams& p) {
  std::vector<int32_t> table(p.indices, p.indices + p.links);
  for (int64_t o = 0; o < p.ym.c; ++o) table.insert(table.end(), p.counts[o], int32_t(o));
  return table;
}

std::vector<int32_t> links_by_input(const SparseConv2dParams& p) {
  const std::vector<int32_t> order = links_in_order(p);
  std::vector<int32_t> table(p.xm.c + 1 + 2 * p.links, 0);
  int32_t* const begins = table.data();
  for (int64_t l = 0; l < p.links; ++l) ++begins[order[l] + 1];
  for (int64_t c = 0; c < p.xm.c; ++c) begins[c + 1] += begins[c];
  std::vector<int32_t> next(begins, begins + p.xm.c);
  int32_t* const links = begins + p.xm.c + 1;
  for (int64_t l = 0; l < p.links; ++l) {
    const int32_t at = next[order[l]]++;
    links[at] = int32_t(l), links[p.links + at] = order[p.links + l];
  }
  return table;
}

const char* sparse_conv2d(const SparseConv2dParams& p, const LinkTable& by_output, void* stream) {
  return over_map(p, p.ym, by_output, stream, [&](auto t, const Launch& l, const MapTile& tile) {
    return launch<sparse_conv2d_kernel<decltype(t)>>(l, params_of(p, by_output), tile);
  });
}

const char* sparse_conv2d_backward_input(const SparseConv2dParams& p, const LinkTable& by_input, void* stream) {
  return over_map(p, p.xm, by_input, stream, [&](auto t, const Launch& l, const MapTile& tile) {
    return launch<sparse_conv2d_backward_input_kernel<decltype(t)>>(l, params_of(p, by_input), tile, int(p.xm.c));
  });
}

int64_t sparse_conv2d_pieces(const SparseConv2dParams& p) { return Sums(p).pieces; }

const char* sparse_conv2d_backward_weight(const SparseConv2dParams& p, const LinkTable& in_order, void* stream) {
  if (const char* error = refused(p)) return error;
  const Sums s(p);
  if (p.ym.n * p.ym.h * p.ym.w > kMost - s.piece) return "the gradient has more than 2^31 positions";
  if (s.count * kSparsePieces > kMost - kSparseThreads) return "the weight is too large for one grid";
  const char* error = upload(in_order.values, in_order.memory, stream);
  if (error) return error;
  switch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const auto blocks = [](int64_t threads) { return dim3(unsigned(ceil_div(threads, kSparseThreads))); };
    const Launch partial{blocks(s.count * s.pieces * kWarp), dim3(kSparseThreads), 0, stream};
    error = launch<sparse_conv2d_partial_kernel<T>>(partial, params_of(p, in_order), s);
    const Launch sum{blocks(s.count), dim3(kSparseThreads), 0, stream};
    if (!error) error = launch<sparse_conv2d_sum_kernel<T>>(sum, params_of(p, in_order), s);
  });
  return error;
}

}  // namespace fastcnn::cuda
