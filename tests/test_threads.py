"""Equal bits for every run and any number of threads; forks, workers and threads that call at once."""

import functools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastcnn
import fastcnn.functional as F

THREADS = (1, 2, 4)
FORK_SECONDS = 60  # a child that waits for threads it does not have waits for ever


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensor(*size, dtype=torch.float32, layout=torch.contiguous_format):
    t = torch.randn(size, dtype=torch.float64).to(dtype)
    return t.to(memory_format=layout) if t.dim() == 4 else t


# Name: input, weight, then stride, padding, dilation, groups. All have work for several threads (more than 256
# thousand multiply-adds), some with fewer rows, images or channels than threads.
CONVOLUTIONS = {
    "dense-3x3": ((2, 64, 14, 14), (96, 64, 3, 3), (1, 1, 1, 1)),
    "dense-one-image": ((1, 256, 7, 7), (256, 256, 3, 3), (1, 1, 1, 1)),
    "dense-odd": ((3, 37, 17, 13), (41, 37, 3, 2), (2, 1, 1, 1)),
    "1x1": ((4, 128, 14, 14), (64, 128, 1, 1), (1, 0, 1, 1)),
    "1x1-stride-2": ((2, 128, 15, 15), (256, 128, 1, 1), (2, 0, 1, 1)),
    "first-layer": ((2, 3, 63, 63), (64, 3, 11, 11), (4, 2, 1, 1)),
    "grouped-4-per-group": ((2, 128, 14, 14), (128, 4, 3, 3), (1, 1, 1, 32)),
    "grouped-48-per-group": ((2, 96, 13, 13), (256, 48, 5, 5), (1, 2, 1, 2)),
    "depthwise": ((2, 96, 28, 28), (96, 1, 3, 3), (1, 1, 1, 96)),
    "depthwise-stride-2": ((1, 67, 29, 31), (67, 1, 5, 5), (2, 2, 1, 67)),
    "dilated": ((1, 64, 20, 20), (64, 64, 3, 3), (1, 4, 4, 1)),
    "one-pixel": ((2, 512, 1, 1), (64, 512, 3, 3), (1, 1, 1, 1)),
    "one-row": ((2, 256, 1, 5), (64, 256, 1, 5), (1, 2, 1, 1)),
    "1x1-stride-2-to-one-pixel": ((2, 256, 2, 2), (512, 256, 1, 1), (2, 0, 1, 1)),
}

POOLED, NORMED = (3, 35, 41, 43), (2, 96, 27, 29)
TABLE = ((0, 1, 2), (1, 2, 3), (0, 3), (0, 1, 2, 3))
# For max_unpool2d: each place several times, the same in every image.
PLACES = (torch.arange(35 * 41 * 43) * 7919 % 997).view(1, *POOLED[1:]).repeat(3, 1, 1, 1)
NORM = torch.linspace(0.5, 2, 48)  # an inference's variances


def drawn(f):
    """f with the generator as it was before."""

    def repeated(x):
        torch.manual_seed(0)
        return f(x)

    return repeated


