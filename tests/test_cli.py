"""The commands: what they print where, and their exit status."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import fastcnn
from fastcnn import _library
from fastcnn.cli import app, doctor
from fastcnn.models import LeNet5


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def wrong_convolution(monkeypatch):
    """LeNet-5's output is off by a relative 1e-3, except where fastcnn is disabled."""
    forward = LeNet5.forward

    def off(self, x):
        y = forward(self, x)
        return y if fastcnn._config.config.disabled else y * 1.001

    monkeypatch.setattr(LeNet5, "forward", off)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_python_m_fastcnn():
    done = subprocess.run([sys.executable, "-m", "fastcnn", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert not done.stderr
    for command in ("doctor", "explain", "verify", "summary", "claims", "bench", "convert", "demo"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["verify"],
        ["verify", "lenet6"],
        ["verify", "lenet5", "--batch", 0],
        ["bench", "lenet6"],
        ["bench", "--threads", 0],
        ["explain", "conv3d"],
        ["explain", "conv2d"],
        ["explain", "conv2d", "--input", "1,96,27"],
        ["explain", "conv2d", "--input", "1,x,27,27"],
        ["explain", "conv2d", "--input", "1,96,27,27", "--groups", 5],
        ["explain", "lenet5", "--dtype", "int8"],
        ["explain", "lenet5", "--device", "tpu"],
        ["explain", "lenet5", "--input", "1,3,32,32"],
        ["demo", "--epochs", 0],
        ["demo", "--output", "no/such/directory/report.html"],
    ],
)
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Error" in result.stderr or "Usage" in result.stderr
    assert not result.stdout


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.stdout
    assert fastcnn.cpu_capability() in result.stdout
    assert "agree with float64" in result.stdout


def test_doctor_json():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["healthy"]
    names = {finding["name"] for finding in report["findings"]}
    assert {"fastcnn", "Python", "torch", "native library", "CPU", "threads", "GPU", "kernels", "self-test"} <= names
    assert {finding["status"] for finding in report["findings"]} <= {"ok", "note"}


def test_doctor_says_how_to_mend_a_library_that_does_not_load(monkeypatch):
    monkeypatch.setattr(_library, "load_error", ImportError("undefined symbol: x. Rebuild it here"))
    result = run("doctor")
    assert result.exit_code == 1
    assert "DEFECT native library" in result.stdout
    assert "-> undefined symbol: x. Rebuild it here" in result.stdout
    assert "self-test" not in result.stdout


def test_doctor_finds_wrong_kernels(monkeypatch):
    monkeypatch.setattr(fastcnn.functional, "conv2d", lambda *args, **kwargs: torch.conv2d(*args, **kwargs) * 1.0001)
    result = run("doctor")
    assert result.exit_code == 1
    assert "DEFECT self-test" in result.stdout


def test_doctor_finds_an_old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert doctor._torch().status == "defect"
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    assert doctor._torch().status == "ok"


def test_doctor_notes_too_many_threads():
    torch.set_num_threads(1024)
    finding = doctor._threads()
    assert finding.status == "note"
    assert "OMP_NUM_THREADS" in finding.advice


def test_verify():
    result = run("verify", "lenet5")
    assert result.exit_code == 0, result.output
    assert "c3 weight gradient" in result.stdout
    assert "passed: " in result.stdout
    assert "verifying" in result.stderr


def test_verify_json():
    report = json.loads(run("verify", "lenet5_dense", "--batch", 1, "--json").stdout)
    assert report["passed"]
    assert report["batch"] == 1
    assert all(check["error"] <= check["tolerance"] for check in report["checks"])


def test_verify_fails(wrong_convolution):
    result = run("verify", "lenet5")
    assert result.exit_code == 1
    assert "FAILED: " in result.stdout
    assert "worst is network" in result.stdout


@pytest.mark.parametrize("command", [["verify", "lenet5"], ["bench", "lenet5"], ["demo"]])
def test_pytorch_is_not_compared_with_itself(command, monkeypatch):
    monkeypatch.setattr(fastcnn._config.config, "disabled", True)
    result = run(*command)
    assert result.exit_code == 2
    assert "FASTCNN_DISABLE is set" in result.stderr


def test_bench_json():
    arguments = ("--batch", 1, "--batch", 2, "--runs", 2, "--threads", 1, "--json")
    report = json.loads(run("bench", "lenet5", "lenet5_dense", *arguments).stdout)
    assert report["threads"] == 1
    assert report["torch"] == torch.__version__
    cases = [(result["model"], result["batch"]) for result in report["results"]]
    assert cases == [("lenet5", 1), ("lenet5", 2), ("lenet5_dense", 1), ("lenet5_dense", 2)]
    assert all(result["ratio"] == result["torch_s"] / result["fastcnn_s"] for result in report["results"])


def test_bench_table():
    result = run("bench", "lenet5", "--batch", 2, "--runs", 1, "--training")
    assert result.exit_code == 0, result.output
    assert "forward and backward" in result.stdout
    assert "lenet5" in result.stdout


def test_bench_does_not_time_what_is_wrong(wrong_convolution):
    result = run("bench", "lenet5", "--batch", 1, "--runs", 1, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["results"] == []
    assert "lenet5: not timed" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["lenet5"],
        ["alexnet", "--dtype", "bfloat16"],
        ["conv2d", "--input", "1,96,27,27", "--out-channels", 256, "--kernel", 5, "--padding", 2, "--groups", 2],
        ["conv2d_bn_relu", "--input", "1,64,27,27", "--out-channels", 32, "--padding", 1],
        ["conv_transpose2d", "--input", "1,96,27,27", "--stride", 2, "--groups", 2],
        ["local_conv2d", "--input", "1,64,8,8", "--out-channels", 32, "--padding", 1],
        ["lrn_max_pool2d", "--input", "1,96,55,55", "--stride", 2, "--groups", 2],
        ["max_pool2d", "--input", "1,96,55,55", "--kernel", 3, "--stride", 2],
        ["avg_pool2d", "--input", "1,96,55,55", "--kernel", 3, "--stride", 2],
        ["local_response_norm", "--input", "1,96,55,55", "--kernel", 5],
    ],
)
def test_explain(arguments):
    result = run("explain", *arguments)
    assert result.exit_code == 0, result.output
    assert fastcnn.cpu_capability() in result.stdout
    assert not result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("model", ["lenet5", "resnet20", "squeezenet1_1"])
def test_explain_for_a_gpu_that_is_not_there(model):
    rows = json.loads(run("explain", model, "--device", "cuda", "--json").stdout)
    kernels = {row["kernel"] for row in rows}
    assert kernels
    assert all(kernel.endswith("(CUDA)") or kernel == "stock PyTorch (ATen)" for kernel in kernels)
    for row in rows:
        if row["kernel"] == "stock PyTorch (ATen)":
            stock = (
                "a stock module or function",
                "fastcnn computes floating-point",
                "fastcnn has no CUDA kernels here",
            )
            assert row["why"].startswith(stock)
    assert any(kernel.endswith("(CUDA)") for kernel in kernels) == (_library.cuda_missing == "")


def test_explain_json():
    rows = json.loads(run("explain", "lenet5", "--input", "2,1,32,32", "--json").stdout)
    assert [row["where"] for row in rows] == ["c1", "s2", "c3", "s4", "c5"]
