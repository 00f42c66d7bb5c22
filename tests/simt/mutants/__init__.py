"""csrc/cuda with one fault planted in it: a change of the text of a copy, compiled as the ground compiles the rest.

`python -m tests.simt.mutants library kernel` runs one, for the sanitizers.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.simt.ground import ROOT, Ground, aligned

# Lines for the reports, and little else: a fault is compiled more slowly than it is run.
COMPILE = ["g++", "-std=c++17", "-O0", "-g1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]


@dataclass(frozen=True)
class Mutant:
    file: str  # of csrc/cuda
    right: str
    wrong: str
    kernel: str = "conv2d_mma"  # the host entry, and the file that it stands in


# One of each kind of fault that a kernel for a GPU may have.
MUTANTS = {
    "missing barrier": Mutant(
        "conv2d_mma.cu", "cp_async_wait<kStages - 2>();\n    sync_block();", "cp_async_wait<kStages - 2>();"
    ),
    "wrong wait count": Mutant("conv2d_mma.cu", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>"),
    "swapped fragment registers": Mutant(
        "mma_tile.cuh",
        "{b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]}",
        "{b[n / 2][n % 2 * 2 + 1], b[n / 2][n % 2 * 2]}",
    ),
    "off-by-one halo": Mutant(
        "conv2d_grouped.cu", "uint32_t(h) < uint32_t(c.xm.h)", "uint32_t(h) <= uint32_t(c.xm.h)", "conv2d_grouped"
    ),
    "global access out of bounds": Mutant("conv2d_mma_copies.cuh", "exists[u] = o < outputs", "exists[u] = true"),
    "shared access out of bounds": Mutant(
        "conv2d_mma.cu",
        "sizeof(typename S::Stage) * S::kStages, stream",
        "sizeof(typename S::Stage) * S::kStages - 16, stream",
    ),
    "misaligned 16-byte copy": Mutant(
        "conv2d_mma_copies.cuh",
        "windows[u].x += at.group * p.conv.g.group_in",
        "windows[u].x += at.group * p.conv.g.group_in + 4",
    ),
    "missing mask": Mutant("conv2d_mma_epilogue.cuh", "if (pixel >= p.pixels) continue;", ""),
    "divergent barrier": Mutant(
        "conv2d_mma_epilogue.cuh",
        "    sync_block();\n#pragma unroll\n    for (int n = 0; n < S::kWarpN / 8; ++n)\n      store_shared",
        "    if (threadIdx.x < 64) sync_block();\n"
        "#pragma unroll\n    for (int n = 0; n < S::kWarpN / 8; ++n)\n      store_shared",
    ),
    "race between blocks": Mutant("conv2d_mma.cu", "{int(row) * S::kM,", "{int(row) * (S::kM / 2),"),
    "uninitialised shared read": Mutant(
        "conv2d_grouped.cu", "e < taps * t.chunks", "e < (taps - 1) * t.chunks", "conv2d_grouped"
    ),
    "wrong stride": Mutant("conv2d_taps.cuh", "oh * c.g.sh - c.g.ph", "oh * c.g.sw - c.g.ph"),
}


def planted(mutant: Mutant | None, folder: Path) -> Path:
    """A copy of csrc with the fault."""
    copy = folder / "csrc"
    shutil.copytree(ROOT / "csrc", copy)
    if mutant:
        path = copy / "cuda" / mutant.file
        text = path.read_text()
        assert mutant.right in text, f"{mutant.file} has no {mutant.right!r} any more: plant the fault elsewhere"
        path.write_text(text.replace(mutant.right, mutant.wrong))
    return copy


def machinery(folder: Path, *flags: str) -> list[str]:
    """The ground's own objects, which all mutants share."""
    objects = []
    for source in sorted((ROOT / "tests/simt").glob("*.cpp")):
        objects.append(str(folder / f"{source.stem}.o"))
        own = [*COMPILE, *flags, f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/simt'}"]
        subprocess.run([*own, "-c", str(source), "-o", objects[-1]], check=True)
    return objects


def build(sources: Path, kernel: str, objects: list[str], *flags: str) -> Path:
    """The library of one kernel of this copy of csrc."""
    out = sources.parent / f"lib{kernel}.so"
    files = [str(ROOT / "tests/simt/mutants/convolve.cpp"), str(sources / "cuda" / f"{kernel}.cu")]
    own = [f"-I{sources}", f"-I{ROOT / 'tests/simt'}", f"-DKERNEL={kernel}"]
    subprocess.run([*COMPILE, "-shared", *flags, *own, *objects, "-x", "c++", *files, "-o", str(out)], check=True)
    return out


@dataclass(frozen=True)
class Case:
    """A float16 convolution of small integers, which every order of addition sums exactly."""

    x: tuple[int, int, int, int]  # n, h, w, c
    weight: tuple[int, int, int, int]  # o, kh, kw, channels of a group
    stride: tuple[int, int]
    padding: tuple[int, int]

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        operands = aligned(self.x, np.float16), aligned(self.weight, np.float16)
        for operand in operands:
            operand[:] = rng.integers(-2, 3, operand.shape)
        return operands

    @property
    def y(self) -> tuple[int, int, int, int]:
        sizes = zip(self.x[1:3], self.weight[1:3], self.stride, self.padding)
        return (self.x[0], *((size + 2 * p - k) // s + 1 for size, k, s, p in sizes), self.weight[0])


# More than one block of rows and of columns of both kernels, the last ones not full; another stride along each axis.
CASES = {
    "conv2d_mma": Case((3, 9, 16, 24), (72, 3, 3, 24), (2, 1), (1, 1)),
    "conv2d_grouped": Case((2, 9, 7, 16), (16, 3, 3, 1), (1, 1), (1, 1)),
}


def convolved(simt: Ground, kernel: str) -> np.ndarray:
    case = CASES[kernel]
    (x, weight), y = case.operands(), aligned(case.y, np.float16)
    y[:] = np.nan
    groups = case.x[3] // case.weight[3]
    sizes = np.array([*case.x, *case.y[1:], *case.weight[1:3], *case.stride, *case.padding, groups], np.int64)
    simt.convolve(x, weight, y, sizes)
    return y


def expected(kernel: str) -> np.ndarray:
    case = CASES[kernel]
    (x, weight), y = case.operands(), np.zeros(case.y)
    (sh, sw), (ph, pw) = case.stride, case.padding
    _, oh, ow, outputs = case.y
    padded = np.pad(x.astype(np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    per_group = case.weight[3]
    for o in range(outputs):
        first = o // (outputs * per_group // case.x[3]) * per_group
        for i in range(case.weight[1]):
            for j in range(case.weight[2]):
                taps = padded[:, i : i + oh * sh : sh, j : j + ow * sw : sw, first : first + per_group]
                y[..., o] += taps[:, :oh, :ow] @ weight[o, i, j].astype(np.float64)
    return y
