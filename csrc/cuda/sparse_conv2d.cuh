#pragma once
#include <vector>

#include "ops/sparse_conv2d.h"

namespace fastcnn::cuda {

// Dense tensors as SparseConv2dParams has them (phases and scratch are the CPU's); null, or why a kernel could not
// start. Each takes the link table in the form that its function gives, and memory for it on the device.
struct LinkTable {
  std::vector<int32_t> values;
  int32_t* memory;
};
std::vector<int32_t> links_by_output(const SparseConv2dParams& p);
std::vector<int32_t> links_by_input(const SparseConv2dParams& p);
std::vector<int32_t> links_in_order(const SparseConv2dParams& p);
const char* sparse_conv2d(const SparseConv2dParams& p, const LinkTable& by_output, void* stream);
const char* sparse_conv2d_backward_input(const SparseConv2dParams& p, const LinkTable& by_input, void* stream);
// p.partial: [sparse_conv2d_pieces(p)][links*kh*kw + ym.c] of the accumulator type.
int64_t sparse_conv2d_pieces(const SparseConv2dParams& p);
const char* sparse_conv2d_backward_weight(const SparseConv2dParams& p, const LinkTable& in_order, void* stream);

}  // namespace fastcnn::cuda
