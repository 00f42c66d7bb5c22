"""The build, with a stand-in for the compiler: what is recompiled after a change, what is said without a tool."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a source tree")

# Notes each compilation, and writes what g++ would: the object, and the list of the files that it depends on.
COMPILER = """#!{python}
import re, sys
from pathlib import Path
args = sys.argv[1:]
out = Path(args[args.index("-o") + 1])
out.write_text("")
if "-c" in args:
    src = args[args.index("-c") + 1]
    with open({log!r}, "a") as log:
        log.write(src + "\\n")
    seen, todo = set(), [Path(src)]
    while todo:
        file = todo.pop()
        if file in seen or not file.exists():
            continue
        seen.add(file)
        todo += [Path("csrc", name) for name in re.findall(r'#include "(.+?)"', file.read_text())]
    out.with_suffix(".d").write_text(str(out) + ": " + " ".join(map(str, seen)))
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources that builds with the stand-in compiler."""
    for name in (
        "setup.py",
        "build_backend.py",
        "build_compile.py",
        "build_cuda.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "kernels", "fastcnn"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "bin").mkdir()
    for compiler in (tmp_path / "compiler", tmp_path / "bin/nvcc"):
        compiler.write_text(COMPILER.format(python=sys.executable, log=str(tmp_path / "log")))
        compiler.chmod(0o755)
    return tmp_path


def build(tree: Path, compiler: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    log = tree / "log"
    log.write_text("")
    environment = {**os.environ, "CXX": compiler, "FASTCNN_SKIP_CUDA_BUILD": "1", **variables}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return done, sorted(log.read_text().split())


def test_touching_a_kernel_rebuilds_that_kernel(tree):
    pytest.importorskip("setuptools")
    done, first = build(tree, str(tree / "compiler"))
    assert done.returncode == 0, done.stderr
    kernels = len(list(tree.glob("csrc/cpu/*.cpp")))
    others = len([*tree.glob("csrc/ops/*.cpp"), *tree.glob("csrc/engine/*.cpp")])
    levels = (len(first) - others) // kernels
    assert len(first) == kernels * levels + others
    assert build(tree, str(tree / "compiler"))[1] == []
    kernel = tree / "csrc/cpu/subsample2d.cpp"
    os.utime(kernel, (later := (tree / "log").stat().st_mtime + 5, later))
    again = build(tree, str(tree / "compiler"))[1]
    assert len(again) == levels
    assert all(Path(src).name == "subsample2d.cpp" for src in again)


def test_touching_a_header_rebuilds_what_includes_it(tree):
    pytest.importorskip("setuptools")
    build(tree, str(tree / "compiler"))
    os.utime(tree / "csrc/ops/subsample2d.h", (later := (tree / "log").stat().st_mtime + 5, later))
    again = {Path(src).name for src in build(tree, str(tree / "compiler"))[1]}
    assert again == {"subsample2d.cpp"}


def test_without_a_compiler_one_clear_error(tree):
    pytest.importorskip("setuptools")
    done, compiled = build(tree, "no-such-compiler")
    assert done.returncode != 0
    assert compiled == []
    assert "fastcnn: no C++ compiler ('no-such-compiler' not found)" in done.stderr
    assert "Traceback" not in done.stderr


WITH_CUDA = {"FASTCNN_SKIP_CUDA_BUILD": "0", "FASTCNN_FORCE_CUDA": "1"}


def test_cuda_kernels_are_compiled_by_nvcc_alone(tree):
    pytest.importorskip("setuptools")
    home = {**WITH_CUDA, "CUDA_HOME": str(tree)}
    compiler = str(tree / "compiler")
    done, first = build(tree, compiler, **home)
    assert done.returncode == 0, done.stderr
    assert f"fastcnn: CUDA kernels by {tree / 'bin' / 'nvcc'}" in done.stdout
    cuda = [*tree.glob("csrc/cuda/*.cu"), *tree.glob("csrc/cuda/*.cpp")]
    assert {str(path.relative_to(tree)) for path in cuda} <= set(first)
    assert list(tree.glob("fastcnn/_C_cuda*.so"))
    assert build(tree, compiler, **home)[1] == []
    os.utime(tree / "csrc/cuda/max_pool2d.cu", (later := (tree / "log").stat().st_mtime + 5, later))
    assert build(tree, compiler, **home)[1] == ["csrc/cuda/max_pool2d.cu"]


@pytest.mark.parametrize(
    ("variables", "status", "message"),
    [
        ({"FASTCNN_SKIP_CUDA_BUILD": "1"}, 0, "CUDA kernels left out: FASTCNN_SKIP_CUDA_BUILD is set"),
        ({**WITH_CUDA, "CUDA_HOME": "/nowhere"}, 1, "there is no compiler '/nowhere/bin/nvcc'"),
        ({**WITH_CUDA, "TORCH_CUDA_ARCH_LIST": "Ampere"}, 1, "expected TORCH_CUDA_ARCH_LIST like '8.0;9.0a;12.0+PTX'"),
    ],
)
def test_what_is_said_about_cuda(tree, variables, status, message):
    pytest.importorskip("setuptools")
    done, compiled = build(tree, str(tree / "compiler"), **{"CUDA_HOME": str(tree), **variables})
    assert (done.returncode != 0) == status
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not any(source.endswith(".cu") for source in compiled)


def test_gpus_as_options(monkeypatch):
    build_cuda = importlib.import_module("build_cuda")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a;12.0+PTX")
    assert build_cuda.gencode() == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
