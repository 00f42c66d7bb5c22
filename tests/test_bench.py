"""The benchmarks refuse to time a wrong result, time both sides alike, and report what they measured."""

import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn
from bench import report
from bench._alternate import alternate
from bench._gate import WrongResult, check
from bench._layer import Layer, forward, sum_bounds
from bench._stock import NETWORKS
from bench._training import Step, errors, networks, random_batch
from tests.cases import ALEXNET, RESNET50, VGG16

ROOT = Path(__file__).parents[1]


def test_named_layers_add_up_to_the_published_networks():
    """Multiply-accumulates at batch 1, less the fully connected layers."""
    convs = [sum(case.macs() * case.count for case in network) for network in (ALEXNET, VGG16, RESNET50)]
    assert convs == [724_406_816 - 58_621_952, 15_470_264_320 - 123_633_664, 4_089_184_256 - 2_048_000]
    # LeNet-5 (its RBF layer counted), AlexNet and its one-tower variant.
    assert [case.macs for case in NETWORKS] == [326_520, 724_406_816, 714_188_480]


def conv3x3(fast, channels=512):
    """A 3x3 convolution over `channels` channels as the benchmarks compare it, with `fast` for fastcnn's side."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 9, 9, generator=generator)
    w = torch.randn(8, channels, 3, 3, generator=generator)
    bounds = sum_bounds(torch.conv2d, [True, True], channels * 9, [72, 98], torch.float32)
    return forward(Layer(fast, torch.conv2d, [x, w], [True, True], **bounds))


def gate(comparison):
    return check(comparison.fast, comparison.expected, comparison.bounds, comparison.dtype)


def one_product_missing(x, w):
    w = w.clone()
    w[3, 100, 1, 1] = 0
    return torch.conv2d(x, w)


def unwritten_corner(x, w):
    y = torch.conv2d(x, w)
    out = torch.empty_like(y)
    out.view(-1)[:-1] = y.view(-1)[:-1]
    return out


def one_element_off(x, w):
    y = torch.conv2d(x, w)
    y[1, 2, 3, 4] += 0.05  # of 68, the standard deviation of an output
    return y


def not_a_number(x, w):
    return torch.conv2d(x, w).index_fill_(0, torch.tensor([1]), torch.nan)


class Forgetful:
    """Right on the first call, one bit off on the second."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, w):
        self.calls += 1
        y = torch.conv2d(x, w)
        if self.calls > 1:
            y.view(-1)[0] = torch.nextafter(y.view(-1)[0], torch.tensor(torch.inf))
        return y


def test_gate_passes_the_right_result():
    outputs, error = gate(conv3x3(torch.conv2d))
    assert len(outputs) == 1
    assert 0 < error < 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (one_product_missing, "elements are wrong, the first at"),
        (one_element_off, r"1 of 784 elements are wrong, the first at \(1, 2, 3, 4\)"),
        (not_a_number, "392 of 784 elements are wrong"),
        (lambda x, w: torch.conv2d(x, w).half(), "got torch.float16"),
        (lambda x, w: torch.conv2d(x, w)[:, :7], r"got torch.float32 \[2, 7, 7, 7\], expected torch.float32 \[2, 8"),
        (Forgetful(), "two calls on the same input gave different bits"),
    ],
)
def test_gate_refuses(fault, message):
    with pytest.raises(WrongResult, match=message):
        gate(conv3x3(fault))


def test_gate_lets_stock_differ_from_call_to_call():
    c = conv3x3(Forgetful())
    assert check(c.fast, c.expected, c.bounds, c.dtype, repeatable=False)[1] < 1


@pytest.mark.parametrize("elements", [100, 100_000, 10_000_000])
def test_gate_sees_an_unwritten_element(elements):
    """Whatever the allocator's way with a block of that size: without poison, the last right result may lie there."""
    right = torch.ones(elements)

    def last_element_unwritten():
        out = torch.empty(elements)
        out[:-1] = right[:-1]
        return (out,)

    with pytest.raises(WrongResult):
        check(last_element_unwritten, [right.double()], [torch.zeros(())], torch.float32)


