"""The GPU run without a GPU: every part that can runs, by tests/simt on small shapes, and what cannot is said."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fastcnn.ops
from bench import gpu_run
from bench._alternate import Timing
from bench._gate import WrongResult, check
from bench.gpu import layers, machine, networks, rivals, small, summary
from bench.gpu.machine import Ground
from bench.gpu.results import Budget, Results, run
from fastcnn._config import config
from tests import gpu
from tests.simt import library

ROOT = Path(__file__).parents[1]
simt = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
CPU = Ground(torch.device("cpu"), dry=True)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json", Console(quiet=True), 60.0)


def program(tmp_path, *options: str) -> tuple[subprocess.CompletedProcess, dict]:
    out = tmp_path / "out" / "results.json"
    command = [sys.executable, "bench/gpu_run.py", "--dry-run", "-o", str(out), *options]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    return done, json.loads(out.read_text())


@simt
def test_dry_run(tmp_path):
    done, data = program(tmp_path, "--seconds", "5400")  # compilers on a busy machine
    assert done.returncode == 0, done.stdout + done.stderr
    assert data["finished"]
    assert data["machine"]["dry_run"]
    assert data["machine"]["gpu"].startswith("no GPU")
    parts = data["parts"]
    assert parts["build"]["exit"] == 0
    assert "passed" in parts["tests"]["files"]["max_pool2d"]["summary"]
    assert parts["sanitizer"]["runs"] == {"alone": 0}
    assert set(parts["sanitizer"]["skipped"].values()) == {"there is no GPU"}
    rates = ("memory_bytes_per_s", "l2_bytes_per_s", "product_float32", "product_tf32", "mma_sync_f16", "mma_sync_tf32")
    assert all(parts["calibration"][rate] > 0 for rate in rates)
    jobs = [*layers.small_jobs(), *networks.small_jobs()]
    assert len(data["rows"]) == len(jobs)
    assert not [row for row in data["rows"] if "ratio" not in row], done.stdout
    assert {row["op"] for row in data["rows"]} == {job.op for job in layers.small_jobs()} | {"network", "training"}
    assert all(row["error_over_bound"] <= 1 for row in data["rows"] if "error_over_bound" in row)
    assert "no GPU was used: the times below mean nothing" in done.stdout
    assert "stock's time / fastcnn's" in done.stdout


@simt
def test_parts_without_time_are_left_out_visibly(tmp_path):
    skipped = [option for part in gpu_run.SHARES for option in ("--skip", part)]
    done, data = program(tmp_path, *skipped)
    assert done.returncode == 0, done.stdout + done.stderr
    assert data["rows"] == []
    for part in ("build", "tests", "sanitizer"):
        assert f"skipped {part}: --skip" in done.stdout
    assert "skipped product_float32: no time left" in done.stdout
    assert "conv2d small.conv b5 channels_last float16 forward and what follows: no time left" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "bench/gpu_run.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch finds no GPU: --dry-run shows what would run" in done.stderr


BRIDGE = """
import torch
from tests import gpu
from tests.simt import library

sent = []


def send(t):
    sent.append(t)
    return t.clone()


def pytest_configure(config):
    ops, found = library.load(), torch._C._dispatch_get_all_op_names()
    has_kernel = lambda name: torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    names = [name for name in found if name.startswith("fastcnn_simt::") and has_kernel(name)]
    gpu.take_over(names=frozenset(name.partition("::")[2] for name in names), ops=ops, send=send)


def pytest_unconfigure(config):
    print(f"{len(sent)} tensors went to the device")