# Every other op, as a function of its differentiable tensors, and their sizes.
OTHERS = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2), (POOLED,)),
    "max_pool2d-padded": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (POOLED,)),
    "max_pool2d-large-window": (lambda x: F.max_pool2d(x, 20, 3), (POOLED,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (POOLED,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (6, 7)), (POOLED,)),
    "adaptive_avg_pool2d-global": (lambda x: F.adaptive_avg_pool2d(x, 1), (POOLED,)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 5), (NORMED,)),
    "local_response_norm-towers": (lambda x: F.local_response_norm(x, 5, groups=2, activation="relu"), (NORMED,)),
    "lrn_max_pool2d": (lambda x: F.lrn_max_pool2d(x, 5, groups=2, activation="relu"), (NORMED,)),
    "lrn_max_pool2d-large-window": (lambda x: F.lrn_max_pool2d(x, 5, kernel_size=9, stride=2), (NORMED,)),
    "max_unpool2d": (lambda x: F.max_unpool2d(x, PLACES, 3, 2), (POOLED,)),
    "max_unpool2d-sum": (lambda x: F.max_unpool2d(x, PLACES, 3, 2, overlap="sum"), (POOLED,)),
    "sparse_conv2d": (lambda x, w, b: F.sparse_conv2d(x, w, b, TABLE), ((37, 4, 14, 14), (12, 5, 5), (4,))),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1),
        ((2, 64, 14, 14), (64, 48, 3, 3), (48,)),
    ),
    "local_conv2d": (
        lambda x, w, b: F.local_conv2d(x, w, b, 1, 1),
        ((35, 19, 8, 8), (8, 8, 21, 19, 3, 3), (21, 8, 8)),
    ),
    "subsample2d": (lambda x, w, b: F.subsample2d(x, w, b), ((37, 6, 28, 28), (6,), (6,))),
    "conv2d_bn_relu-training": (
        lambda x, w, g, b, r: F.conv2d_bn_relu(x, w, None, None, None, g, b, 2, 1, training=True, residual=r),
        ((3, 40, 27, 29), (48, 40, 3, 3), (48,), (48,), (3, 48, 14, 15)),
    ),
    "conv2d_bn_relu-inference": (
        lambda x, w, g, b: F.conv2d_bn_relu(x, w, None, NORM.to(x.dtype), NORM.to(x.dtype), g, b),
        ((3, 40, 27, 29), (48, 40, 3, 3), (48,), (48,)),
    ),
    # As a function of its input alone: the gradients of weight and bias are PyTorch's own.
    "batch_norm_relu": (
        lambda x: F.batch_norm_relu(x, *(NORM[:40].to(x.dtype) for _ in range(4))),
        ((3, 40, 27, 29),),
    ),
    "dropout": (drawn(lambda x: F.dropout(x, 0.3)), (POOLED,)),
    "stochastic_depth": (drawn(lambda x: F.stochastic_depth(x, 0.3, "row")), (POOLED,)),
    "drop_path": (drawn(lambda x: F.drop_path([x, 2 * x, 3 * x], 0.3, mode="row")), (POOLED,)),
}
# What one image gets depends on its place in the batch, or on the other images.
ON_THE_BATCH = {"conv2d_bn_relu-training", "dropout", "stochastic_depth", "drop_path"}
# Made of PyTorch's own operations, which in a forked child wait for ever for the threads of its pool; drawn from the
# process's one generator, which another thread may move between the seed and the draw.
PYTORCHS = {"dropout", "stochastic_depth", "drop_path"}


def convolution(name):
    x, w, (stride, padding, dilation, groups) = CONVOLUTIONS[name]
    return lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation, groups, activation="relu"), (x, w, (w[0],))


OPS = {**{f"conv2d-{name}": convolution(name) for name in CONVOLUTIONS}, **OTHERS}


def test_every_function_is_here():
    assert {name.partition("-")[0] for name in OPS} == set(F.__all__)


def inputs(name, dtype=torch.float32, layout=torch.contiguous_format):
    return [tensor(*size, dtype=dtype, layout=layout) for size in OPS[name][1]]


def outputs(name, tensors, roll=0):
    """The op in inference (on packed weights where it has them), in training, and its gradients; the output's are
    those for images `roll` places further on."""
    f = OPS[name][0]
    leaves = [torch.nn.Parameter(t.detach()) for t in tensors]
    with torch.no_grad():
        inference = f(*leaves)
    y = f(*leaves)
    g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view(y.shape).roll(roll, 0)
    return [inference, y.detach(), *torch.autograd.grad(y, leaves, g)]


