"""csrc/cuda compiled by g++: the CUDA ops, launches included, as torch.ops.fastcnn_simt.* on CPU tensors.

`load` builds and registers them with all that fastcnn/ops adds to an op; `take_over` has fastcnn itself, and therefore
any test of it, compute on them.
"""

import fcntl
import hashlib
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

import fastcnn.ops
from fastcnn import _packed

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
MISSING = None if shutil.which(CXX) else f"no C++ compiler ('{CXX}')"
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unknown-pragmas", "-DFASTCNN_SIMT", "-DFASTCNN_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def build(sanitize: str = "") -> Path:
    """The library, of what is stale compiled anew. sanitize: as -fsanitize= takes it."""
    include = Path(torch.__file__).parent / "include"
    flags = [*FLAGS, f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/simt'}", "-isystem", str(include)]
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"] if sanitize else []
    out = ROOT / "build" / "simt" / hashlib.sha256(" ".join(flags).encode()).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of pytest's workers one compiles
        return build_in(out, flags, sanitize)


def build_in(out: Path, flags: list[str], sanitize: str) -> Path:
    sys.path.insert(0, str(ROOT))
    from build_compile import stale

    sources = [
        path
        for glob in ("csrc/cuda/*.cu", "csrc/cuda/*.cpp", "tests/simt/*.cpp", "tests/simt/torch/*.cpp")
        for path in ROOT.glob(glob)
    ]
    jobs = [(out / f"{source.stem}.o", source) for source in sorted(sources)]

    def compile(job):
        subprocess.run([CXX, *flags, "-MMD", "-x", "c++", "-c", str(job[1]), "-o", str(job[0])], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile, [job for job in jobs if stale(str(job[0]))]))
    library = out / "libfastcnn_simt.so"
    objects = [job[0] for job in jobs]
    if not library.exists() or any(o.stat().st_mtime > library.stat().st_mtime for o in objects):
        torch_libraries = Path(torch.__file__).parent / "lib"
        link = [f"-L{torch_libraries}", "-ltorch_cpu", *([f"-fsanitize={sanitize}"] if sanitize else [])]
        subprocess.run([CXX, "-shared", *map(str, objects), *link, "-o", str(library)], check=True)
    return library


@cache
def load():
    """torch.ops.fastcnn_simt, with the schemas of torch.ops.fastcnn."""
    definitions = torch.library.Library("fastcnn_simt", "FRAGMENT")
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if name.startswith("fastcnn::"):
            op = getattr(torch.ops.fastcnn, name.removeprefix("fastcnn::"))
            definitions.define(str(op.default._schema).removeprefix("fastcnn::"))
    _kept.append(definitions)
    torch.ops.load_library(build(os.environ.get("FASTCNN_SIMT_SANITIZE", "")))
    return torch.ops.fastcnn_simt


_kept: list[torch.library.Library] = []  # a registration lives as long as its Library


@cache
def halves() -> list[tuple[ModuleType, SimpleNamespace]]:
    """fastcnn's modules of ops, and what each makes of torch.ops.fastcnn_simt."""
    load()
    modules = [importlib.import_module(f"fastcnn.ops.{m.name}") for m in pkgutil.iter_modules(fastcnn.ops.__path__)]
    own = [(module, module.ops) for module in modules if hasattr(module, "define")]
    for module, _ in own:
        module.ops = module.define("fastcnn_simt")  # which may refer to the ops of a module before it
    simt = [(module, module.ops) for module, _ in own]
    for module, ops in own:
        module.ops = ops
    return simt


def take_over() -> Callable[[], None]:
    """fastcnn's functions and torch.ops.fastcnn compute by the CUDA kernels from here on; returns what undoes that."""
    simt = load()
    before, stock = [(module, module.ops) for module, _ in halves()], torch.ops.fastcnn

    def compute_by(ops, namespace):
        for module, functions in ops:
            module.ops = functions
        torch.ops.fastcnn = namespace
        _packed.cache.clear()  # the two pack weights differently

    compute_by(halves(), simt)
    return lambda: compute_by(before, stock)


@contextmanager
def taken_over() -> Iterator[None]:
    """Within the block, take_over."""
    undo = take_over()
    try:
        yield
    finally:
        undo()