"""


@simt
def test_the_ops_tests_run_on_another_device(tmp_path):
    """`pytest --gpu`, with simt for the GPU: values, strides, gradients of the second order."""
    (tmp_path / "bridge.py").write_text(BRIDGE)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    chosen = "test_batches or test_argument_forms or adjoint or gradcheck or (test_equals and 3x3 and float32)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bridge", "-p", "no:cacheprovider", "-k", chosen]
    command += ["tests/test_max_pool2d.py", "tests/test_conv_transpose2d.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    count = int(done.stdout.rpartition(" tensors went")[0].split()[-1])
    assert count > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_ops_tests_poison_the_devices_memory(dtype):
    made = []

    def op(x):
        made.append(2 * x)
        return made[-1], None

    x = torch.ones(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    y, _ = gpu._moved(op, torch.clone)(x)
    assert made[0].isnan().all()
    assert torch.equal(y, 2 * x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_tests_need_a_gpu():
    command = [sys.executable, "-m", "pytest", "--gpu", "tests/test_max_pool2d.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 4
    assert "--gpu: torch finds no GPU" in done.stderr


def test_a_killed_run_keeps_what_it_had(results):
    class Killed(BaseException):
        pass

    def measure(job) -> dict:
        if job == "third":
            raise Killed
        return {"row": job}

    with pytest.raises(Killed), results.part("layers", 60.0) as (record, budget):
        gpu_run.rows(results, record, budget, iter(["first", "second", "third"]), measure)
    data = json.loads(results.path.read_text())
    assert data["rows"] == [{"row": "first"}, {"row": "second"}]
    assert not data["finished"]


def test_a_part_that_fails_does_not_stop_the_run(results):
    with results.part("calibration", 60.0):
        raise RuntimeError("no such kernel")
    assert json.loads(results.path.read_text())["parts"]["calibration"]["failed"] == "RuntimeError: no such kernel"


def test_bandwidths_are_measured_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "find", lambda tool: None)
    monkeypatch.setattr(machine, "product_rate", lambda *_: 1.0)
    monkeypatch.setattr(machine, "copy_rate", lambda ground, moved: float(moved == 2**20))
    record: dict = {}
    with pytest.raises(RuntimeError, match="there is no nvcc"):
        machine.calibrate(Ground(torch.device("cpu"), dry=False), record, Budget(60.0), tmp_path, None)
    assert (record["memory_bytes_per_s"], record["l2_bytes_per_s"]) == (0.0, 1.0)
    assert record["product_bfloat16"] == 1.0


def test_every_op_is_tested_and_watched():
    ops = {module.name for module in pkgutil.iter_modules(fastcnn.ops.__path__) if not module.name.startswith("_")}
    assert ops <= set(gpu_run.TESTS)
    assert ops == {name.split()[0] for name in small.cases()}
    assert all((ROOT / f"tests/test_{name}.py").is_file() for name in gpu_run.TESTS)


def test_a_row_that_fails_does_not_stop_the_part(results):
    errors = {1: torch.OutOfMemoryError("CUDA out of memory\nmore"), 2: AttributeError("no shape")}

    def measure(job) -> dict:
        if job in errors:
            raise errors[job]
        return {"row": job}

    record: dict = {}
    gpu_run.rows(results, record, Budget(60.0), iter(range(4)), measure)
    assert record == {"done": 4, "failed_rows": 2}
    assert results.data["rows"][1:3] == [
        {"row": "1", "failed": "OutOfMemoryError: CUDA out of memory"},
        {"row": "2", "failed": "AttributeError: no shape"},
    ]


@pytest.mark.parametrize("sign", ["problems", "failed", "failed_rows", "refused_rows"])
def test_a_run_with_a_failure_does_not_exit_with_0(sign):
    assert gpu_run.went_wrong({"tests": {}, "layers": {"done": 1, sign: 1}})
    assert not gpu_run.went_wrong({"tests": {"skipped": {}}, "layers": {"done": 1}})


def test_rows_stop_when_the_time_is_up(results):
    record: dict = {}
    gpu_run.rows(results, record, Budget(0.0), iter("abc"), lambda job: {})
    assert record == {"skipped": {"3 rows, a and what follows": "no time left"}}
    assert results.data["rows"] == []


def test_a_command_is_ended_with_those_that_it_started(tmp_path):
    """When its time is up; what it printed is kept."""
    program = "import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {!r}])"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    done = run([sys.executable, "-c", program.format(child)], 1.5)
    assert (done.code, done.output) == (None, "started\n")
    assert run([sys.executable, "-c", "import time; time.sleep(4)"], 5.5).code == 0
    assert not (tmp_path / "alive").exists()


def compared_element(y):
    y[2, 2, 3, 3] = y[2, 2, 3, 3] * 1.5 + 1


def whole_image(y):
    y[3] = torch.nan  # as poisoned memory that nobody has written


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (compared_element, "fastcnn's result is wrong: output 0: 1 of"),
        (whole_image, "fastcnn's result is wrong: elements of images that are not compared are no numbers"),
    ],
)
@pytest.mark.parametrize("op", ["conv2d", "max_pool2d"])
def test_a_wrong_result_is_not_timed(monkeypatch, op, fault, message):
    """One in an image that is compared with float64, one in an image that is not."""
    job = next(j for j in layers.small_jobs() if j.op == op and j.row.batch == 5)
    builder = layers._BUILDERS[op]

    def planted(row, generator):
        layer = builder(row, generator)

        def fast(*inputs):
            y = layer.stock(*inputs).clone()
            fault(y)
            return y

        return layers.replace(layer, fast=fast)

    monkeypatch.setitem(layers._BUILDERS, op, planted)
    record = layers.measure(job, CPU, {}, 0.0)
    assert record["refused"].startswith(message)
    assert "ratio" not in record


def small_rivals(name: str) -> list[layers.Job]:
    return [j for j in layers.small_jobs() if rivals.OPS.get(j.op) == name]


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_computes_the_same(name):
    jobs = small_rivals(name)
    assert [j.row.case.name for j in jobs] == ["small.pointwise", "small.grouped"][: 1 if name == "cuBLAS" else 2]
    for job in jobs:
        record = layers.measure(job, CPU, {}, 0.0)
        assert record["op"] == f"conv2d, {name}"
        assert record["ratio"] > 0, record


def test_a_rival_that_computes_something_else_is_not_timed(monkeypatch):
    right = rivals.cublas
    monkeypatch.setitem(rivals.RIVALS, "cuBLAS", lambda case: lambda *tensors: 1.5 * right(case)(*tensors))
    record = layers.measure(small_rivals("cuBLAS")[0], CPU, {}, 0.0)
    assert record["refused"].startswith("stock computes something else")
    assert "ratio" not in record


def test_rivals_meet_what_triton_computes():
    """Every layer that goes to Triton, in 16 bits and TF32; only a product of matrices as they lie goes to cuBLAS."""
    jobs = [j for j in layers.jobs() if j.op in rivals.OPS]
    assert len(jobs) == len(set(map(str, jobs)))
    assert {j.precision for j in jobs} == {"float16", "tf32"}
    cases = {name: {j.row.case.name for j in jobs if rivals.OPS[j.op] == name} for name in rivals.RIVALS}
    assert cases["CUDA kernel"] == cases["torch.compile"] > cases["cuBLAS"]
    assert {"resnet50.layer2.0.downsample", "resnext50.layer1.0.conv2"} <= cases["CUDA kernel"] - cases["cuBLAS"]
    assert {name.partition(".")[0] for name in cases["torch.compile"]} == set(rivals.NETWORKS)


def test_the_cuda_kernels_rival_leaves_the_setting_alone():
    case = small_rivals("CUDA kernel")[0].row.case
    before, inputs = config.triton, (torch.randn(case.input_shape()), torch.randn(case.weight_shape))
    rivals.without_triton(case)(*inputs)
    assert config.triton is before


def test_a_network_whose_sides_differ_is_not_timed(monkeypatch):
    job = next(networks.small_jobs())
    right = networks.stock
    monkeypatch.setattr(networks, "stock", lambda call: lambda: right(call)() * 1.1)
    record = networks.measure(job, CPU, 0.0)
    assert "that rounding explains" in record["refused"]
    assert "ratio" not in record


def test_a_network_whose_gradients_differ_is_not_timed(monkeypatch):
    """Of equal losses: steps have no length."""
    right = networks.fastcnn.models.get_model

    def planted(name):
        model = right(name)
        next(model.parameters()).register_hook(lambda g: g if config.disabled else torch.zeros_like(g))
        return model

    monkeypatch.setattr(networks.fastcnn.models, "get_model", planted)
    record = networks.measure(next(j for j in networks.small_jobs() if j.training), CPU, 0.0)
    assert record["refused"].endswith("gradients differ, the first by 1 of its norm")
    assert "ratio" not in record


def test_a_network_with_auxiliary_classifiers_trains(monkeypatch):
    monkeypatch.setattr(networks, "alternate", lambda *_: (Timing((1.0,), 1), Timing((2.0,), 1)))
    record = networks.measure(networks.Job("googlenet", 1, "contiguous", torch.float32, False, True), CPU, 0.0)
    assert record["ratio"] == 2
    assert 0 < record["gradient_difference"] < 0.2


def test_tf32_is_allowed_its_operands():
    """A product of operands of ten bits lies within the widened bound, and one of eight bits does not."""
    job = next(j for j in layers.small_jobs() if j.tf32)
    checked, _ = layers.build(job, CPU)
    (bound,) = layers.widened(list(checked.bounds), job)
    layer = layers._BUILDERS["conv2d"](job.row, CPU.generator())

    def error(bits: int) -> float:
        rounded = [(t.detach().view(torch.int32) & -(1 << (23 - bits))).view(torch.float32) for t in layer.inputs]
        return float(((layer.stock(*rounded).double() - checked.expected[0]).abs() / bound).max())

    assert error(10) < 1
    assert error(2) > 1


def test_zero_gradients_are_refused_where_tf32_is_allowed():
    """Of a layer whose weight gradient sums over as many positions as AlexNet's conv2."""
    job = next(j for j in layers.small_jobs() if j.op == "conv2d" and j.row.direction == "backward")
    case = layers.replace(job.row.case, size=27)
    job = layers.replace(job, row=layers.replace(job.row, case=case, batch=32), tf32=True)
    checked, _ = layers.build(job, CPU)
    for expected, bound in zip(checked.expected, layers.widened(list(checked.bounds), job), strict=True):
        with pytest.raises(WrongResult):
            check(lambda y=expected: [torch.zeros_like(y, dtype=torch.float32)], [expected], [bound], torch.float32)


