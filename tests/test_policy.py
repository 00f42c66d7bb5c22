"""Policy "fastest": what is timed, what is kept of it, and what runs; by a timer that answers as it is told."""

import contextlib
import json
import multiprocessing
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import fastcnn
import fastcnn.functional as F
from fastcnn._config import STOCK, config, road
from fastcnn.ops import _policy

X, W = (2, 16, 9, 9), (16, 16, 3, 3)


class Timer:
    """Gives the candidates, in their order, these seconds."""

    def __init__(self, *seconds: float):
        self.seconds, self.asked = seconds, []

    def __call__(self, calls, device):
        for call in calls:
            call()
        self.asked.append((len(calls), device.type))
        return [float(s) for s in self.seconds[: len(calls)]]


@pytest.fixture(autouse=True)
def fastest(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "cache_dir", tmp_path)
    monkeypatch.setattr(_policy, "_verdicts", {})
    with fastcnn.set_policy("fastest"):
        yield


def answers(monkeypatch, *seconds: float) -> Timer:
    timer = Timer(*seconds)
    monkeypatch.setattr(_policy, "timer", timer)
    return timer


@contextlib.contextmanager
def setting(owner, name, value):
    """torch's settings are properties, which monkeypatch would delete in the end."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def forget(monkeypatch):
    """What a new process knows."""
    monkeypatch.setattr(_policy, "_verdicts", {})


def ran(call) -> list[str]:
    """By which candidates a call's kernels ran, as explain has it."""
    rows = fastcnn.explain(call, X).rows
    return ["ATen" if "ATen" in row.kernel else "fastcnn" for row in rows]


def pool(x):
    return F.max_pool2d(x, 3, 2)


@pytest.mark.cpu
@pytest.mark.parametrize(("seconds", "winner"), [((1, 2), "fastcnn"), ((2, 1), "ATen"), ((1, 1), "fastcnn")])
def test_the_fastest_runs(monkeypatch, seconds, winner):
    timer = answers(monkeypatch, *seconds)
    for _ in range(3):
        assert ran(pool) == [winner]
    assert timer.asked == [(2, "cpu")]


@pytest.mark.parametrize("winner", [0, 1])
def test_every_function_is_right_by_either_candidate(monkeypatch, winner):
    x, w, scale = torch.randn(X), torch.randn(W), torch.rand(16) + 0.5
    at = torch.nn.functional.max_pool2d(x, 3, 2, return_indices=True)[1]
    local, links = torch.randn(7, 7, 5, 16, 3, 3), [[0, 1], [15, 3], [7]]
    calls = [
        lambda: F.conv2d(x, w, padding=1, activation="relu", residual=x),
        lambda: F.conv_transpose2d(x, w, stride=2),
        lambda: F.conv2d_bn_relu(x, w, None, scale, scale, scale, scale),
        lambda: F.max_pool2d(x, 3, 2, return_indices=True)[1],
        lambda: F.avg_pool2d(x, 3, 2),
        lambda: F.adaptive_avg_pool2d(x, 4),
        lambda: F.local_response_norm(x, 5, groups=2, alpha_mode="sum"),
        lambda: F.lrn_max_pool2d(x, 5),
        lambda: F.batch_norm_relu(x, scale, scale, scale, scale),
        lambda: F.subsample2d(x, scale, scale),
        lambda: F.local_conv2d(x, local),
        lambda: F.sparse_conv2d(x, w[0, :5], None, links),
        lambda: F.max_unpool2d(x[..., :4, :4], at, 3, 2, overlap="sum"),
    ]
    with fastcnn.set_policy("heuristic"):
        expected = [call() for call in calls]
    timer = answers(monkeypatch, *((1, 2) if winner == 0 else (2, 1)))
    for call, want in zip(calls, expected):
        torch.testing.assert_close(call(), want, rtol=1e-4, atol=1e-4)
    assert timer.asked == [(2, "cpu")] * len(calls)


