"""Compiles CUDA and Triton kernels to PTX on a machine without a GPU."""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.ptx.memory import Memory
from tests.ptx.module import Module

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compile_cuda(source_path, arch: int = 80, include: Sequence = (), defines: Sequence[str] = ()) -> str:
    """nvcc's PTX of a .cu file; the same file is compiled once a session."""
    path = Path(source_path).resolve()
    return compiled(path, path.stat().st_mtime_ns, arch, tuple(map(str, include)), tuple(defines))


@functools.cache
def compiled(path: Path, modified: int, arch: int, include: tuple[str, ...], defines: tuple[str, ...]) -> str:
    if NVCC is None:
        raise FileNotFoundError("no nvcc")
    options = ["-ptx", "-std=c++17", f"-arch=compute_{arch}", *(f"-I{each}" for each in include)]
    command = [NVCC, *options, *(f"-D{each}" for each in defines), str(path), "-o", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc cannot compile {path.name}:\n{done.stderr}")
    return done.stdout


class TritonPtx(str):
    """A Triton kernel's PTX, with what its launch needs."""

    name: str
    threads: int
    dynamic_shared: int

    def launch(self, grid: Sequence[int], args: Sequence, memory: Memory) -> int:
        """Launches with null for the scratch buffers that Triton appends to the parameters."""
        module = Module(self)
        missing = len(module.program.functions[self.name].params) - len(args)
        scratch = [0] * (missing if missing in (0, 2) else 0)
        return module.launch(self.name, grid, (self.threads,), [*args, *scratch], memory, self.dynamic_shared)


def compile_triton(fn, signature, constexprs, attrs=None, num_warps=4, num_stages=2, arch=80) -> TritonPtx:
    """The arguments are those of triton.compiler.ASTSource and its options.

    attrs are promises, {(0,): [["tt.divisibility", 16]]} that the first argument is a multiple of 16: a false one
    makes Triton drop masks.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    full = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    source = ASTSource(fn, signature=full, constexprs=constexprs, attrs=attrs or {})
    options = {"num_warps": num_warps, "num_stages": num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = TritonPtx(kernel.asm["ptx"])
    ptx.name, ptx.threads, ptx.dynamic_shared = kernel.metadata.name, 32 * num_warps, kernel.metadata.shared
    return ptx
