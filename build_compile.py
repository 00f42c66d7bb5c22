"""How the extensions are compiled: each CPU kernel once per instruction set, in parallel, only what has changed."""

import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools.command.build_ext import build_ext

import build_cuda
from build_backend import torch_root

torch = torch_root()
cuda = build_cuda.find(torch)
GIB_PER_COMPILER = 1.5  # g++ at -O3 on the largest kernel source
X86 = platform.machine() in ("x86_64", "AMD64")
ISA = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}


def max_jobs() -> int:
    """MAX_JOBS, or as many compilers as cores and memory allow."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(os.cpu_count() or 1, int(gib / GIB_PER_COMPILER)))


def stale(obj: str) -> bool:
    """True unless the object is newer than every file in the dependency list (-MMD) of its last compilation."""
    deps = Path(obj).with_suffix(".d")
    if not (Path(obj).exists() and deps.exists()):
        return True
    built = Path(obj).stat().st_mtime
    files = deps.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return any(not Path(f).exists() or Path(f).stat().st_mtime > built for f in [*files, __file__])


class Build(build_ext):
    """build_ext with one object per kernel source and ISA, and a clear word where a tool is missing."""

    def finalize_options(self):
        super().finalize_options()
        self.build_temp = f"build/temp-{sys.implementation.cache_tag}"  # an editable build's own is thrown away
        self.force = True  # setuptools knows neither headers nor kernel sources; compile_stale does

    def build_extension(self, ext):
        if torch is None:
            sys.exit("fastcnn: no torch to build on. Run: pip install torch")
        self.compiler.compile = self.compile_stale
        if ext.name.endswith("_C_cuda"):
            return self.build_cuda(ext)
        print(f"fastcnn: CUDA kernels {f'by {cuda.nvcc}' if cuda.nvcc else f'left out: {cuda.why}'}", flush=True)
        cxx = self.compiler.compiler_cxx[0]
        if shutil.which(cxx) is None:
            sys.exit(f"fastcnn: no C++ compiler ('{cxx}' not found). Install g++ 12+ or clang 16+, or set CXX.")
        for isa in ISA if X86 else ["baseline"]:
            for src in sorted(glob("csrc/cpu/*.cpp")):
                unit = Path(self.build_temp, "isa", isa, Path(src).name)
                if not unit.exists():
                    unit.parent.mkdir(parents=True, exist_ok=True)
                    unit.write_text(f'#include "{src.removeprefix("csrc/")}"\n')
                ext.sources.append(str(unit))
        super().build_extension(ext)

    def build_cuda(self, ext):
        """Links by nvcc, which knows where its runtime library is, and puts it inside."""
        self.compiler.src_extensions.append(".cu")
        objects = self.compiler.compile(ext.sources, self.build_temp, ext.define_macros, ext.include_dirs,
                                        extra_postargs=ext.extra_compile_args)  # fmt: skip
        library = self.get_ext_fullpath(ext.name)
        Path(library).parent.mkdir(parents=True, exist_ok=True)
        folders = [f"-L{folder}" for folder in ext.library_dirs]
        self.spawn([cuda.nvcc, "-shared", *objects, *folders, *[f"-l{name}" for name in ext.libraries], "-o", library])

    def compile_stale(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
                      extra_postargs=None, depends=None):  # fmt: skip
        """CCompiler.compile, but parallel and by the dependency files that the compiler itself wrote."""
        objects = self.compiler.object_filenames(sources, output_dir=output_dir)
        preprocess = [f"-D{k}={v}" for k, v in macros or []] + [
            f"-I{d}" for d in [*include_dirs, *self.compiler.include_dirs]
        ]

        def compile(job):
            obj, src = job
            isa = Path(src).parent.name if "isa" in Path(src).parts else None
            if src.endswith(".cu"):
                command = [cuda.nvcc, *preprocess, *cuda.flags()]
            else:
                command = [*self.compiler.compiler_cxx, "-fPIC", *preprocess, *extra_postargs]
                command += [*ISA[isa], f"-DFASTCNN_ISA={isa}"] if isa else []
            Path(obj).parent.mkdir(parents=True, exist_ok=True)
            self.spawn([*command, "-MMD", "-c", src, "-o", obj])

        with ThreadPoolExecutor(max_jobs()) as pool:
            list(pool.map(compile, [job for job in zip(objects, sources) if stale(job[0])]))
        return objects
