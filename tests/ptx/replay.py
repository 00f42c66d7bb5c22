"""Repeats the launches of a CUDA op, recorded on the simt library, from nvcc's PTX of the same source."""

import ctypes
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from tests.ptx import Memory, Module, compile_cuda
from tests.simt import library

ROOT = Path(__file__).parents[2]
WORKSPACE = 1 << 24  # bytes for memory that an op allocates between its launches: its real size is not known here
KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(")

replayed: set[str] = set()  # the kernels of which this session has run one instantiation to its end


class RecordedLaunch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p), ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64), ("arguments", ctypes.c_uint64),
    ]  # fmt: skip


@dataclass(frozen=True)
class Launch:
    kernel: str  # name and template arguments
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: list[bytes]


def name_of(text: str) -> str:
    """A kernel's name with its template arguments, as g++ prints it in a signature or c++filt makes it."""
    text = text.replace("{anonymous}", "(anonymous namespace)")
    match = re.search(r"kKernel = (.*?); Args", text)
    if match:
        text = match[1]
    text = text.split("(anonymous namespace)::", 1)[1]
    depth, end = 0, len(text)
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    return re.sub(r"\(anonymous namespace\)::|\s", "", text[:end])


def record(call: Callable[[], object]) -> tuple[object, list[Launch]]:
    """What call() returns, and the kernels that it launched."""
    ground = ctypes.CDLL(str(library.build()))
    ground.fastcnn_simt_recorded.restype = ctypes.c_uint64
    ground.fastcnn_simt_launch.restype = RecordedLaunch
    ground.fastcnn_simt_launch.argtypes = [ctypes.c_uint64]
    ground.fastcnn_simt_argument.restype = ctypes.c_void_p
    ground.fastcnn_simt_argument.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)]
    ground.fastcnn_simt_record(1)
    try:
        result = call()
    finally:
        ground.fastcnn_simt_record(0)
    launches = []
    for i in range(ground.fastcnn_simt_recorded()):
        launch, size = ground.fastcnn_simt_launch(i), ctypes.c_uint64()
        arguments = []
        for argument in range(launch.arguments):
            data = ground.fastcnn_simt_argument(i, argument, ctypes.byref(size))
            arguments.append(ctypes.string_at(data, size.value))
        name = name_of(launch.kernel.decode())
        launches.append(Launch(name, tuple(launch.grid), tuple(launch.block), launch.shared, arguments))
    return result, launches


@cache
def kernels() -> dict[str, list[str]]:
    """The .cu files of csrc/cuda that hold each kernel, or include the header that does."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        text = path.read_text()
        included = re.findall(r'#include "(cuda/\w+\.cuh)"', text)
        for part in (text, *((ROOT / "csrc" / name).read_text() for name in included)):
            assert part.count("__global__") == len(KERNEL.findall(part)), f"{path.name}: a kernel that KERNEL misses"
            for name in KERNEL.findall(part):
                found.setdefault(name, []).append(path.stem)
    return found


def compiled_kernel(name: str) -> tuple[Module, str]:
    """The module that has this instantiation, and its mangled name there."""
    for stem in kernels()[name.partition("<")[0]]:
        compiled, names = module(stem)
        if name in names:
            return compiled, names[name]
    raise KeyError(f"nvcc compiled no {name}")


def mapped() -> list[tuple[int, int]]:
    """The address ranges of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [(int(first, 16), int(end, 16)) for first, end in (line.split()[0].split("-") for line in lines)]


@cache
def module(stem: str, sources: Path = ROOT / "csrc") -> tuple[Module, dict[str, str]]:
    """<sources>/cuda/<stem>.cu compiled, and the mangled names of its kernels."""
    compiled = Module(compile_cuda(sources / "cuda" / f"{stem}.cu", include=[sources]))
    mangled = [name for name, function in compiled.program.functions.items() if function.kernel]
    filtered = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    return compiled, {name_of(line): name for line, name in zip(filtered.splitlines(), mangled, strict=True)}


def replay(launches: list[Launch], inputs: list[torch.Tensor], outputs: list[torch.Tensor], find=compiled_kernel):
    """The outputs that the compiled kernels write, which start as 0xff everywhere. Tensors are dense."""
    memory, mappings = Memory(), mapped()
    ranges = []  # of host addresses: first, end, address in memory
    for tensor, is_output in [*((t, False) for t in inputs), *((t, True) for t in outputs)]:
        storage = torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.uint8)
        array = (torch.full_like(storage, 0xFF) if is_output else storage).numpy()
        ranges.append((tensor.data_ptr(), tensor.data_ptr() + array.nbytes, memory.add(array)))

    def moved(word: int) -> int:
        for first, end, address in ranges:
            if first <= word < end:
                return address + word - first
        if not any(first <= word < end for first, end in mappings):
            return word  # no pointer
        first = word & ~0xFF
        ranges.append((first, first + WORKSPACE, memory.add(torch.full((WORKSPACE,), 0xFF, dtype=torch.uint8).numpy())))
        return ranges[-1][2] + word - first

    for launch in launches:
        arguments = []
        for data in launch.arguments:
            whole = len(data) // 8 * 8
            words = [moved(word) for word in struct.unpack(f"<{whole // 8}Q", data[:whole])]
            arguments.append(struct.pack(f"<{len(words)}Q", *words) + data[whole:])
        compiled, name = find(launch.kernel)
        compiled.launch(name, launch.grid, launch.block, arguments, memory, launch.shared)
        replayed.add(launch.kernel.partition("<")[0])
    results = []
    for (_, _, address), tensor in zip(ranges[len(inputs) : len(inputs) + len(outputs)], outputs, strict=True):
        flat = torch.from_numpy(memory.read(address)).view(tensor.dtype)
        results.append(torch.as_strided(flat, tensor.shape, tensor.stride()))
    return results
