"""Builds tests/simt/kernels for the host and calls them on numpy arrays.

As a script, `ground.py library case` runs one function of this file, or a kernel of test data: the sanitizers' runtimes
must be loaded before Python's own libraries, which only a new process can do.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "tests/simt/kernels").glob("*.cu"))
FLAGS = ["-std=c++17", "-g", "-fPIC", "-shared", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]
RUNTIMES = {"address,undefined": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}


def build(out: Path, *flags: str) -> Path:
    sources = [argument for path in KERNELS for argument in ("-x", "c++", str(path))]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/simt'}"]
    sources += map(str, sorted((ROOT / "tests/simt").glob("*.cpp")))
    command = ["g++", *FLAGS, *flags, *include, *sources, "-o", str(out)]
    subprocess.run(command, check=True)
    return out


def run_sanitized(sanitizer: str, *arguments: str, timeout: float | None = 300, **variables: str) -> str:
    """What Python prints, with the sanitizer's runtime in front of every other library."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in [*RUNTIMES[sanitizer], "libstdc++.so.6"]
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "OPENBLAS_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter has its own
        "TSAN_OPTIONS": "suppress_equal_addresses=0",  # launches share the memory that blocks share
        **variables,
    }
    # ThreadSanitizer's shadow memory allows no randomized addresses.
    fixed_addresses = [shutil.which("setarch"), "-R"] if sanitizer == "thread" else []
    command = [*fixed_addresses, sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    ).stdout


class Traffic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "bytes", "units", "ideal")]


class Counters(ctypes.Structure):
    _fields_ = [
        *((name, Traffic) for name in ("global_load", "global_store", "shared_load", "shared_store", "ldmatrix")),
        *((name, ctypes.c_uint64) for name in ("read_bytes", "written_bytes", "mma", "barriers", "launches")),
    ]


class SiteTraffic(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("line", ctypes.c_int32), ("kind", ctypes.c_int32), ("traffic", Traffic)]


class Ground:
    """The library's kernels by name; a finding is a RuntimeError. With `register`, only their arrays are in bounds."""

    def __init__(self, path: Path | str):
        self.library = ctypes.CDLL(str(path))
        self.library.fastcnn_simt_counters.restype = Counters
        self.library.fastcnn_simt_sites.restype = ctypes.c_uint64
        self.register = False
        self.settings: set[str] = set()

    def __getattr__(self, name: str):
        kernel = getattr(self.library, name)
        kernel.restype = ctypes.c_char_p

        def call(*arguments: np.ndarray | int):
            arrays = [a for a in arguments if isinstance(a, np.ndarray)]
            for a in arrays if self.register else []:
                self.library.fastcnn_simt_memory_add(ctypes.c_void_p(a.ctypes.data), ctypes.c_uint64(a.nbytes))
            converted = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
            finding = kernel(*converted)
            self.library.fastcnn_simt_memory_clear()
            if finding:
                raise RuntimeError(finding.decode())

        return call

    def set(self, name: str, value: str):
        self.settings.add(name)
        self.library.fastcnn_simt_set(name.encode(), value.encode())

    def reset(self):
        for name in self.settings:
            self.library.fastcnn_simt_set(name.encode(), None)
        self.register = False
        self.library.fastcnn_simt_reset_counters()

    def count(self):
        """From here on, from zero."""
        self.set("FASTCNN_SIMT_COUNT", "1")
        self.library.fastcnn_simt_reset_counters()

    def counters(self) -> Counters:
        return self.library.fastcnn_simt_counters()

    def sites(self) -> list[SiteTraffic]:
        sites = (SiteTraffic * self.library.fastcnn_simt_sites(None, ctypes.c_uint64(0)))()
        self.library.fastcnn_simt_sites(sites, ctypes.c_uint64(len(sites)))
        return list(sites)