@pytest.mark.cpu
def test_winograd_has_the_direct_kernel_for_a_rival(monkeypatch):
    timer = answers(monkeypatch, 2, 1, 3)
    module = fastcnn.nn.Conv2d(64, 64, 3, padding=1)
    (row,) = fastcnn.explain(module, (1, 64, 56, 56)).rows
    assert timer.asked == [(3, "cpu")]
    assert row.kernel.startswith("direct (")
    assert "policy 'fastest'" in row.why
    assert [line.partition(",")[0] for line in row.considered[-3:]] == [
        "fastcnn: 2000 ms", f"{_policy.DIRECT}: 1000 ms", "ATen: 3000 ms",
    ]  # fmt: skip
    with fastcnn.set_policy("heuristic"):
        (row,) = fastcnn.explain(module, (1, 64, 56, 56)).rows
        assert row.kernel.startswith("winograd (")
        assert "policy" not in row.why
    for rivals, how in [(3, {"padding": "same"}), (2, {"stride": 2}), (2, {"dilation": 2}), (2, {"groups": 8})]:
        F.conv2d(torch.randn(64, 56, 56), torch.randn(64, 64 // how.get("groups", 1), 3, 3), **how)
        assert timer.asked[-1] == (rivals, "cpu")
    with fastcnn.set_accuracy("strict"):  # another call: nothing is wrong with it, but Winograd's is out
        fastcnn.explain(module, (1, 64, 56, 56))
        assert timer.asked[-1] == (2, "cpu")


def test_what_a_verdict_holds_for(monkeypatch):
    """Shape, type, layout, arguments, gradients, accuracy, threads: each is measured for itself, and once."""
    timer = answers(monkeypatch, 1, 2, 3)
    x, w = torch.randn(X), torch.randn(W)
    threads = torch.get_num_threads()

    def with_threads(n):
        torch.set_num_threads(n)
        try:
            return F.conv2d(x, w)
        finally:
            torch.set_num_threads(threads)

    calls = [
        lambda: F.conv2d(x, w),
        lambda: F.conv2d(x[:1], w),
        lambda: F.conv2d(x.double(), w.double()),
        lambda: F.conv2d(x.contiguous(memory_format=torch.channels_last), w),
        lambda: F.conv2d(x, w, padding=1),
        lambda: F.conv2d(x, w, None, 1, 0, 1, 1, activation="relu"),
        lambda: F.conv2d(x, w.clone().requires_grad_()),
        lambda: with_threads(threads + 1),
        lambda: F.max_pool2d(x, 3),
        lambda: F.avg_pool2d(x, 3),
    ]
    for n, call in enumerate(calls, start=1):
        call(), call()
        assert len(timer.asked) == n
    with fastcnn.set_accuracy("fast"):
        F.conv2d(x, w)
    assert len(timer.asked) == len(calls) + 1
    with setting(torch.backends.mkldnn, "enabled", False):
        F.conv2d(x, w)
    assert len(timer.asked) == len(calls) + 2


def test_a_gpu_s_verdict_holds_for_the_precision_of_products(monkeypatch):
    monkeypatch.setattr(_policy, "_gpu_name", str)
    key = _policy._machine(torch.device("cuda"))
    with setting(torch.backends.cuda.matmul, "fp32_precision", "tf32"):
        assert _policy._machine(torch.device("cuda")) != key


def test_a_call_that_has_a_verdict_makes_no_strings(monkeypatch):
    written = []

    class Size(int):
        def __repr__(self):
            written.append(self)
            return "3"

    timer = answers(monkeypatch, 1, 2)
    x = torch.randn(X)
    F.max_pool2d(x, Size(3), 2)
    written.clear()
    F.max_pool2d(x, Size(3), 2)
    F.max_pool2d(x, 3, 2)
    assert written == []
    F.max_pool2d(x, [3, 3], [2, 2])
    F.max_pool2d(x, [3, 3], [2, 2])
    assert len(timer.asked) == 2


def test_strict_convolutions_are_not_left_to_tf32():
    """PyTorch's are no candidates where it may round float32."""

    def rivals(op, dtype=torch.float32, accuracy="strict"):
        with torch._subclasses.fake_tensor.FakeTensorMode():
            x, w = (torch.empty(size, dtype=dtype, device="cuda") for size in (X, W))
        with fastcnn.set_accuracy(accuracy):
            return _policy.rivals(op.__wrapped__, (x, w, *[None] * (op is F.conv2d_bn_relu) * 5), {})

    convolutions = (F.conv2d, F.conv2d_bn_relu, F.conv_transpose2d)
    with setting(torch.backends.cudnn.conv, "fp32_precision", "tf32"):
        assert [rivals(op) for op in convolutions] == [[], [], []]
        assert rivals(F.conv2d, torch.float16) == rivals(F.conv2d, accuracy="default") == [STOCK]
    with setting(torch.backends.cudnn.conv, "fp32_precision", "ieee"):
        assert [rivals(op) for op in convolutions] == [[STOCK]] * 3


def test_what_has_no_rival_is_not_timed(monkeypatch):
    timer = answers(monkeypatch, 1, 2)
    x, weight, mean, var = torch.randn(X), torch.ones(16), torch.zeros(16), torch.ones(16)
    F.batch_norm_relu(x, mean, var, weight, training=True)
    F.batch_norm_relu(x, mean, var, weight.requires_grad_())
    assert timer.asked == []
    assert len(_policy._verdicts) == 2
    assert list(config.cache_dir.rglob("*.json")) == []
    with torch.no_grad():
        F.batch_norm_relu(x, mean, var, weight)
    assert timer.asked == [(2, "cpu")]


def test_gradients_are_timed_too(monkeypatch):
    """The candidates run forward and backward, on copies: nothing is accumulated."""
    backward = []
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        backward.append(1)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    answers(monkeypatch, 9, 1)
    x, w = torch.randn(X), torch.nn.Parameter(torch.randn(W))
    y = F.conv2d(x, w)
    assert len(backward) == 4  # two candidates: once to see that they can, once by this test's timer
    assert w.grad is None
    y.sum().backward()
    reference = w.detach().clone().requires_grad_()
    torch.nn.functional.conv2d(x, reference).sum().backward()
    torch.testing.assert_close(w.grad, reference.grad, rtol=1e-4, atol=1e-4)


class Lock:
    """Fails where the real one would wait for ever."""

    def __init__(self, entered=lambda: None, leaving=lambda: None):
        self.lock, self.entered, self.leaving = threading.Lock(), entered, leaving

    def __enter__(self):
        assert self.lock.acquire(blocking=False), "measuring calls what measures"
        self.entered()

    def __exit__(self, *exc_info):
        self.leaving()
        self.lock.release()


def test_measuring_within_a_checkpoint(monkeypatch):
    """Its hooks would run the block again, and with it the call that is being measured."""
    monkeypatch.setattr(_policy, "_measuring", Lock())
    timer = answers(monkeypatch, 1, 2)
    x, w = torch.randn(X), torch.randn(W, requires_grad=True)
    checkpoint(lambda x: F.conv2d(x.sin(), w), x, use_reentrant=False).sum().backward()
    assert len(timer.asked) == 1
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        F.conv2d(x, w, padding=1)
    assert len(timer.asked) == 2


def test_function_modes_do_not_see_the_candidates(monkeypatch):
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    timer = answers(monkeypatch, 1, 2)
    x = torch.randn(X)
    with Watch():
        pool(x)
    assert len(timer.asked) == 1
    assert [func for func in seen if func.__name__ in ("max_pool2d", "clone")] == [F.max_pool2d]


FULL = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't"), MemoryError()


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", [(_policy, "timer"), (_policy, "_copies"), (torch.nn.functional, "max_pool2d")])
def test_out_of_memory_is_no_verdict(monkeypatch, error, place):
    def full(*args, **kwargs):
        raise error

    x = torch.randn(X)
    want = torch.nn.functional.max_pool2d(x, 3, 2)
    with monkeypatch.context() as patch:
        answers(patch, 1, 2)
        patch.setattr(*place, full)
        with pytest.warns(RuntimeWarning, match="max_pool2d: policy 'fastest' lacks the memory to time it"):
            assert torch.equal(pool(x), want)
    assert _policy._verdicts == {}
    assert list(config.cache_dir.rglob("*.json")) == []
    pool(x)
    assert len(_policy._verdicts) == 1


def test_a_verdict_of_another_thread(monkeypatch):
    """It is there before the next may measure, and not written again."""
    held = []
    monkeypatch.setattr(_policy, "_measuring", Lock(leaving=lambda: held.append(dict(_policy._verdicts))))
    timer = answers(monkeypatch, 1, 2)
    pool(torch.randn(X))
    assert len(held[0]) == 1
    (path,) = config.cache_dir.rglob("*.json")
    path.unlink()
    forget(monkeypatch)
    monkeypatch.setattr(_policy, "_measuring", Lock(entered=lambda: _policy._verdicts.update(held[0])))
    pool(torch.randn(X))
    assert len(timer.asked) == 1
    assert not path.exists()


def test_timing_leaves_running_statistics_alone(monkeypatch):
    answers(monkeypatch, 1, 2)
    x, w, mean, var = torch.randn(X), torch.randn(W), torch.zeros(16), torch.ones(16)
    F.conv2d_bn_relu(x, w, None, mean, var, None, None, training=True)
    with fastcnn.set_policy("heuristic"):
        once_mean, once_var = torch.zeros(16), torch.ones(16)
        F.conv2d_bn_relu(x, w, None, once_mean, once_var, None, None, training=True)
    assert torch.equal(mean, once_mean)
    assert torch.equal(var, once_var)


def test_a_wrong_call_raises_as_ever(monkeypatch):
    timer = answers(monkeypatch, 1, 2)
    with pytest.raises(RuntimeError, match="expected 4D weight"):
        F.conv2d(torch.randn(X), torch.randn(16, 16, 3))
    with pytest.raises(TypeError, match="expected weight to be a Tensor"):
        F.conv2d(torch.randn(X), None)
    with pytest.raises(TypeError, match="expected weight to be a Tensor"):
        F.conv2d(torch.randn(X), [1])
    assert timer.asked == []
    assert road.candidate == ""
    assert list(config.cache_dir.rglob("*.json")) == []


@pytest.mark.cpu
def test_a_candidate_that_cannot_is_named(monkeypatch):
    """Only the default's errors are the call's."""

    def refuses(*args, **kwargs):
        raise RuntimeError("not here")

    timer = answers(monkeypatch, 1)
    monkeypatch.setattr(torch.nn.functional, "max_pool2d", refuses)
    (row,) = fastcnn.explain(pool, X).rows
    assert timer.asked == [(1, "cpu")]
    assert row.considered[-1] == "ATen: cannot run it: not here"


def test_verdicts_outlive_the_process(monkeypatch):
    timer = answers(monkeypatch, 2, 1)
    pool(torch.randn(X))
    (path,) = config.cache_dir.rglob("*.json")
    data = json.loads(path.read_text())
    assert (data["winner"], data["seconds"]) == (STOCK, {"fastcnn": 2.0, STOCK: 1.0})
    library = str(Path(fastcnn._library._C.__file__).stat().st_mtime_ns)
    for part in (library, torch.__version__, fastcnn.__version__, "max_pool2d", "[2, 16, 9, 9]", "torch.float32"):
        assert part in data["key"]
    forget(monkeypatch)
    assert pool(torch.randn(X)).shape == (2, 16, 4, 4)
    assert len(timer.asked) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x00\xff",
        lambda text: text.replace("winner", "loser"),
        lambda text: text.replace('"ATen"', '"unheard of"', 1),
        lambda text: text.replace("max_pool2d", "min_pool2d"),
    ],
    ids=["cut", "empty", "list", "bytes", "no_winner", "unknown_winner", "other_key"],
)
def test_a_corrupt_file_is_measured_anew(monkeypatch, damage):
    timer = answers(monkeypatch, 2, 1)
    pool(torch.randn(X))
    (path,) = config.cache_dir.rglob("*.json")
    whole = path.read_text()
    path.write_text(damage(whole))
    forget(monkeypatch)
    with pytest.warns(RuntimeWarning, match="fastcnn measures anew: the verdict in .* is unreadable"):
        pool(torch.randn(X))
    assert len(timer.asked) == 2
    assert json.loads(path.read_text())["winner"] == STOCK
    forget(monkeypatch)
    with warnings.catch_warnings(action="error"):
        pool(torch.randn(X))
    assert len(timer.asked) == 2


