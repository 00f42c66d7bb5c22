"""Builds tests/simt/kernels for the host, calls them on numpy arrays; as a script, runs one function of this file.

The script form is for the sanitizers, whose runtimes must be loaded before Python's own libraries.
"""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "tests/simt/kernels").glob("*.cu"))
FLAGS = ["-std=c++17", "-g", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def build(out: Path, *flags: str) -> Path:
    sources = [argument for path in KERNELS for argument in ("-x", "c++", str(path))]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/simt'}"]
    command = ["g++", *FLAGS, *flags, *include, *sources, str(ROOT / "tests/simt/simt.cpp"), "-o", str(out)]
    subprocess.run(command, check=True)
    return out


class Traffic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "bytes", "units", "ideal")]


class Counters(ctypes.Structure):
    _fields_ = [
        *((name, Traffic) for name in ("global_load", "global_store", "shared_load", "shared_store", "ldmatrix")),
        *((name, ctypes.c_uint64) for name in ("read_bytes", "written_bytes", "mma", "barriers", "launches")),
    ]


class Ground:
    """Kernels by name; a finding is a RuntimeError."""

    def __init__(self, path: Path | str):
        self.library = ctypes.CDLL(str(path))
        self.library.fastcnn_simt_counters.restype = Counters

    def __getattr__(self, name: str):
        kernel = getattr(self.library, name)
        kernel.restype = ctypes.c_char_p

        def call(*arguments: np.ndarray | int):
            converted = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
            if finding := kernel(*converted):
                raise RuntimeError(finding.decode())

        return call

    def set(self, name: str, value: str | None):
        self.library.fastcnn_simt_set(name.encode(), None if value is None else value.encode())

    def counters(self) -> Counters:
        return self.library.fastcnn_simt_counters()
