"""The CUDA ops on the CPU: any order of threads and blocks gives the same bits, no block touches another's output, and
the memory traffic is what the kernels promise. Their values are checked by the ops' own tests, with --simt."""

import ctypes
import os
from contextlib import contextmanager

import pytest
import torch

from tests.simt import library
from tests.simt.ground import Counters

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))

POOL3 = ((3, 3), (2, 2), (0, 0), (1, 1), False)
LRN = (5, 1e-4 / 5, 0.75, 2.0, 1, False)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# AlexNet's (Krizhevsky et al. 2012, section 3.5) at a third of their height and width, ResNet's, GoogLeNet's, odd ones.
SIZES = {"norm1": (2, 96, 19, 19), "norm2": (2, 256, 9, 9), "resnet": (1, 64, 28, 28), "odd": (3, 13, 7, 5)}


@pytest.fixture(scope="module")
def simt():
    return library.load()


@contextmanager
def setting(**values):
    names = {f"FASTCNN_SIMT_{name.upper()}": value for name, value in values.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def counted():
    """Yields a function that gives the traffic since."""
    ground = ctypes.CDLL(str(library.build(os.environ.get("FASTCNN_SIMT_SANITIZE", ""))))
    ground.fastcnn_simt_counters.restype = Counters
    with setting(count="1"):
        ground.fastcnn_simt_reset_counters()
        yield ground.fastcnn_simt_counters


def calls(o, size, dtype, layout):
    """Every op of this file with its backward pass, as name: (call, tensors whose bytes it must move)."""
    x, g = (torch.randn(size).to(dtype).to(memory_format=layout) for _ in range(2))
    y, argmax = torch.ops.fastcnn._max_pool2d(x, *POOL3)
    gy = torch.randn(y.shape).to(dtype).to(memory_format=layout)
    return {
        "local_response_norm": (lambda: o._local_response_norm(x, *LRN), (x, x)),
        "local_response_norm_backward": (lambda: o.local_response_norm_backward(g, x, *LRN), (g, x, x)),
        "max_pool2d": (lambda: o._max_pool2d(x, *POOL3), (x, y, argmax)),
        "max_pool2d_backward": (lambda: o.max_pool2d_backward(gy, argmax, x.shape, *POOL3), (gy, argmax, x)),
        "max_pool2d_gather": (lambda: o.max_pool2d_gather(x, argmax, *POOL3), (x, y, argmax)),
        "lrn_max_pool2d": (lambda: o._lrn_max_pool2d(x, *LRN, *POOL3), (x, y, argmax)),
        "lrn_max_pool2d_backward": (
            lambda: o.lrn_max_pool2d_backward(gy, argmax, x, *LRN, *POOL3),
            (gy, argmax, x, x),
        ),
    }


OPS = list(calls(torch.ops.fastcnn, (1, 8, 7, 7), torch.float32, torch.contiguous_format))


def flat(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_no_order_changes_a_bit(simt, op, size, dtype, layout):
    call, _ = calls(simt, SIZES[size], dtype, LAYOUTS[layout])[op]
    with setting(check_blocks="1"):
        want = flat(call())
    for order in ("reverse", "shuffle"):
        with setting(order=order):
            assert all(torch.equal(a, b) for a, b in zip(flat(call()), want, strict=True)), order


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", [op for op in OPS if "gather" not in op])
def test_traffic(simt, op, layout):
    """One read and one write: in distinct sectors, and for normalization in what the threads ask for; requests use
    whole sectors. (Pooling in NCHW reads every other value: its sectors serve neighbouring taps from the cache.)"""
    call, tensors = calls(simt, (2, 96, 24, 24), torch.float32, LAYOUTS[layout])[op]
    with counted() as counters:
        call()
        c = counters()
    least = sum(t.numel() * t.element_size() for t in tensors)
    assert 0 < c.read_bytes + c.written_bytes <= 1.1 * least
    if op.startswith("local_response_norm"):
        assert c.global_load.bytes + c.global_store.bytes == least
    if layout == "nhwc" or op.startswith("local_response_norm"):
        assert c.global_load.units <= 1.1 * c.global_load.ideal
        assert c.global_store.units <= 1.1 * c.global_store.ideal