def aligned(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Zeros at a multiple of 128 bytes, as torch's CUDA allocations are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 128, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + size].view(dtype).reshape(shape)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bit patterns, rounded to nearest even; x is finite."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def tf32(x: np.ndarray) -> np.ndarray:
    return (np.asarray(x, np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32)


def widen(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


ELEMENTS = {"f16": np.float16, "bf16": bfloat16, "tf32": tf32, "f32": np.float32, "f64": np.float64}


def unlike_any(x: np.ndarray) -> np.ndarray:
    """An output for the kernel to fill: NaN of every dtype."""
    return np.full(x.nbytes, 0xFF, np.uint8).view(x.dtype).reshape(x.shape)


def vector_add(simt: Ground, dtype: str, n: int) -> bool:
    """Whether every sum is the exact one, rounded."""
    rng, element = np.random.default_rng(n), ELEMENTS[dtype]
    a, b = element(rng.standard_normal(n)), element(rng.standard_normal(n))
    y = unlike_any(a)
    getattr(simt, f"vector_add_{dtype}")(a, b, y, n)
    exact = widen(a).astype(np.float64) + widen(b)
    return bool((y == element(exact.astype(np.float32) if dtype != "f64" else exact)).all())


def block_sum(simt: Ground, name: str, dtype=np.float32) -> float:
    x = np.random.default_rng(0).standard_normal(10003).astype(dtype)
    y = unlike_any(np.zeros(4, dtype))
    getattr(simt, name)(x, y, x.size, y.size)
    return abs(y.sum(dtype=np.float64) - x.sum(dtype=np.float64))


def conv3x3(simt: Ground, name: str, c: int, h: int, w: int, k: int) -> float:
    """The largest error."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((c, h, w), np.float32), rng.standard_normal((k, c, 3, 3), np.float32)
    y = unlike_any(np.zeros((k, h, w), np.float32))
    getattr(simt, name)(x, weights, y, c, h, w, k)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2)
    )
    return abs(np.einsum("chwrs,kcrs->khw", windows, weights) - y).max()


def normalized_conv3x3(simt: Ground, name: str, c: int, h: int, w: int, k: int) -> np.ndarray:
    """The error of every output."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((c, h, w), np.float32), rng.standard_normal((k, c, 3, 3), np.float32)
    scale, shift = rng.uniform(0.5, 1.5, (2, c)).astype(np.float32)
    y = unlike_any(np.zeros((k, h, w), np.float32))
    getattr(simt, name)(x, scale, shift, weights, y, c, h, w, k)
    exact = np.maximum(x.astype(np.float64) * scale[:, None, None] + shift[:, None, None], 0)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(exact, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
    return abs(np.einsum("chwrs,kcrs->khw", windows, weights) - y)


def gemm(simt: Ground, name: str, dtype: str, m: int, n: int, k: int) -> float:
    """The largest error. Operands are exact in their dtype, so that only the sums round."""
    rng, element = np.random.default_rng(0), ELEMENTS[dtype]
    a, b = element(rng.standard_normal((m, k))), element(rng.standard_normal((k, n)))
    on_device = [aligned(x.shape, x.dtype) for x in (a, b)]
    on_device[0][:], on_device[1][:] = a, b
    c = aligned((m, n))
    c[:] = np.nan
    getattr(simt, name)(*on_device, c, m, n, k)
    return abs(widen(a).astype(np.float64) @ widen(b).astype(np.float64) - c).max()


# Cases of the script.


def clean(simt: Ground):
    for copy in ("lazy", "eager"):
        simt.set("FASTCNN_SIMT_COPY", copy)
        for dtype in ("f16", "bf16", "tf32"):
            assert gemm(simt, f"gemm_{dtype}", dtype, 70, 48, 88) < 2e-5
    for dtype in ("f16", "bf16", "f32", "f64"):
        assert vector_add(simt, dtype, 1003)
    assert block_sum(simt, "block_sum_f32") < 1e-4
    assert block_sum(simt, "block_sum_f64", np.float64) < 1e-11
    assert conv3x3(simt, "conv3x3_f32", 3, 13, 37, 5) < 1e-5
    simt.neighbour(np.zeros(64, np.float32))
    simt.set("FASTCNN_SIMT_CHECK_BLOCKS", "1")
    simt.set("FASTCNN_SIMT_COUNT", "1")
    simt.register = True
    assert conv3x3(simt, "conv3x3_f32", 3, 13, 37, 5) < 1e-5
    assert gemm(simt, "gemm_f16", "f16", 70, 48, 88) < 2e-5
    simt.reset()


def findings(simt: Ground):
    """Launches that stop half-way, each followed by one that does not."""
    x, y = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for name, arguments in (
        ("divergent_barrier", ()),
        ("early_exit", ()),
        ("lane_missing", (y,)),
        ("divergent_warp", (y,)),
        ("misaligned_copy", (x, y)),
        ("copy_in_flight", (x,)),
    ):
        try:
            getattr(simt, name)(*arguments)
        except RuntimeError:
            assert gemm(simt, "gemm_f16", "f16", 70, 48, 88) < 2e-5
        else:
            raise AssertionError(f"{name}: no finding")


def gemm_without_barrier(simt: Ground):
    gemm(simt, "gemm_without_barrier", "f16", 64, 64, 64)


def conv3x3_without_barrier(simt: Ground):
    conv3x3(simt, "conv3x3_without_barrier", 3, 13, 37, 5)


def block_sum_without_barrier(simt: Ground):
    block_sum(simt, "block_sum_without_barrier")


def neighbour_without_sync(simt: Ground):
    simt.neighbour_without_sync(np.zeros(64, np.float32))


def conv3x3_row_too_many_global(simt: Ground):
    conv3x3(simt, "conv3x3_row_too_many_global", 3, 13, 37, 5)


def copy_past_end(simt: Ground):
    simt.copy_past_end(np.zeros(4 * 32 - 1, np.float32), np.zeros(32, np.float32))


def shared_overrun(simt: Ground):
    simt.shared_overrun(np.zeros(64, np.float32))


if __name__ == "__main__":
    _, path, case = sys.argv
    globals()[case](Ground(path))
    print(f"{case}: done")
