"""Options, environment and the `compare` fixture of the benchmarks."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import fastcnn
from bench._alternate import alternate
from bench._gate import WrongResult, check, require_equal
from bench._layer import Comparison
from bench._peaks import Peaks
from bench._rows import SMOKE, SMOKE_ROUNDS, Row
from bench.report import group_lines
from fastcnn.ops._policy import cpu_name

_PEAKS = pytest.StashKey[Peaks]()
_MEASURED = pytest.StashKey[list[dict]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, help="threads of torch's pool (default: torch's own choice)")
    parser.addoption("--seconds", type=float, default=0.5, help="timing budget of a row, both sides together")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []
    if config.option.threads:
        torch.set_num_threads(config.option.threads)
    option = config.option
    if not (option.benchmark_json or option.benchmark_disable or option.collectonly):
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        name = time.strftime("smoke-%Y%m%d-%H%M%S.json" if SMOKE else "%Y%m%d-%H%M%S.json")
        option.benchmark_json = results / name


def environment() -> dict:
    """What the numbers depend on beside the code."""
    lowered = ("ATEN_CPU_CAPABILITY", "FASTCNN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
    return {
        "torch": torch.__version__,
        "fastcnn": fastcnn.__version__,
        "isa": fastcnn.cpu_capability(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpu": f"{cpu_name()} ({os.cpu_count()} logical)",
        "system": f"{platform.system()} {platform.machine()}",
        "python_version": platform.python_version(),
        "environment": {name: os.environ[name] for name in lowered if name in os.environ},
        "smoke": SMOKE,
    }


@pytest.fixture(scope="session")
def peaks(pytestconfig: pytest.Config) -> Peaks:
    measured = Peaks()
    pytestconfig.stash[_PEAKS] = measured
    return measured


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    measured = config.stash.get(_PEAKS, None)
    output_json["fastcnn"] = {**environment(), "peaks": measured.as_dict() if measured else {}}


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if measured := config.stash[_MEASURED]:
        terminalreporter.section("speed against stock PyTorch (stock's median / fastcnn's)")
        for line in group_lines(measured):
            terminalreporter.write_line(line)


@pytest.fixture
def time_in_turns(benchmark, pytestconfig: pytest.Config) -> Callable:
    """Times two callables in turn and writes what was found into the benchmark's extra_info.

    `more`: what else to write there, and `rates`, as a function of fastcnn's seconds; `checked`: what fast returned
    when it was found right, and must return again.
    """

    def run(
        fast_call: Callable,
        stock_call: Callable,
        row: Row,
        op: str,
        more: dict,
        group: str | None = None,
        rates: Callable[[float], dict] = lambda seconds: {},
        checked: Sequence[torch.Tensor] | None = None,
    ) -> None:
        group = group or op
        seconds = pytestconfig.option.seconds
        fast, stock = alternate(fast_call, stock_call, seconds, SMOKE_ROUNDS if SMOKE else None)
        if checked is not None:
            try:
                require_equal(fast_call(), checked)
            except WrongResult as error:
                pytest.fail(f"the timed call differs from the checked one: {op} {row}: {error}", pytrace=False)
        benchmark.group = group
        # pytest-benchmark's own table shows fastcnn alone; the ratio comes from the alternated medians.
        rounds = SMOKE_ROUNDS if SMOKE else min(5, len(fast.seconds))
        benchmark.pedantic(fast_call, rounds=rounds, iterations=fast.calls)
        benchmark.extra_info.update(
            {
                "op": op,
                "group": group,
                "layer": row.case.name,
                "geometry": dataclasses.asdict(row.case),
                "batch": row.batch,
                "layout": row.layout,
                "dtype": row.dtype_name,
                "direction": row.direction,
                "ratio": stock.median / fast.median,
                "fastcnn_median_s": fast.median,
                "stock_median_s": stock.median,
                "fastcnn_least_s": fast.least,
                "stock_least_s": stock.least,
                "fastcnn_quartiles_s": fast.quartiles,
                "stock_quartiles_s": stock.quartiles,
                "rounds": len(fast.seconds),
                "calls_per_round": (fast.calls, stock.calls),
                "threads": torch.get_num_threads(),
                "isa": fastcnn.cpu_capability(),
                "torch": torch.__version__,
                **more,
                **rates(fast.median),
            }
        )
        pytestconfig.stash[_MEASURED].append(benchmark.extra_info)

    return run


@pytest.fixture
def compare(time_in_turns: Callable, peaks: Peaks) -> Callable:
    """Checks both sides, then times them in turn."""

    def run(comparison: Comparison, row: Row, op: str, group: str | None = None) -> None:
        with torch.set_grad_enabled(comparison.gradients):
            checked_and_timed(comparison, row, op, group or op)

    def checked_and_timed(comparison: Comparison, row: Row, op: str, group: str) -> None:
        try:
            outputs, fast_error = check(comparison.fast, comparison.expected, comparison.bounds, comparison.dtype)
        except WrongResult as error:
            pytest.fail(f"not timed, fastcnn's result is wrong: {op} {row}: {error}", pytrace=False)
        try:
            bounds = [_stock_slack(comparison.dtype) * b for b in comparison.bounds]
            stock_error = check(comparison.stock, comparison.expected, bounds, comparison.dtype, repeatable=False)[1]
        except WrongResult as error:
            pytest.fail(f"not timed, stock does not compute the same: {op} {row}: {error}", pytrace=False)
        checked = [t.clone() for t in outputs]
        measured = {
            "error_over_bound": fast_error,
            "stock_error_over_bound": stock_error * _stock_slack(comparison.dtype),
        }
        time_in_turns(
            comparison.fast, comparison.stock, row, op, measured, group, lambda s: _rates(comparison, s, peaks), checked
        )

    return run


def _stock_slack(dtype: torch.dtype) -> float:
    """How far stock may exceed the bound: its half-precision ops round every intermediate result to half."""
    return 1.0 if dtype == torch.float32 else 16.0


def _rates(comparison: Comparison, seconds: float, peaks: Peaks) -> dict:
    if comparison.flops:
        rate = comparison.flops / seconds
        return {"gflops": rate / 1e9, "fraction_of_peak": rate / peaks.sgemm, "peak": "sgemm"}
    if comparison.moved:
        rate = comparison.moved / seconds
        return {"gb_per_s": rate / 1e9, "fraction_of_peak": rate / peaks.copy(comparison.moved), "peak": "copy"}
    return {}
