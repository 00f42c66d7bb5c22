// Sparse convolution's arguments, checked: what the CPU's and the CUDA op share.
#pragma once
#include "ops/sparse_conv2d.h"
#include "ops/tensor.h"

namespace fastcnn {

inline SparseConv2dParams sparse_geometry(const char* op, const Ints& x, const Tensor& like, const Ints& counts,
                                          const Ints& indices, const Ints& kernel, const Ints& stride,
                                          const Ints& padding) {
  FASTCNN_CHECK(x.size() == 4, op, ": expected 4D input (N, C, H, W), but got ", x.size(), "D");
  const Pair k = pair(op, "kernel_size", kernel, 1), s = pair(op, "stride", stride, 1),
             pad = pair(op, "padding", padding, 0);
  SparseConv2dParams p{};
  p.dtype = dtype_of(op, like);
  p.counts = counts.data(), p.indices = indices.data(), p.links = indices.size();
  int64_t links = 0;
  for (const int64_t c : counts) {
    FASTCNN_CHECK(c >= 0 && c <= p.links - links, op, ": expected counts to sum to the number of indices (", p.links,
                  ")");
    links += c;
  }
  FASTCNN_CHECK(links == p.links, op, ": expected counts to sum to the number of indices (", p.links, "), but got ",
                links);
  for (const int64_t i : indices)
    FASTCNN_CHECK(i >= 0 && i < x[1], op, ": expected table to name input maps 0 to ", x[1] - 1, ", but got ", i);
  p.kh = k.h, p.kw = k.w, p.sh = s.h, p.sw = s.w, p.ph = pad.h, p.pw = pad.w;
  const int64_t h = x[2] + 2 * pad.h, w = x[3] + 2 * pad.w;
  FASTCNN_CHECK(h >= k.h && w >= k.w, op, ": Calculated padded input size per channel: (", h, " x ", w,
                "). Kernel size: (", k.h, " x ", k.w, "). Kernel size can't be greater than actual input size");
  p.ym = {x[0], int64_t(counts.size()), (h - k.h) / s.h + 1, (w - k.w) / s.w + 1, 0, 0, 0, 0};
  p.phases_h = std::min(s.h, k.h), p.phases_w = std::min(s.w, k.w);
  p.rows = (h + s.h - 1) / s.h, p.pitch = (w + s.w - 1) / s.w;
  check_numel(op, {std::max<int64_t>(x[1], 1), p.phases_h * p.phases_w, p.rows, p.pitch});
  check_numel(op, {std::max<int64_t>(p.ym.n, 1), std::max<int64_t>(p.ym.c, 1), p.rows + p.kh, p.pitch + p.kw});
  return p;
}

inline void check_sparse_weight(const char* op, const Tensor& like, const Tensor& w, const SparseConv2dParams& p) {
  check_same_dtype(op, "weight", like, w);
  FASTCNN_CHECK(w.dim() == 3 && w.size(0) == p.links, op, ": expected weight of size [", p.links,
                ", kernel height, kernel width], one kernel a link of table, but got weight of size ", str(w));
}

inline void check_sparse_grad(const char* op, const Tensor& g, const SparseConv2dParams& p) {
  FASTCNN_CHECK(
      g.dim() == 4 && g.size(0) == p.ym.n && g.size(1) == p.ym.c && g.size(2) == p.ym.h && g.size(3) == p.ym.w, op,
      ": expected grad of size [", p.ym.n, ", ", p.ym.c, ", ", p.ym.h, ", ", p.ym.w, "], but got grad of size ",
      str(g));
}

inline Ints sparse_kernel(const char* op, const Tensor& w) {
  FASTCNN_CHECK(w.dim() == 3, op, ": expected 3D weight (links, kernel height, kernel width), but got weight of size ",
                str(w));
  return {w.size(1), w.size(2)};
}

inline Tensor sparse_bias(const char* op, const Tensor& like, const Tensor& bias, const SparseConv2dParams& p) {
  check_same_dtype(op, "bias", like, bias);
  FASTCNN_CHECK(bias.dim() == 1 && bias.size(0) == p.ym.c, op, ": expected bias of size [", p.ym.c,
                "], but got bias of size ", str(bias));
  return made_dense(bias);
}

}  // namespace fastcnn
