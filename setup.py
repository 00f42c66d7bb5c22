"""Builds fastcnn/_C, the CPU library. Lists no file: sources are found by folder."""

import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

sys.path.insert(0, str(Path(__file__).parent))
from build_compile import X86, Build, torch

root = torch or Path("no-torch")  # metadata can be had without; Build says what is missing
extension = Extension(
    "fastcnn._C",
    sources=sorted(glob("csrc/ops/*.cpp") + glob("csrc/engine/*.cpp")),
    include_dirs=["csrc"],
    library_dirs=[str(root / "lib")],
    libraries=["torch_cpu"],
    define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000"), *([("FASTCNN_X86", "1")] if X86 else [])],
    # -isystem: torch's own headers are not clean under -Wextra
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=fast",
                        "-isystem", str(root / "include")],
    language="c++",
)  # fmt: skip
setup(
    packages=[*find_packages(include=["fastcnn*"]), "fastcnn.kernels"],
    package_dir={"fastcnn.kernels": "kernels"},
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
)
