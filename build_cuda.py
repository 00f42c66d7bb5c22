"""Whether the CUDA kernels are built, by which nvcc and for which GPUs."""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

# sm_80: A100, and by compatibility all GPUs before Hopper; sm_90a: H100, H200; sm_120: RTX 50. PTX: later ones.
ARCHITECTURES = "8.0;9.0a;12.0+PTX"


@dataclass(frozen=True)
class Toolkit:
    """nvcc, or '' and why the CUDA kernels are not built."""

    nvcc: str
    why: str = ""

    def flags(self) -> list[str]:
        """How to compile a .cu file, for the GPUs of TORCH_CUDA_ARCH_LIST."""
        host = "-fPIC,-fvisibility=hidden,-Wall,-Wextra"
        return ["-std=c++17", "-O3", "-Xcompiler", host, *gencode()]


def gencode() -> list[str]:
    """TORCH_CUDA_ARCH_LIST ('8.0;9.0a;12.0+PTX') as nvcc's options."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    options = []
    for name in re.split(r"[;, ]+", wanted.strip()):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            sys.exit(f"fastcnn: expected TORCH_CUDA_ARCH_LIST like '{ARCHITECTURES}', but got {wanted!r}")
        number = parts[1] + parts[2] + parts[3]
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if parts[4]:
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


def find(torch: Path | None) -> Toolkit:
    """torch: the folder of the torch to build for."""
    if os.environ.get("FASTCNN_SKIP_CUDA_BUILD", "0") not in ("", "0"):
        return Toolkit("", "FASTCNN_SKIP_CUDA_BUILD is set")
    forced = os.environ.get("FASTCNN_FORCE_CUDA", "0") not in ("", "0")
    if torch is None or not (forced or (torch / "lib" / "libtorch_cuda.so").exists()):
        return Toolkit("", "this torch is a CPU build (FASTCNN_FORCE_CUDA=1 builds them nonetheless)")
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else "nvcc"
    found = shutil.which(nvcc)
    if found:
        return Toolkit(found)
    if forced:
        sys.exit(
            f"fastcnn: FASTCNN_FORCE_CUDA is set, but there is no compiler '{nvcc}'. Install CUDA, or set CUDA_HOME"
        )
    return Toolkit("", f"no compiler '{nvcc}'")
