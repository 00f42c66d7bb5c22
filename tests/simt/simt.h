// CUDA's execution model on the host: what csrc/cuda/launch.h starts kernels with where nvcc does not compile them.
// Link with all of tests/simt/*.cpp.
//
// Accesses through device.cuh are checked and counted one by one. Plain C++ accesses (`shared->x[i]`, `p[i]`) are seen
// by the sanitizers alone, besides the NaN of fresh shared memory and its margins; so is a race within a block.
#pragma once
#include <typeinfo>

#include "machine.h"
#include "recorder.h"
#include "trace.h"

namespace simt {

template <class Kernel>
const char* run(dim3 grid, dim3 block, size_t shared, const Kernel& kernel) {
  if (tracing()) return record({typeid(Kernel).name(), {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared});
  return machine.run(grid, block, shared, [](const void* k) { (*static_cast<const Kernel*>(k))(); }, &kernel);
}

// The block's shared memory, which must hold what the kernel lays there.
inline void* shared_memory(size_t needed) {
  if (machine.shared().bytes() < needed)
    machine.fail("kernel needs " + std::to_string(needed) + " bytes of shared memory, launched with " +
                 std::to_string(machine.shared().bytes()));
  return machine.shared().data();
}

inline Ranges& memory() { return machine.ranges(); }

}  // namespace simt