def test_a_cache_directory_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(config, "cache_dir", tmp_path / "file")
    timer = answers(monkeypatch, 2, 1)
    with pytest.warns(RuntimeWarning, match="fastcnn keeps a verdict for this process only"):
        pool(torch.randn(X))
    pool(torch.randn(X))
    assert len(timer.asked) == 1


def _measure_in_a_process(folder, name) -> bool:
    config.cache_dir = folder
    _policy.timer = Timer(*((1, 2) if name % 2 else (2, 1)))
    with fastcnn.set_policy("fastest"), warnings.catch_warnings(action="error"):
        for n in range(1, 6):
            _policy._verdicts.clear()
            pool(torch.randn(n, 16, 9, 9))
    return True


def test_several_processes(tmp_path):
    """They write the same files at once: each is whole, one process's or the other's, and nothing else is left."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as workers:
        assert all(workers.starmap(_measure_in_a_process, [(tmp_path, n) for n in range(4)]))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {json.loads(path.read_text())["winner"] for path in files} <= {"fastcnn", STOCK}


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch):
    """As far as the policy can tell."""
    timer = answers(monkeypatch, 2, 1)
    monkeypatch.setattr(_policy, "_capturing", lambda x: True)
    with pytest.warns(
        RuntimeWarning, match="max_pool2d: policy 'fastest' does not time while a CUDA graph is captured"
    ):
        rows = fastcnn.explain(pool, X).rows
    assert "does not time while a CUDA graph is captured: the default runs" in rows[0].why
    assert timer.asked == []


def test_tracing_and_tensors_without_data_take_the_default(monkeypatch):
    timer = answers(monkeypatch, 2, 1)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert pool(torch.empty(X)).shape == (2, 16, 4, 4)
    torch.func.vmap(pool)(torch.randn(3, *X))
    torch.compile(pool, backend="eager", fullgraph=True)(torch.randn(X))
    assert timer.asked == []


def test_disabled_stays_disabled(monkeypatch):
    timer = answers(monkeypatch, 1, 2)
    with fastcnn._config.disabled():
        assert ran(pool) == ["ATen"]
    assert timer.asked == []


def test_clear_cache_drops_verdicts(monkeypatch):
    timer = answers(monkeypatch, 1, 2)
    pool(torch.randn(X))
    fastcnn.clear_cache()
    assert list(config.cache_dir.rglob("*.json")) == []
    pool(torch.randn(X))
    assert len(timer.asked) == 2


def test_clear_cache_where_nothing_can_be_deleted(monkeypatch):
    def refuses(path, missing_ok):
        raise PermissionError(f"{path} stays")

    answers(monkeypatch, 1, 2)
    pool(torch.randn(X))
    monkeypatch.setattr(Path, "unlink", refuses)
    with pytest.warns(RuntimeWarning, match="fastcnn leaves a verdict in its cache: .* stays"):
        fastcnn.clear_cache()
    assert _policy._verdicts == {}


def test_on_the_clock():
    """The real timer, end to end: seconds that are some."""
    x = torch.randn(X)
    torch.testing.assert_close(pool(x), torch.nn.functional.max_pool2d(x, 3, 2))
    (verdict,) = _policy._verdicts.values()
    assert set(verdict.seconds) == {"fastcnn", STOCK}
    assert all(1e-7 < s < 1 for s in verdict.seconds.values())
    assert verdict.winner == min(verdict.seconds, key=verdict.seconds.__getitem__)
