"""Runs the PTX that nvcc and Triton emit on numpy arrays, and checks every access: kernels tested without a GPU.

    module = Module(compile_cuda("kernel.cu"))
    memory = Memory()
    x = memory.add(numpy_array)
    module.launch("kernel", grid=(4,), block=(256,), args=[x, 1000], memory=memory)
    memory.read(x)

It reports accesses out of bounds or misaligned, reads of shared memory that nobody wrote or whose cp.async is pending,
races on shared memory between barriers, races between blocks on global memory, and threads that wait for each other
in vain. What it does not know, it refuses. It knows no time, no bank conflicts, no races within a block on global
memory, and tensor cores' rounding only nearly.
"""

from tests.ptx.compile import NVCC, TritonPtx, compile_cuda, compile_triton
from tests.ptx.memory import Memory
from tests.ptx.module import Module
from tests.ptx.parse import PtxError

__all__ = ["NVCC", "Memory", "Module", "PtxError", "TritonPtx", "compile_cuda", "compile_triton"]
