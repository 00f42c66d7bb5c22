// Max pooling's arguments, checked, as the kernels' plain struct.
#pragma once
#include "ops/max_pool2d.h"
#include "ops/pool.h"

namespace fastcnn {

// Sizes and strides into `m`, all but pointers and layout.
inline void set_geometry(const char* op, MaxPool2dParams& m, const Ints& size, const PoolGeometry& g, bool ceil_mode) {
  const Pair out = pool_output(op, g, size[2], size[3], ceil_mode);
  FASTCNN_CHECK(g.k.h * g.k.w < int64_t{1} << 31, op, ": expected kernel_size with a product below 2^31, but got (",
                g.k.h, ", ", g.k.w, ")");
  m.n = size[0], m.c = size[1], m.h = size[2], m.w = size[3], m.oh = out.h, m.ow = out.w;
  m.kh = g.k.h, m.kw = g.k.w, m.sh = g.s.h, m.sw = g.s.w, m.ph = g.p.h, m.pw = g.p.w, m.dh = g.d.h, m.dw = g.d.w;
  m.wide_argmax = g.k.h * g.k.w > 256;
  check_numel(op, {m.n, m.c, m.oh, m.ow});
}

// NCHW kernels line a row up with its padding. Where that is much longer than the row (a window far larger than the
// input, a dilation in the millions) the NHWC kernels, which have no padding, serve both layouts.
inline MemoryFormat kernel_format(const MaxPool2dParams& m, MemoryFormat format) {
  const int64_t padded = m.row().size() + m.kw;
  return padded > 64 * (m.w + 64) ? MemoryFormat::ChannelsLast : format;
}

inline Windows row_windows(const MaxPool2dParams& m) { return pool_windows(m.h, m.oh, m.kh, m.sh, m.ph, m.dh); }
inline Windows column_windows(const MaxPool2dParams& m) { return pool_windows(m.w, m.ow, m.kw, m.sw, m.pw, m.dw); }

inline void set_layout(MaxPool2dParams& m, MemoryFormat format, int64_t rows) {
  m.channels_last = format == MemoryFormat::ChannelsLast;
  m.channel_block = channel_block(rows, m.c);
}

// The largest value, negative ones as very large: without branches, for the compiler to vectorise.
template <class Unsigned>
Unsigned largest(const void* data, int64_t count) {
  const Unsigned* v = static_cast<const Unsigned*>(data);
  Unsigned most = 0;
  for (int64_t i = 0; i < count; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// argmax, dense, as forward made it for an input of these sizes: kernels follow it without looking.
inline void check_argmax(const char* op, const MaxPool2dParams& m, const Tensor& argmax) {
  const ScalarType type = m.wide_argmax ? ScalarType::Int : ScalarType::Byte;
  check_4d(op, "argmax", argmax);
  FASTCNN_CHECK(argmax.scalar_type() == type, op, ": expected argmax of dtype ", m.wide_argmax ? "int32" : "uint8");
  FASTCNN_CHECK(argmax.size(0) == m.n && argmax.size(1) == m.c && argmax.size(2) == m.oh && argmax.size(3) == m.ow, op,
                ": expected argmax of size [", m.n, ", ", m.c, ", ", m.oh, ", ", m.ow, "], but got ", str(argmax));
}

inline void check_pool_grad(const char* op, const Tensor& grad, const Tensor& argmax) {
  check_4d(op, "grad", grad);
  FASTCNN_CHECK(str(grad) == str(argmax), op, ": expected grad of argmax's size ", str(argmax), ", but got ",
                str(grad));
}

inline void check_positions(const char* op, const MaxPool2dParams& m, const Tensor& argmax) {
  const int64_t count = argmax.numel();
  const int64_t most = m.wide_argmax ? largest<uint32_t>(argmax.const_data_ptr(), count)
                                     : largest<uint8_t>(argmax.const_data_ptr(), count);
  FASTCNN_CHECK(count == 0 || most < m.kh * m.kw, op, ": expected argmax below ", m.kh * m.kw, ", but it holds ", most);
}

}  // namespace fastcnn