def bits_equal(a, b):
    return all(p.equal(q) and p.stride() == q.stride() and not p.isnan().any() for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_inference_mode_records_nothing_even_where_gradients_are_enabled(name):
    leaves = [torch.nn.Parameter(t) for t in inputs(name)]
    with torch.inference_mode(), torch.enable_grad():
        y = OPS[name][0](*leaves)
    assert y.is_inference()
    assert not y.requires_grad
    with torch.no_grad():
        assert bits_equal([y], [OPS[name][0](*leaves)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("name", OPS)
def test_bits_do_not_depend_on_threads(name, dtype, layout):
    tensors = inputs(name, dtype, layout)
    torch.set_num_threads(1)
    want = outputs(name, tensors)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for _ in range(2):
            assert bits_equal(outputs(name, tensors), want), f"{threads} threads"


def test_bits_do_not_depend_on_the_batch():
    """Each image of a batch is computed as if alone."""
    for name in ("conv2d-dense-3x3", "conv2d-depthwise", "conv2d-1x1", "max_pool2d", "local_response_norm"):
        x, *rest = inputs(name)
        f = OPS[name][0]
        assert torch.cat([f(image, *rest) for image in x.split(1)]).equal(f(x, *rest))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", [name for name in OPS if name not in ON_THE_BATCH])
def test_bits_do_not_depend_on_the_place_in_the_batch(name, layout):
    """Outputs and the input's gradient of every image, at each place of a batch. A weight's adds the images up."""
    x, *rest = inputs(name, layout=layout)
    want = outputs(name, [x, *rest])[:3]
    for roll in range(1, min(3, len(x))):
        rolled = outputs(name, [x.roll(roll, 0).contiguous(memory_format=layout), *rest], roll)
        assert all(t.roll(roll, 0).equal(u) for t, u in zip(want, rolled))


# The backward kernels themselves: autograd has operations of PyTorch's own, which in a forked child wait for ever for
# the threads of its pool.
CONV, POOL = ((1, 1), (1, 1), (1, 1), 1), ((3, 3), (2, 2), (0, 0), (1, 1), False)
LINKS = ([3, 3, 2, 4], [0, 1, 2, 1, 2, 3, 0, 3, 0, 1, 2, 3], (1, 1), (0, 0))


def backward_calls():
    o = torch.ops.fastcnn
    x, w, g = tensor(2, 64, 14, 14), tensor(96, 64, 3, 3), tensor(2, 96, 14, 14)
    pooled, links, maps = tensor(*POOLED), tensor(37, 4, 14, 14), tensor(37, 6, 28, 28)
    peak, argmax = o.max_pool2d(pooled, *POOL)
    average, normed = ((3, 3), (2, 2), (0, 0), False, True, None), tensor(*NORMED)
    links_grad, maps_grad = tensor(37, 4, 10, 10), tensor(37, 6, 14, 14)
    return [
        lambda: o.conv2d_backward_input(g, w, x.shape, *CONV),
        lambda: o.conv2d_backward_weight(g, x, w.shape, *CONV),
        lambda: o.max_pool2d_backward(peak, argmax, pooled.shape, *POOL),
        lambda: o.max_pool2d_gather(pooled, argmax, *POOL),
        lambda: o.avg_pool2d_backward(peak, pooled.shape, False, *average),
        lambda: o.adaptive_avg_pool2d_backward(peak, pooled.shape, False, peak.shape[2:]),
        lambda: o.local_response_norm_backward(normed, normed, 5, 1e-4, 0.75, 1.0, 1, False),
        lambda: o.lrn_max_pool2d_backward(peak, argmax, pooled, 5, 1e-4, 0.75, 1.0, 1, False, *POOL),
        lambda: o.max_unpool2d_gather(pooled, PLACES),
        lambda: o.sparse_conv2d_backward_input(links_grad, torch.ones(12, 5, 5), links.shape, *LINKS),
        lambda: o.sparse_conv2d_backward_weight(links_grad, links, (5, 5), *LINKS)[0],
        lambda: o.subsample2d_backward_input(maps_grad, torch.ones(6), maps.shape, (2, 2), (2, 2), 1.0),
        lambda: o.subsample2d_backward_weight(maps_grad, maps, (2, 2), (2, 2), 1.0)[0],
    ]


def calls_on_strided_tensors():
    """What is copied before the kernel reads it is large enough for PyTorch's copy to use its pool."""
    o = torch.ops.fastcnn
    x, lines = tensor(64, 70, 60, 2).permute(3, 0, 2, 1), tensor(2, 64, 60, 140)[..., ::2]
    w, b = tensor(3, 3, 21, 19, 8, 8).permute(4, 5, 2, 3, 0, 1), tensor(42, 8, 8)[::2]
    few = tensor(2, 19, 8, 8)
    return [
        *(functools.partial(F.max_pool2d, t, 3, 2) for t in (x, lines)),
        *(functools.partial(F.lrn_max_pool2d, t, 5) for t in (x, lines)),
        lambda: F.local_conv2d(few, w, b, 1, 1),
        lambda: F.max_unpool2d(x, torch.arange(60 * 70).view(70, 60).t().expand(x.shape), 1),
        lambda: o.conv2d_backward_weight(tensor(0, 96, 14, 14), tensor(0, 64, 14, 14), (96, 64, 3, 3), *CONV),
    ]


def in_fork(work) -> int | None:
    """The exit status of a forked child that runs work(); None if it had to be killed because it hung."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)  # without the parent's pytest
    deadline = time.monotonic() + FORK_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


def test_fork_after_use_of_the_pool():
    torch.set_num_threads(4)
    calls = [functools.partial(OPS[name][0], *inputs(name)) for name in OPS if name not in PYTORCHS]
    calls += backward_calls() + calls_on_strided_tensors()
    with torch.no_grad():
        want = [call().numpy().tobytes() for call in calls]

    def child():
        with torch.no_grad():
            for i, call in enumerate(calls):
                assert call().numpy().tobytes() == want[i], i

    def grandchild():
        assert in_fork(child) == 0

    assert in_fork(child) == 0
    assert in_fork(grandchild) == 0
    child()  # the parent's pool still works


def test_fork_during_calls():
    """Another thread is inside a kernel, the arena or the pool when the process forks."""
    torch.set_num_threads(2)
    x, w = tensor(8, 64, 56, 56), tensor(64, 64, 3, 3)  # outputs of 6 MiB: from the arena
    want, stop = F.conv2d(x, w), threading.Event()

    def work():
        while not stop.is_set():
            assert F.conv2d(x, w).equal(want)

    def child():
        assert (F.conv2d(x, w).numpy() == want.numpy()).all()

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(work)
        try:
            for _ in range(10):
                assert in_fork(child) == 0
        finally:
            stop.set()
        busy.result()


def test_a_failing_child_is_seen():
    def child():
        raise AssertionError("planted")

    assert in_fork(child) == 1


class Images(torch.utils.data.Dataset):
    """Each item computes: in a worker, that is in a child of a process whose pool has been used."""

    def __init__(self, weight):
        self.weight = weight

    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = torch.full((1, 64, 14, 14), float(i + 1))
        return F.max_pool2d(F.conv2d(x, self.weight, padding=1), 3, 2)[0]


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_data_loader_workers(context):
    torch.set_num_threads(2)
    images = Images(tensor(96, 64, 3, 3))
    want = torch.stack([images[i] for i in range(len(images))])
    loader = torch.utils.data.DataLoader(
        images, 2, num_workers=2, multiprocessing_context=multiprocessing.get_context(context), timeout=FORK_SECONDS
    )
    assert torch.cat(list(loader)).equal(want)


def test_python_threads_at_once():
    """Two callers share torch's pool and the scratch memory of its threads."""
    torch.set_num_threads(2)
    tensors = {name: inputs(name) for name in OPS if name not in PYTORCHS}
    want = {name: outputs(name, t) for name, t in tensors.items()}
    together = threading.Barrier(2)

    def caller(order):
        together.wait()
        return {name for _ in range(2) for name in order if not bits_equal(outputs(name, tensors[name]), want[name])}

    with ThreadPoolExecutor(2) as pool:
        different = list(pool.map(caller, (list(tensors), list(reversed(tensors)))))
    assert different == [set(), set()]


# The main thread ends while calls are running; Python then waits for the thread. Tensors are left over.
EXIT = """
import threading, time
import torch
import fastcnn.functional as F

torch.set_num_threads(2)
x, w = torch.randn(8, 64, 56, 56), torch.nn.Parameter(torch.randn(64, 64, 3, 3))
left = []

def work():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        y = F.conv2d_bn_relu(F.conv2d(x, w), w, None, None, None, None, None, training=True)
        y.sum().backward()
    left.append(y)

threading.Thread(target=work).start()
used_before = threading.Thread(target=lambda: left.append(F.conv2d(x, w)), daemon=True)
used_before.start()
used_before.join()
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
time.sleep({seconds})
"""


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_interpreter_ends_during_a_call(seconds):
    root = str(Path(fastcnn.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", EXIT.replace("{seconds}", str(seconds))],
        capture_output=True, text=True, timeout=FORK_SECONDS, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# Padding spreads the small input over 2^28 elements and more, of which each thread copies a part; the limit leaves
# less address space than that.
NO_MEMORY = """
import resource
import torch
import fastcnn.functional as F

torch.set_num_threads(2)
x, w = torch.ones(2, 64, 14, 14), torch.ones(64, 64, 3, 3)
before = F.conv2d(x, w)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    F.conv2d(torch.ones(8, 1, 5, 5), torch.ones(64, 1, 3, 3), padding=8192, dilation=8192)
except MemoryError as error:
    print("MemoryError", error)
assert F.conv2d(x, w).equal(before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know the address space in use")
def test_error_in_a_worker_reaches_the_caller():
    """A thread of the pool that gets no memory raises where the op was called, and the pool works on."""
    root = str(Path(fastcnn.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "MemoryError std::bad_alloc\n"
