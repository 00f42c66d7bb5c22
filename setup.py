"""Builds fastcnn/_C and, with nvcc, fastcnn/_C_cuda. Lists no file: sources are found by folder."""

import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

sys.path.insert(0, str(Path(__file__).parent))
from build_compile import X86, Build, cuda, torch

root = torch or Path("no-torch")  # metadata can be had without; Build says what is missing
common = dict(
    include_dirs=["csrc"],
    library_dirs=[str(root / "lib")],
    libraries=["torch_cpu"],
    # -isystem: torch's own headers are not clean under -Wextra
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=fast",
                        "-isystem", str(root / "include")],
    language="c++",
)  # fmt: skip
macros = [("TORCH_TARGET_VERSION", "0x020b000000000000"), *([("FASTCNN_X86", "1")] if X86 else [])]
cpu_sources, cuda_sources = (
    sorted(path for folder in folders for path in glob(f"csrc/{folder}")) for folders in
    (("ops/*.cpp", "engine/*.cpp"), ("cuda/*.cpp", "cuda/*.cu"))
)  # fmt: skip
extensions = [Extension("fastcnn._C", cpu_sources, define_macros=macros, **common)]
if cuda.nvcc:
    extensions += [Extension("fastcnn._C_cuda", cuda_sources, define_macros=[*macros, ("FASTCNN_CUDA", "1")], **common)]
setup(
    packages=[*find_packages(include=["fastcnn*"]), "fastcnn.kernels"],
    package_dir={"fastcnn.kernels": "kernels"},
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
)
