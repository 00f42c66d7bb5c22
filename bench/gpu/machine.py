"""The machine that a GPU run is made on: its name, and what it can do, measured."""

import contextlib
import ctypes
import functools
import platform
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.static.toolchain import find
from fastcnn._timing import cpu_block, cuda_block

from .arch import arch_list
from .results import Budget, run

ROOT = Path(__file__).resolve().parents[2]
_THREADS, _WARPS, _SUMS = 256, 8, 8  # of mma_rate.cu's blocks


@dataclass(frozen=True)
class Ground:
    """Where kernels run: on the GPU or, dry, on the CPU by tests/simt."""

    device: torch.device
    dry: bool

    @property
    def block(self) -> Callable[[Callable[[], object], int], float]:
        return cpu_block if self.dry else cuda_block

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def name(self) -> str:
        return f"no GPU: simt on {platform.machine()}" if self.dry else torch.cuda.get_device_name()


def describe(ground: Ground) -> dict:
    """What the numbers depend on beside the code."""
    found = {
        "gpu": ground.name(),
        "dry_run": ground.dry,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if not ground.dry:
        p = torch.cuda.get_device_properties(0)
        found |= {"processors": p.multi_processor_count, "memory": p.total_memory, "capability": f"{p.major}.{p.minor}"}
    if smi := shutil.which("nvidia-smi"):
        query = "driver_version,clocks.max.sm,clocks.max.memory,power.limit"
        said = run([smi, f"--query-gpu={query}", "--format=csv,noheader"], 20)
        found["nvidia_smi"] = dict(zip(query.split(","), said.output.strip().split(", ")))
    return found


def median_seconds(ground: Ground, call: Callable[[], object], calls: int = 1, rounds: int = 9) -> float:
    call()
    return statistics.median(ground.block(call, calls) / calls for _ in range(rounds))


def copy_rate(ground: Ground, moved: int) -> float:
    """Bytes a second of a copy that reads half of `moved` bytes and writes the other half."""
    source, target = torch.zeros(2, max(1, moved // 8), device=ground.device)
    return 8 * source.numel() / median_seconds(ground, lambda: target.copy_(source), max(1, min(100, 2**28 // moved)))


def product_rate(ground: Ground, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of torch's product of square matrices (cuBLAS), with TF32 as torch is set."""
    a, b = torch.randn(2, size, size, device=ground.device).to(dtype)
    return 2 * size**3 / median_seconds(ground, lambda: a @ b, 3)


class MmaRate:
    """mma_rate.cu, compiled for this ground."""

    def __init__(self, ground: Ground, folder: Path, seconds: float):
        self.ground, library = ground, folder / "libmma_rate.so"
        source = str(ROOT / "bench/gpu/mma_rate.cu")
        common = ["-std=c++17", "-O2", "-shared", f"-I{ROOT / 'csrc'}", "-o", str(library)]
        if ground.dry:
            simt = ROOT / "tests/simt"
            command = ["g++", *common, "-fPIC", f"-I{simt}", "-x", "c++", source, *map(str, sorted(simt.glob("*.cpp")))]
        else:
            if (nvcc := find("nvcc")) is None:
                raise RuntimeError("there is no nvcc to compile mma_rate.cu")
            arch = arch_list().replace(".", "")
            command = [nvcc, *common, "-Xcompiler", "-fPIC", f"-gencode=arch=compute_{arch},code=sm_{arch}", source]
        done = run(command, seconds)
        if done.code != 0:
            raise RuntimeError(f"{command[0]} does not compile {source}: {done.output}")
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str) -> float:
        """FLOP/s. name: f16 or tf32."""
        start = getattr(self._library, f"mma_rate_{name}")
        start.restype = ctypes.c_char_p
        blocks, turns = (
            (2, 2) if self.ground.dry else (2 * torch.cuda.get_device_properties(0).multi_processor_count, 4096)
        )
        y = torch.empty(blocks * _THREADS, device=self.ground.device)
        stream = None if self.ground.dry else torch.cuda.current_stream().cuda_stream

        def call() -> None:
            error = start(ctypes.c_void_p(y.data_ptr()), blocks, turns, ctypes.c_void_p(stream))
            if error:
                raise RuntimeError(f"mma_rate_{name}: {error.decode()}")

        products = 16 * 8 * (16 if name == "f16" else 8)
        return 2.0 * products * _SUMS * turns * _WARPS * blocks / median_seconds(self.ground, call, 3)


def calibrate(ground: Ground, record: dict, budget: Budget, folder: Path, skip: Callable[[str, str], None]) -> None:
    """Fills the record with this machine's peaks, as far as the time goes."""
    sizes = [2**k for k in ((16, 20) if ground.dry else range(20, 32))]  # of which the small ones stay in L2
    product = 64 if ground.dry else 8192

    def measure(rates: dict[str, Callable[[], float]]) -> None:
        for name, rate in rates.items():
            if budget.left <= 0:
                skip(name, "no time left")
                continue
            record[name] = rate()

    measure({f"copy_{moved}": lambda moved=moved: copy_rate(ground, moved) for moved in reversed(sizes)})
    copies = {moved: record[f"copy_{moved}"] for moved in sizes if f"copy_{moved}" in record}
    if copies:
        record["memory_bytes_per_s"], record["l2_bytes_per_s"] = copies[max(copies)], max(copies.values())

    def product_in(dtype: torch.dtype, tf32: bool) -> float:
        with tf32_allowed(tf32):
            return product_rate(ground, product, dtype)

    measure(
        {
            "product_float32": lambda: product_in(torch.float32, False),
            "product_tf32": lambda: product_in(torch.float32, True),
            "product_float16": lambda: product_in(torch.float16, False),
            "product_bfloat16": lambda: product_in(torch.bfloat16, False),
        }
    )
    mma = functools.cache(lambda: MmaRate(ground, folder, budget.left))
    measure({f"mma_sync_{name}": lambda name=name: mma()(name) for name in ("f16", "tf32")})


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """float32 products and convolutions on tensor cores, by cuDNN, cuBLAS and fastcnn alike, or exactly."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Whether cuDNN times its algorithms at the first call of a shape."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
