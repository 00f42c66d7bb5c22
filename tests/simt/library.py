"""csrc/cuda compiled by g++: the CUDA ops, launches included, as torch.ops.fastcnn_simt.* on CPU tensors.

`load` builds and registers them with all that fastcnn/ops adds to an op; `take_over` has fastcnn itself, and therefore
any test of it, compute on them.
"""

import hashlib
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

import fastcnn.ops

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
MISSING = None if shutil.which(CXX) else f"no C++ compiler ('{CXX}')"
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unknown-pragmas", "-DFASTCNN_SIMT", "-DFASTCNN_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def build(sanitize: str = "") -> Path:
    """The library, of what is stale compiled anew. sanitize: as -fsanitize= takes it."""
    sys.path.insert(0, str(ROOT))
    from build_compile import stale

    include = Path(torch.__file__).parent / "include"
    flags = [*FLAGS, f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/simt'}", "-isystem", str(include)]
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"] if sanitize else []
    out = ROOT / "build" / "simt" / hashlib.sha256(" ".join(flags).encode()).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), *sorted((ROOT / "csrc/cuda").glob("*.cpp"))]
    jobs = [(out / f"{source.stem}.o", source) for source in [*sources, *(ROOT / "tests/simt").glob("*.cpp")]]

    def compile(job):
        subprocess.run([CXX, *flags, "-MMD", "-x", "c++", "-c", str(job[1]), "-o", str(job[0])], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile, [job for job in jobs if stale(str(job[0]))]))
    library = out / "libfastcnn_simt.so"
    objects = [job[0] for job in jobs]
    if not library.exists() or any(o.stat().st_mtime > library.stat().st_mtime for o in objects):
        link = [f"-L{include.parent / 'lib'}", "-ltorch_cpu", *([f"-fsanitize={sanitize}"] if sanitize else [])]
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


def take_over() -> None:
    """fastcnn's functions and torch.ops.fastcnn compute by the CUDA kernels from here on."""
    simt = load()
    for module in pkgutil.iter_modules(fastcnn.ops.__path__):
        op = importlib.import_module(f"fastcnn.ops.{module.name}")
        if hasattr(op, "define"):
            op.ops = op.define("fastcnn_simt")
    torch.ops.fastcnn = simt
