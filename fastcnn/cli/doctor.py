"""`fastcnn doctor`: can this machine run fastcnn, with what, and what would mend what is missing?"""

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

import fastcnn
from fastcnn import _library
from fastcnn._config import config
from fastcnn._extras import EXTRAS
from fastcnn.models.verify import relative_error, rounding_bound

from ._arguments import Json
from ._output import print_json, stdout

OLDEST_TORCH = (2, 11)  # the stable ABI that fastcnn._C is built for
# What the kernels of each level are compiled for, by the names of /proc/cpuinfo.
LEVELS = {"avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"}, "avx2": {"avx2", "fma", "f16c"}, "baseline": set()}


@dataclass(frozen=True)
class Finding:
    """One line of the report. status: 'ok', 'note' (works, could be better), 'defect' (will not work)."""

    name: str
    status: str
    value: str
    advice: str = ""


def _cpu_info(key: str) -> str:
    """The first value of a key of /proc/cpuinfo, '' where there is none."""
    path = Path("/proc/cpuinfo")
    match = re.search(rf"^{key}\s*: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return match[1] if match else ""


def _torch() -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    old = numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    value = f"{torch.__version__} ({built}) in {Path(torch.__file__).parent}"
    return Finding("torch", "defect" if old else "ok", value, "pip install 'torch>=2.11'" if old else "")


def _library_finding() -> Finding:
    if _library.load_error:
        return Finding("native library", "defect", "does not load", str(_library.load_error))
    spec = importlib.util.find_spec("fastcnn._C")
    return Finding("native library", "ok", str(spec.origin) if spec else "loaded")


def _kernels() -> Finding:
    level = fastcnn.cpu_capability()
    flags = set(_cpu_info("flags").split())
    best = next((name for name, needed in LEVELS.items() if needed <= flags), "baseline")
    if list(LEVELS).index(level) > list(LEVELS).index(best):
        advice = "lowered by FASTCNN_CPU_CAPABILITY or ATEN_CPU_CAPABILITY; unset them for full speed"
        return Finding("kernels", "note", f"{level}, though the CPU has {best}", advice)
    return Finding("kernels", "ok", level)


def _cpu() -> Finding:
    flags = set(_cpu_info("flags").split())
    notable = ("avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_bf16", "avx512_fp16")
    features = " ".join(name for name in (*notable, "amx_tile") if name in flags)
    model = _cpu_info("model name") or platform.processor() or platform.machine()
    return Finding("CPU", "ok", f"{model}: {features or 'no vector extension that fastcnn uses'}")


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    if threads > cores:
        advice = f"more threads than cores slow every layer down: OMP_NUM_THREADS={cores}"
        return Finding("threads", "note", f"{threads} on {cores} usable cores", advice)
    return Finding("threads", "ok", f"{threads} on {cores} usable cores")


def _thread_libraries() -> Finding:
    """Two vendors' OpenMP runtimes in one process have a thread pool each, and fight for the cores."""
    maps = Path("/proc/self/maps")
    mapped = maps.read_text() if maps.exists() else ""
    found = sorted({Path(path).name for path in re.findall(r"\S*/lib(?:gomp|iomp5|omp)[-.\w]*\.so\S*", mapped)})
    if len({re.split(r"[-.]", name)[0] for name in found}) > 1:
        advice = "find out which package brings the second one; until then set OMP_NUM_THREADS to half the cores"
        return Finding("OpenMP", "note", " and ".join(found), advice)
    return Finding("OpenMP", "ok", " and ".join(found) or "none loaded")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        if _library.cuda_ops:
            return Finding("GPU", "ok", names)
        return Finding("GPU", "note", names, f"CUDA tensors run PyTorch's own kernels: {_library.cuda_missing}")
    if Path("/dev/nvidiactl").exists():
        why = "torch is a CPU build" if torch.version.cuda is None else "torch finds no usable driver"
        return Finding("GPU", "note", f"present, but {why}", "see https://pytorch.org/get-started/locally")
    return Finding("GPU", "ok", "none; fastcnn runs on the CPU")


def _environment() -> Finding:
    found = {key: value for key, value in sorted(os.environ.items()) if key.startswith("FASTCNN_")}
    value = " ".join(f"{key}={value}" for key, value in found.items()) or "no FASTCNN_ variable set"
    if config.disabled:
        return Finding("environment", "note", value, "FASTCNN_DISABLE makes every function run stock PyTorch")
    return Finding("environment", "ok", value)


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            value = f"not installed: {', '.join(missing)}"
            yield Finding(f"extra '{extra}'", "note", value, f"pip install 'fastcnn[{extra}]'")
        else:
            yield Finding(f"extra '{extra}'", "ok", "installed")


def _self_test() -> Finding:
    """One convolution and its weight gradient against float64."""
    generator = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(size, generator=generator) for size in ((2, 16, 13, 13), (24, 16, 3, 3), (2, 24, 13, 13)))
    results = []
    for dtype, conv2d in ((torch.float32, fastcnn.functional.conv2d), (torch.float64, torch.conv2d)):
        weight = w.to(dtype).requires_grad_()
        output = conv2d(x.to(dtype), weight, padding=1)
        results.append((output, *torch.autograd.grad(output, weight, g.to(dtype))))
    error = max(relative_error(actual, expected) for actual, expected in zip(*results))
    limit = rounding_bound(2 * 13 * 13)  # the weight gradient's sum is the longest
    if not error <= limit:
        advice = "wrong kernels for this CPU: please report this, and set FASTCNN_DISABLE=1 until it is mended"
        return Finding("self-test", "defect", f"conv2d is off by {error:.1e}, allowed {limit:.1e}", advice)
    return Finding("self-test", "ok", f"conv2d and its gradient agree with float64 to {error:.1e}")


def examine() -> list[Finding]:
    """All findings about this process and machine; what needs the native library is left out where it is missing."""
    python = f"{platform.python_version()} at {sys.executable}"
    libc = " ".join(platform.libc_ver()).strip()
    findings = [
        Finding("fastcnn", "ok", f"{fastcnn.__version__} in {Path(fastcnn.__file__).parent}"),
        Finding("Python", "ok" if sys.version_info >= (3, 10) else "defect", python),
        Finding("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()} {libc}".strip()),
        _torch(),
        _library_finding(),
        _cpu(),
        _threads(),
        _thread_libraries(),
        _gpu(),
        _environment(),
        *_extras(),
    ]
    if _library.load_error is None:
        findings += [_kernels(), _self_test()]
    return findings


def healthy(findings: list[Finding]) -> bool:
    return all(finding.status != "defect" for finding in findings)


def report(findings: list[Finding]) -> None:
    """Prints one line for each finding, and under it what to do."""
    console = stdout()
    for finding in findings:
        mark = {"ok": "[green]ok[/green]    ", "note": "[yellow]note[/yellow]  ", "defect": "[red]DEFECT[/red]"}
        console.print(mark[finding.status], f"{finding.name:<15}", end=" ")
        console.print(finding.value, markup=False, soft_wrap=True)
        if finding.advice:
            console.print(" " * 22 + "-> " + finding.advice, markup=False, soft_wrap=True)


def doctor(json: Json = False) -> None:
    """Examine the installation and the machine; exit status 1 if something is broken."""
    findings = examine()
    if json:
        print_json({"healthy": healthy(findings), "findings": [vars(finding) for finding in findings]})
    else:
        report(findings)
    if not healthy(findings):
        raise typer.Exit(1)
