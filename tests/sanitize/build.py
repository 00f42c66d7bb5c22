"""Builds fastcnn's native library with AddressSanitizer and UndefinedBehaviorSanitizer, beside the package's own.

`python -m tests.sanitize.build` leaves a copy of the package on that library in build/sanitize/package and a library
with one planted fault of each kind in build/sanitize/planted.so. Only what has changed is compiled. Where the CPU has
AVX2 but no AVX-512, the AVX-512 kernels are compiled for AVX2 (avx512.h).
"""

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastcnn import _library

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "sanitize"
PACKAGE = OUT / "package"
PLANTED = OUT / "planted.so"
CXX = os.environ.get("CXX", "g++")
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1", "-g1"]


def runtime(name: str) -> str:
    """The compiler's own copy of a runtime library, for LD_PRELOAD."""
    return subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def lowered() -> bool:
    """Whether the AVX-512 kernels run on AVX2."""
    return _library._C.supported_capability() == "avx2"


def build() -> None:
    """Compiles what is stale, by two compilers at a time, and lays out the package."""
    sys.path.insert(0, str(ROOT))
    from build_compile import ISA, X86, stale, torch

    assert torch is not None
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", *SANITIZE]
    flags += [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include"), "-isystem", sysconfig.get_path("include")]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", *(["-DFASTCNN_X86=1"] if X86 else [])]
    levels = dict(ISA)
    if lowered():
        flags += ["-include", str(ROOT / "tests/sanitize/avx512.h"), "-Wno-psabi"]
        levels["avx512"] = [*ISA["avx2"], "-DFASTCNN_LOWERED"]

    objects = OUT / ("lowered" if lowered() else "objects")
    jobs = []  # object, source, flags of its own
    for isa in levels if X86 else ["baseline"]:
        for source in sorted((ROOT / "csrc/cpu").glob("*.cpp")):
            jobs.append((objects / isa / f"{source.stem}.o", source, [*levels[isa], f"-DFASTCNN_ISA={isa}"]))
    for folder in ("ops", "engine"):
        for source in sorted((ROOT / "csrc" / folder).glob("*.cpp")):
            jobs.append((objects / folder / f"{source.stem}.o", source, []))
    planted = objects / "planted.o"
    wide = [*levels["avx512"], "-DFASTCNN_ISA=avx512"] if lowered() else []
    jobs.append((planted, ROOT / "tests/sanitize/planted.cpp", wide))

    def compile(job):
        target, source, own = job
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([CXX, *flags, *own, "-MMD", "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile, [job for job in jobs if stale(str(job[0]))]))

    shutil.rmtree(PACKAGE, ignore_errors=True)
    for folder in ("fastcnn", "tests"):
        shutil.copytree(ROOT / folder, PACKAGE / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "kernels", PACKAGE / "fastcnn" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", PACKAGE)
    library = PACKAGE / "fastcnn" / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    kernels = [str(target) for target, _, _ in jobs if target != planted]
    link = [CXX, "-shared", *SANITIZE]
    subprocess.run([*link, *kernels, f"-L{torch / 'lib'}", "-ltorch_cpu", "-o", str(library)], check=True)
    subprocess.run([*link, str(planted), "-o", str(PLANTED)], check=True)


if __name__ == "__main__":
    build()