def test_alternate_treats_both_sides_alike():
    calls = []
    first, second = alternate(lambda: calls.append(0), lambda: calls.append(1), seconds=0, rounds=4)
    assert len(first.seconds) == len(second.seconds) == 4
    # The order of the blocks in the four rounds, after the calibration; every round has one block of each side.
    blocks = [side for i, side in enumerate(calls) if i == 0 or calls[i - 1] != side]
    assert blocks[-5:] == [0, 1, 0, 1, 0]
    assert first.quartiles[0] <= first.median <= first.quartiles[1]


PLANT = """
import pytest, torch
import fastcnn.functional as F

right = F.max_pool2d

def wrong(*args, **kwargs):
    y = right(*args, **kwargs)
    return y * (1 + 2**-20)

@pytest.fixture(autouse=True)
def plant(request, monkeypatch):
    if "contiguous" in request.node.name:
        monkeypatch.setattr(F, "max_pool2d", wrong)
"""


def test_a_planted_fault_is_not_timed(tmp_path):
    """The suite as a user runs it: the faulty row fails and is absent from the results, the others are there."""
    (tmp_path / "planted.py").write_text(PLANT)
    results = tmp_path / "results.json"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "FASTCNN_BENCH_SMOKE": "1"}
    env.pop("PYTEST_XDIST_WORKER", None)  # pytest-benchmark does not time in a worker
    command = [sys.executable, "-m", "pytest", "bench/test_bench_pool.py", "-k", "max_pool2d and forward"]
    command += ["-p", "planted", "--benchmark-only", f"--benchmark-json={results}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not timed, fastcnn's result is wrong: max_pool2d alexnet.pool1-b1-contiguous" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    (row,) = json.loads(results.read_text())["benchmarks"]
    info = row["extra_info"]
    assert info["layout"] == "channels_last"
    assert info["ratio"] == pytest.approx(info["stock_median_s"] / info["fastcnn_median_s"])
    assert info["peak"] == "copy"
    assert {"gb_per_s", "fraction_of_peak", "threads", "isa", "torch"} <= info.keys()


@pytest.mark.parametrize(("name", "size"), [("conv_local_11pct", 32), ("resnet18", 64)])
def test_training_steps_are_compared(name, size):
    """A step leaves the next one its numbers; a wrong weight in one layer shows.

    By direct sums, which round so much like stock's that no ReLU of these small maps tips: one would move a gradient
    by some percent.
    """
    with fastcnn.set_accuracy("strict"):
        fast, stock = (Step(n, random_batch(4, size), s) for n, s in zip(networks(name), (False, True)))
        first = fast()
        assert fast().equal(first)
        assert max(errors(fast, stock)) < 1e-3
        with torch.no_grad():
            next(p for p in fast.network.parameters() if p.dim() == 4)[0] *= 1.5
        error, stock_error = errors(fast, stock)
        assert error > 1e-2 > 1e-3 > stock_error


def test_memory_of_a_step():
    """In a fresh process: the highest mark of this one may lie far above what it holds."""
    program = "import torch; from bench._training import peak_bytes; print(peak_bytes(lambda: torch.ones(2**26)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 256 <= int(done.stdout) / 2**20 < 300


def record(layer="alexnet.conv3", ratio=2.0, **changes):
    """A measurement as the suite writes it, in which fastcnn takes a millisecond."""
    fields = {
        "op": "conv2d",
        "group": "conv2d dense",
        "layer": layer,
        "geometry": {"in_channels": 256, "out_channels": 384, "size": 13, "groups": 1, "count": 1},
        "batch": 1,
        "layout": "channels_last",
        "dtype": "float32",
        "direction": "forward",
        "ratio": ratio,
        "fastcnn_median_s": 1e-3,
        "stock_median_s": ratio * 1e-3,
        "fastcnn_quartiles_s": [0.9e-3, 1.1e-3],
        "stock_quartiles_s": [0.9e-3 * ratio, 1.1e-3 * ratio],
        "gflops": 123.0,
        "fraction_of_peak": 0.5,
        "peak": "sgemm",
    }
    return {**fields, **changes}


def write(path, records, isa="avx512"):
    environment = {
        "cpu": "A <CPU> & more",
        "threads": 2,
        "isa": isa,
        "torch_isa": "AVX512",
        "torch": "2.14.1",
        "fastcnn": "0.1.0",
        "python_version": "3.11",
        "system": "Linux x86_64",
        "environment": {"OMP_NUM_THREADS": "2"},
        "smoke": False,
        "peaks": {"sgemm_flops": 2e11, "copy_bytes_per_s": {"65536": 2e10, "268435456": 1e10}},
    }
    data = {"datetime": "2026-01-02T03:04:05.6+00:00", "fastcnn": environment}
    path.write_text(json.dumps({**data, "benchmarks": [{"extra_info": r} for r in records]}))
    return path


RECORDS = [
    record("alexnet.conv3", 4.0),
    record("alexnet.conv5", 0.5),
    record("alexnet.pool1", 12.0, op="max_pool2d", group="max_pool2d", layout="contiguous"),
    record("overhead.1x1x8x8", 0.8, op="call overhead", group="call overhead", direction="no_grad"),
]


def test_report_groups_and_geometric_means(tmp_path):
    run = report.load(write(tmp_path / "a.json", RECORDS))
    dense, pool, _ = report.groups(run.records.values())
    assert (dense.name, pool.name) == ("conv2d dense, forward", "max_pool2d, forward")
    assert dense.mean == pytest.approx(2**0.5)  # of 4 and 1/2
    assert (dense.worst["layer"], dense.losses, pool.losses) == ("alexnet.conv5", 1, 0)


def test_report_weighs_a_network_by_how_often_it_has_a_layer():
    assert report.geometric_mean([4.0, 0.5], [1, 2]) == pytest.approx(1.0)


def test_report_judges_the_targets(tmp_path):
    run = report.load(write(tmp_path / "a.json", RECORDS))
    verdicts = {target.name: target.judge(run) for target in report.TARGETS}
    mean = verdicts["dense convolution of three networks, batch 1 and 16"]
    worst = verdicts["dense convolution of three networks, worst layer"]
    assert (mean.value, mean.met, mean.rows) == (pytest.approx(2**0.5), True, 2)
    assert (worst.value, worst.met) == (0.5, False)
    assert verdicts["3x3 stride 2 max pool, NCHW"].met
    overhead = verdicts["nn.Conv2d call on 1x1x8x8, no_grad"]
    assert (overhead.value, overhead.met) == (pytest.approx(1.25), True)  # 1.25 times stock's time, of 1.5
    assert verdicts["alexnet inference, batch 16"] is None


class Page(html.parser.HTMLParser):
    """Counts tags by name and class, and collects what a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.bars, self.loads, self.tags, self.text = {}, [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.loads += [attrs[name] for name in ("src", "data") if name in attrs]
        self.loads += [attrs["href"] for _ in (0,) if tag == "link"]
        if tag == "rect":
            self.bars.setdefault(attrs["class"], []).append((float(attrs["x"]), float(attrs["width"])))

    def handle_data(self, data):
        self.text += data


def test_report_page(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.json", RECORDS)
    monkeypatch.setattr(sys, "argv", ["report.py", str(path), "--targets"])
    report.main()
    printed = capsys.readouterr().out
    assert "conv2d dense, forward" in printed
    assert "MISSED" in printed
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert not page.loads
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert {name: len(bars) for name, bars in page.bars.items()} == {"gain": 2, "loss": 2}
    assert "▼ 0.50x" in page.text
    assert "A <CPU> & more" in page.text  # escaped in the source
    # The axis of the first group runs from 1/2 to 4: one third of its 320 pixels lies below equal speed.
    assert page.bars["loss"][0] == (0.0, pytest.approx(320 / 3, abs=0.2))
    assert page.bars["gain"][0] == (pytest.approx(320 / 3, abs=0.2), pytest.approx(640 / 3, abs=0.2))


def test_report_compares_two_files(tmp_path, monkeypatch, capsys):
    one, two = write(tmp_path / "a.json", RECORDS), write(tmp_path / "b.json", RECORDS[:1], isa="avx2")
    monkeypatch.setattr(sys, "argv", ["report.py", str(one), str(two), "-o", str(tmp_path / "both.html")])
    report.main()
    assert "isa avx2" in capsys.readouterr().out
    page = Page((tmp_path / "both.html").read_text())
    assert {name: len(bars) for name, bars in page.bars.items()} == {"gain": 2, "gain b": 1, "loss": 2}


def test_report_refuses_a_file_without_measurements(tmp_path):
    with pytest.raises(SystemExit, match="holds no measurement"):
        report.load(write(tmp_path / "empty.json", []))
