"""The build, with a stand-in for the compiler: what is recompiled after a change, what is said without a tool."""

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
    for name in ("setup.py", "build_backend.py", "build_compile.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "kernels", "fastcnn"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(tmp_path / "log")))
    compiler.chmod(0o755)
    return tmp_path


def build(tree: Path, compiler: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    log = tree / "log"
    log.write_text("")
    environment = {**os.environ, "CXX": compiler}
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
