#include "ops/avg_windows.h"

namespace fastcnn {
namespace {

bool covers_all(const AvgAxis& axis, int64_t in) {
  return axis.windows.size() == 1 && axis.windows[0].begin == 0 && axis.windows[0].end == in;
}

// Global pooling's plane is one row in memory: NHWC sums H*W rows of one column, NCHW one row of H*W columns.
// h, w: p's sizes of the map that the windows lie in.
void flatten_global(AvgPool2dParams& p, AvgAxis& rows, AvgAxis& columns, int64_t& h, int64_t& w) {
  p.global = covers_all(rows, h) && covers_all(columns, w);
  if (!p.global) return;
  AvgAxis& along = p.channels_last ? rows : columns;
  AvgAxis& across = p.channels_last ? columns : rows;
  const int64_t plane = h * w;
  along.windows = {{0, plane, 0}};
  across.windows = {{0, 1, 0}};
  along.s = across.s = 0;
  h = p.channels_last ? plane : 1, w = p.channels_last ? 1 : plane;
}

void run(AvgPool2dParams& p, const Windows& rows, const Windows& columns, const AvgAxis& regular) {
  p.rows = rows.data(), p.columns = columns.data();
  const int64_t pooled = p.backward ? p.w : p.ow, in = p.backward ? p.ow : p.w;
  if ((regular.s == 1 || regular.s == 2) && pooled > 1 && regular.k <= in)
    p.kw = regular.k, p.sw = regular.s, p.pw = regular.p;
  int64_t row_reads = 0;
  for (const Window& c : columns) {
    if (c.end - c.begin > p.longest) p.longest = c.end - c.begin;
    row_reads += 1 + c.end - c.begin;
  }
  p.channel_block = channel_block(p.n * p.oh, p.c);
  const int64_t work = row_reads * (p.channels_last ? p.channel_block : 1) * (1 + rows[0].end - rows[0].begin);
  parallel_for(p.tasks(), pool_grain(work), [&](int64_t begin, int64_t end) {
    auto* memory = static_cast<char*>(Scratch::get(p.scratch_bytes()));
    FASTCNN_CPU(avg_pool2d)(p, memory, begin, end);
  });
}

}  // namespace

Tensor avg_windows(const char* op, const Tensor& input, AvgAxis rows, AvgAxis columns) {
  const Tensor x = dense(input);
  const MemoryFormat format = format_of(x);
  const Ints size{x.size(0), x.size(1), int64_t(rows.windows.size()), int64_t(columns.windows.size())};
  check_numel(op, size);
  Tensor y = empty(size, x, format);
  if (!y.numel()) return y;
  AvgPool2dParams p{};
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr(), p.dtype = dtype_of(op, x);
  p.channels_last = format == MemoryFormat::ChannelsLast && x.size(1) > 1;
  p.n = size[0], p.c = size[1], p.h = x.size(2), p.w = x.size(3), p.oh = size[2], p.ow = size[3];
  flatten_global(p, rows, columns, p.h, p.w);
  p.row_scale = rows.divisors.data(), p.column_scale = columns.divisors.data();
  run(p, rows.windows, columns.windows, columns);
  return y;
}

Tensor avg_windows_backward(const char* op, const Tensor& grad, const Ints& size, bool channels_last, AvgAxis rows,
                            AvgAxis columns) {
  const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor g = dense(grad, format);
  check_numel(op, size);
  Tensor gx = empty(size, g, format);
  if (!gx.numel()) return gx;
  AvgPool2dParams p{};
  p.backward = true;
  p.x = g.const_data_ptr(), p.y = gx.mutable_data_ptr(), p.dtype = dtype_of(op, g);
  p.channels_last = channels_last && size[1] > 1;
  p.n = size[0], p.c = size[1], p.h = g.size(2), p.w = g.size(3), p.oh = size[2], p.ow = size[3];
  flatten_global(p, rows, columns, p.oh, p.ow);
  for (AvgAxis* axis : {&rows, &columns})
    for (double& d : axis->divisors) d = 1 / d;
  p.row_scale = rows.divisors.data(), p.column_scale = columns.divisors.data();
  run(p, transposed(rows.windows, p.oh), transposed(columns.windows, p.ow), columns);
  return gx;
}

}  // namespace fastcnn
