"""The GPU run: builds, checks, calibrates and times fastcnn on one GPU, in nine minutes.

python bench/gpu_run.py                      on the machine with the GPU
python bench/gpu_run.py --dry-run            without one: tests/simt stands in, on small shapes; times mean nothing

Each part has a share of the time, and says what it leaves out when that is used up. Results are on disk as they come:
a run that is stopped keeps what it has found. A part that fails is recorded, and the others go on.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu.results import Budget, Finished, Results, run  # noqa: E402

# Seconds of nine minutes; a part that is done early leaves the rest to those after it.
SHARES = {"build": 150, "tests": 80, "sanitizer": 60, "calibration": 30, "layers": 150, "networks": 70}
TESTS = (
    "conv2d", "conv2d_tiles", "max_pool2d", "conv2d_first", "conv2d_bn_relu", "batch_norm_slots", "local_response_norm",
    "lrn_max_pool2d", "avg_pool2d", "conv_transpose2d", "adaptive_avg_pool2d", "max_unpool2d", "batch_norm_relu",
    "sparse_conv2d", "subsample2d", "local_conv2d",
)  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def build(results: Results, record: dict, budget: Budget, dry: bool) -> None:
    """The extension for this GPU alone, in the environment that runs this file."""
    command, environment = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."], {}
    if dry:
        command = [sys.executable, "setup.py", "--name"]  # what is built already stays
    else:
        from bench.gpu.arch import arch_list

        environment = {"TORCH_CUDA_ARCH_LIST": arch_list(), "FASTCNN_FORCE_CUDA": "1"}
    done = run(command, budget.left, **environment)
    record |= {"command": " ".join(command), **environment, "exit": done.code}
    judge(results, record, "the build", done)


def judge(results: Results, record: dict, what: str, done: Finished) -> bool:
    """Whether it ended well; if not, the record has the end of its output."""
    if done.code == 0:
        return True
    record.setdefault("problems", {})[what] = done.output[-4000:]
    ended = "had no time left" if done.code is None else f"ended with {done.code}"
    results.say(f"   {what} {ended}:\n{done.output[-1500:]}")
    return False


def tests(results: Results, record: dict, budget: Budget, dry: bool) -> None:
    """The ops' own tests, four files at a time."""
    record["files"] = {}

    def one(name: str) -> tuple[str, Finished | None]:
        if budget.left < 5:
            return name, None
        how = (
            ["--simt", "-k", "test_batches or test_argument_forms"]
            if dry
            else ["--gpu", "-k", "not opcheck and not transforms"]
        )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *how, f"tests/test_{name}.py"]
        return name, run(command, budget.left)

    with ThreadPoolExecutor(1 if dry else 4) as pool:
        for name, done in pool.map(one, TESTS[2:3] if dry else TESTS):
            if done is None:
                results.skip(record, f"tests/test_{name}.py", "no time left")
                continue
            lines = done.output.strip().splitlines()
            record["files"][name] = {"exit": done.code, "summary": lines[-1] if lines else ""}
            judge(results, record, f"tests/test_{name}.py", done)
            results.save()


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return next(
        (found for path in (None, f"{home}/bin") if (found := shutil.which("compute-sanitizer", path=path))), None
    )