def test_jobs_cover_what_was_asked_for():
    """Each layer in each layout, type, TF32 setting and batch; the first round has all layers."""
    jobs, first = list(layers.jobs()), layers.layers_of_networks()
    assert [(job.op, job.row.case) for job in jobs[: len(first)]] == first
    forward = [j for j in jobs if j.row.direction == "forward" and j.op == "conv2d"]
    kinds = {(j.row.batch, j.row.layout, j.precision) for j in forward}
    assert len(kinds) == 3 * 2 * 4
    assert len(forward) == len(set(map(str, forward))) == len(kinds) * sum(op == "conv2d" for op, _ in first)
    whole = {(j.batch, j.layout, j.precision) for j in networks.jobs() if not j.training}
    assert whole == kinds


def test_predictions_are_of_the_chip_and_of_every_layer_of_the_baseline():
    predictions = layers.Predictions("NVIDIA H100 80GB HBM3")
    assert predictions.chip == "H100"
    assert layers.Predictions("NVIDIA GeForce GTX 1080").chip is None
    found = set()
    for job in layers.jobs():
        record = {"fastcnn_s": 1.0}
        predictions.add(job, record)
        if "predicted_s" in record:
            assert record["measured_over_predicted"] == pytest.approx(1 / record["predicted_s"])
            found.add(job.predicted_as)
    known = set(predictions._seconds)
    assert found == known, known - found


def test_summary():
    def row(layer, layout, fast, stock, **more):
        same = {"op": "conv2d", "precision": "tf32", "batch": 1, "direction": "forward"}
        times = {"fastcnn_s": fast, "stock_s": stock, "ratio": stock / fast}
        return {**same, "layer": layer, "layout": layout, **times, **more}

    rows = [
        row("a", "contiguous", 1.0, 4.0),
        row("b", "contiguous", 2.0, 2.0, fraction_of_peak=0.5),
        row("a", "channels_last", 2.0, 3.0, predicted_s=1e-6, measured_over_predicted=2e6),
        {"op": "conv2d", "refused": "wrong"},
    ]
    key = ("conv2d", "tf32", "contiguous", 1, "forward")
    assert summary.geometric_mean(r["ratio"] for r in summary.groups(rows)[key]) == pytest.approx(2.0)
    # The best of stock's layouts over the best of fastcnn's; b has only one.
    assert summary.against_best_layout(rows) == {("conv2d", "a", "tf32", 1, "forward"): 3.0}
    console = Console(width=200, record=True, quiet=True)
    for table in summary.tables(rows):
        console.print(table)
    assert [table.row_count for table in summary.tables(rows)] == [2, 1, 1]
