// How a block copies a halo tile: the part of x that its outputs' windows cover.
#pragma once
#include "cuda/device.cuh"
#include "cuda/divisor.h"

namespace fastcnn::cuda {

// A position in a tile, and the step to the next one of the same thread.
struct TileWalk {
  int row, column, step_rows, step_columns;

  __device__ __forceinline__ TileWalk(int first, int step, const Divisor& by_width) {
    uint32_t rest;
    row = int(by_width.divide(first, rest)), column = int(rest);
    step_rows = int(by_width.divide(step, rest)), step_columns = int(rest);
  }
  __device__ __forceinline__ void advance(int width) {
    row += step_rows, column += step_columns;
    if (column >= width) column -= width, ++row;
  }
};

}  // namespace fastcnn::cuda