def sanitize(results: Results, record: dict, budget: Budget, dry: bool) -> None:
    """compute-sanitizer on every op at odd sizes; first without it, lest it watch a program that does not run."""
    program = [sys.executable, "-m", "bench.gpu.small", *(["--dry"] if dry else [])]
    record["runs"] = {"alone": (done := run(program, budget.left)).code}
    if not judge(results, record, "bench.gpu.small", done):
        return
    tool = find_sanitizer()
    for check in TOOLS:
        if tool is None or dry:
            results.skip(record, check, "there is no GPU" if dry else "compute-sanitizer is not installed")
        elif budget.left < 5:
            results.skip(record, check, "no time left")
        else:
            # Tensors by themselves: within one large block of torch's, what leaves the one is still in bounds.
            command = [tool, "--tool", check, "--error-exitcode", "1", *program]
            done = run(command, budget.left, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            record["runs"][check] = done.code
            judge(results, record, check, done)
        results.save()


def rows(results: Results, record: dict, budget: Budget, jobs: Iterator, measure) -> None:
    """Measures one job after the other, as far as the time goes."""
    for job in jobs:
        if budget.left <= 0:
            left = [job, *jobs]
            results.skip(record, f"{len(left)} rows, {left[0]} and what follows", "no time left")
            return
        try:
            row = measure(job)
        except Exception as error:
            row = {"row": str(job), "failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        if "failed" in row:  # here, where the error no longer keeps its frames' tensors
            torch.cuda.empty_cache()
        results.data["rows"].append(row)
        record["done"] = record.get("done", 0) + 1
        results.save()
        for problem in ("failed", "refused"):
            if problem in row:
                record[problem + "_rows"] = record.get(problem + "_rows", 0) + 1
                results.say(f"   {problem}: {job}: {row[problem]}")


def time_all(results: Results, dry: bool, folder: Path, shares: dict[str, float]) -> None:
    """The parts that need the extension in this process."""
    from bench.gpu import layers, machine, networks

    ground = machine.Ground(torch.device("cpu" if dry else "cuda"), dry)
    if dry:
        from tests.simt import library

        library.take_over()
    else:
        torch.backends.cudnn.benchmark = True  # the rival's best
    results.data["machine"] = machine.describe(ground)
    results.say(f"== machine: {results.data['machine']}")
    with results.part("calibration", shares["calibration"]) as (record, budget):
        skip = lambda what, why: results.skip(record, what, why)
        machine.calibrate(ground, record, budget, folder, skip)
    peaks = results.data["parts"]["calibration"]
    predictions = layers.Predictions(ground.name())

    def layer(job) -> dict:
        record = layers.measure(job, ground, peaks, 0.03)
        predictions.add(job, record)
        return record

    with results.part("layers", shares["layers"]) as (record, budget):
        record["predicted_for"] = predictions.chip
        rows(results, record, budget, iter(layers.small_jobs() if dry else layers.jobs()), layer)
    with results.part("networks", shares["networks"]) as (record, budget):
        jobs = networks.small_jobs() if dry else networks.jobs()
        rows(results, record, budget, iter(jobs), lambda job: networks.measure(job, ground, 0.2))


def went_wrong(parts: dict[str, dict]) -> bool:
    signs = ("problems", "failed", "failed_rows", "refused_rows")
    return any(sign in part for part in parts.values() for sign in signs)


def main(
    seconds: Annotated[float, typer.Option(help="for everything")] = 540.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="without a GPU: by tests/simt, on small shapes")] = False,
    skip: Annotated[list[str], typer.Option(help=f"a part to leave out: {', '.join(SHARES)}")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON; else bench/results/gpu-<time>.json")] = None,
) -> None:
    if unknown := set(skip) - SHARES.keys():
        raise typer.BadParameter(f"expected --skip to be of {', '.join(SHARES)}, but got {', '.join(unknown)}")
    if not dry_run and not torch.cuda.is_available():
        Console(stderr=True).print("torch finds no GPU: --dry-run shows what would run")
        raise typer.Exit(2)
    os.chdir(ROOT)
    out = out or ROOT / time.strftime("bench/results/gpu-%Y%m%d-%H%M%S.json")
    console = Console() if sys.stdout.isatty() else Console(width=160)
    results = Results(out, console, seconds)
    shares = {name: 0.0 if name in skip else share * seconds / 540 for name, share in SHARES.items()}
    results.data |= {"seconds": seconds, "dry_run": dry_run, "shares": shares}
    spare = 0.0
    for name, work in (("build", build), ("tests", tests), ("sanitizer", sanitize)):
        if name in skip:
            results.skip(results.data["parts"].setdefault(name, {}), name, "--skip")
            continue
        with results.part(name, shares[name] + spare) as (record, budget):
            work(results, record, budget, dry_run)
        spare = budget.left
    for name in ("layers", "networks"):
        shares[name] += spare * (2 / 3 if name == "layers" else 1 / 3)
    time_all(results, dry_run, out.parent, shares)
    from bench.gpu.summary import print_summary

    print_summary(results)
    results.data["finished"] = True
    results.save()
    results.say(f"written to {out}")
    if went_wrong(results.data["parts"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
