"""Compiles .cu files to machine code and disassembles it: nvcc, and the nvdisasm of the CUDA toolkit or of Triton."""

import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "static"
FLAGS = ["-std=c++17", "-O3", "-cubin", "-Xptxas", "-v"]


def find(tool: str) -> str | None:
    spec = importlib.util.find_spec("triton")
    in_triton = [f"{folder}/backends/nvidia/bin" for folder in (spec.submodule_search_locations or ())] if spec else []
    places = [None, "/usr/local/cuda/bin", *in_triton]
    return next((found for place in places if (found := shutil.which(tool, path=place))), None)


TRITON = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None  # its version
MISSING = next((f"no {tool}" for tool in ("nvcc", "nvdisasm", "c++filt") if find(tool) is None), None)


@dataclass(frozen=True)
class Compiled:
    log: str  # ptxas -v
    disassembly: str


def run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed on {command[-1]}:\n{done.stdout}")
    return done.stdout


@cache
def version() -> str:
    """Of nvcc, as 'V13.0.88'."""
    return re.search(r"V[\d.]+", run(find("nvcc"), "--version"))[0]


def with_headers(source: Path, include: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """The file and every header of the project that it includes."""
    if source.is_file() and source not in seen:
        seen[source] = source.read_bytes()
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', seen[source].decode(), re.MULTILINE):
            for folder in (source.parent, include):
                with_headers((folder / name).resolve(), include, seen)
    return seen


def compile_file(source: Path, arch: str, include: Path = ROOT / "csrc", cache_dir: Path = CACHE) -> Compiled:
    """arch as nvcc names it without 'sm_': 80, 90a, 120."""
    source, command = source.resolve(), [find("nvcc"), *FLAGS, f"-arch=sm_{arch}", f"-I{include}"]
    digest = hashlib.sha256(repr((FLAGS, arch, version())).encode())
    for content in with_headers(source, include, {}).values():
        digest.update(hashlib.sha256(content).digest())
    folder = cache_dir / f"{source.stem}.{arch}.{digest.hexdigest()[:16]}"
    log, text = folder / "ptxas.txt", folder / "sass.txt"
    if not text.exists():
        for old in cache_dir.glob(f"{source.stem}.{arch}.*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        log.write_text(run(*command, "-o", str(folder / "cubin"), str(source)))
        sass = run(find("nvdisasm"), str(folder / "cubin"))
        text.write_text(sass)  # last: what has it is complete
    return Compiled(log.read_text(), text.read_text())


def demangle(names: list[str]) -> dict[str, str]:
    done = subprocess.run([find("c++filt")], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def short(demangled: str) -> str:
    """'max_pool2d_kernel<float, unsigned char, 4, 3>' of what c++filt says."""
    start = re.sub(r"\(anonymous namespace\)::|fastcnn::cuda::|fastcnn::", "", demangled.removeprefix("void "))
    depth = 0
    for i, c in enumerate(start):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return start[:i]
    return start
