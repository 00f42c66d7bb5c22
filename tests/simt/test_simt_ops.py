"""The CUDA ops on the CPU: any order of threads and blocks gives the same bits, no block touches another's output, and
the memory traffic is what the kernels promise. Their values are checked by the ops' own tests, with --simt."""

import ctypes
import os
from contextlib import contextmanager

import pytest
import torch

from tests.cases import POOLS
from tests.simt import library
from tests.simt.ground import Counters

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))

POOL3 = ((3, 3), (2, 2), (0, 0), (1, 1), False)
LRN = (5, 1e-4 / 5, 0.75, 2.0, 1, False)
AVG3 = ((3, 3), (2, 2), (1, 1), False, True, None)
SUBSAMPLE = ((2, 2), (2, 2), 0.25)
# Of sparse convolution: counts and input maps; then stride and padding, as of local convolution, with its dilation.
TABLE = ((2, 0, 3), (0, 4, 1, 1, 2), (1, 1), (1, 2))
LOCAL = ((2, 1), (1, 0), (1, 2))
POINTWISE = ((1, 1), (0, 0), (1, 1), 1, 1e-5, True, 1)
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
    return {**pooling_calls(o, size, dtype, layout), **other_calls(o, size, dtype, layout)}


def other_calls(o, size, dtype, layout):
    """Those of sparse and local convolution have few channels, and no traffic to promise: windows share their bytes."""
    stock, draw = torch.ops.fastcnn, lambda *size: torch.randn(size).to(dtype)
    x, w = draw(*size).to(memory_format=layout), draw(size[1])
    few = draw(2, 5, 7, 8).to(memory_format=layout)
    sparse_w, local_w = draw(5, 3, 2), draw(4, 6, 9, 5, 3, 2)
    y, sparse_y = stock._subsample2d(x, w, w, *SUBSAMPLE), stock._sparse_conv2d(few, sparse_w, None, *TABLE)
    local_y = stock._local_conv2d(few, local_w, None, *LOCAL)
    g, pointwise = draw(*size).to(memory_format=layout), draw(16, size[1], 1, 1)
    norm = (w.abs(), w.abs(), w, None, 1e-5)
    return {
        "conv2d_bn_relu": (lambda: o._conv2d_bn_relu(x, pointwise, None, None, None, None, *POINTWISE), ()),
        "batch_norm_relu_backward": (
            lambda: o._batch_norm_relu_backward(g, x, None, *norm, True, False),
            2 * (g, x) + (x,),
        ),
        "batch_norm_relu_backward_residual": (
            lambda: o._batch_norm_relu_backward(g, x, x, *norm, True, True),
            2 * (g, x, x) + (x, x),
        ),
        "batch_norm_relu": (lambda: o._batch_norm_relu(x, w, w.abs(), w, None, 1e-5, True), (x, x)),
        "subsample2d": (lambda: o._subsample2d(x, w, w, *SUBSAMPLE), (x, y)),
        "subsample2d_backward_input": (lambda: o.subsample2d_backward_input(y, w, x.shape, *SUBSAMPLE), (x, y)),
        "subsample2d_backward_weight": (lambda: o.subsample2d_backward_weight(y, x, *SUBSAMPLE), (x, y)),
        "sparse_conv2d": (lambda: o._sparse_conv2d(few, sparse_w, None, *TABLE), ()),
        "sparse_conv2d_backward_input": (
            lambda: o.sparse_conv2d_backward_input(sparse_y, sparse_w, few.shape, *TABLE),
            (),
        ),
        "sparse_conv2d_backward_weight": (lambda: o.sparse_conv2d_backward_weight(sparse_y, few, (3, 2), *TABLE), ()),
        "local_conv2d": (lambda: o._local_conv2d(few, local_w, None, *LOCAL), ()),
        "local_conv2d_backward_input": (lambda: o.local_conv2d_backward_input(local_y, local_w, few.shape, *LOCAL), ()),
        "local_conv2d_backward_weight": (
            lambda: o.local_conv2d_backward_weight(local_y, few, (5, 3, 2), *LOCAL),
            (),
        ),
    }


def pooling_calls(o, size, dtype, layout):
    """Max unpooling looks twice at indices of planes that it makes in parts."""
    x, g = (torch.randn(size).to(dtype).to(memory_format=layout) for _ in range(2))
    y, argmax = torch.ops.fastcnn._max_pool2d(x, *POOL3)
    gy = torch.randn(y.shape).to(dtype).to(memory_format=layout)
    nhwc = layout is torch.channels_last
    _, at = torch.nn.functional.max_pool2d(x.double(), 3, 2, return_indices=True)
    avg, mean = torch.ops.fastcnn._avg_pool2d(x, *AVG3), torch.ops.fastcnn._adaptive_avg_pool2d(x, (1, 1))
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
        "avg_pool2d": (lambda: o._avg_pool2d(x, *AVG3), (x, avg)),
        "avg_pool2d_backward": (lambda: o.avg_pool2d_backward(avg, x.shape, nhwc, *AVG3), (avg, x)),
        "adaptive_avg_pool2d": (lambda: o._adaptive_avg_pool2d(x, (1, 1)), (x, mean)),
        "adaptive_avg_pool2d_uneven": (lambda: o._adaptive_avg_pool2d(x, (2, 3)), (x,)),
        "adaptive_avg_pool2d_backward": (
            lambda: o.adaptive_avg_pool2d_backward(mean, x.shape, nhwc, (1, 1)),
            (mean, x),
        ),
        "max_unpool2d": (lambda: o._max_unpool2d(gy, at, x.shape[2:], False), (gy, at, at, x)),
        "max_unpool2d_sum": (lambda: o._max_unpool2d(gy, at, x.shape[2:], True), (gy, at, at, x)),
        "max_unpool2d_gather": (lambda: o.max_unpool2d_gather(x, at), (x, at, y)),
    }


CALLS = calls(torch.ops.fastcnn, (1, 8, 7, 7), torch.float32, torch.contiguous_format)
OPS = list(CALLS)


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
@pytest.mark.parametrize("op", [op for op in OPS if "gather" not in op and CALLS[op][1]])
def test_traffic(simt, op, layout):
    """One read and one write: in distinct sectors, and for normalization in what the threads ask for; requests use
    whole sectors. (Other pooling in NCHW reads every other value: its sectors serve neighbouring taps from the cache.
    Max unpooling in parts takes what belongs to a part out of its sectors.)"""
    call, tensors = calls(simt, (2, 96, 24, 24), torch.float32, LAYOUTS[layout])[op]
    with counted() as counters:
        call()
        c = counters()
    least = sum(t.numel() * t.element_size() for t in tensors)
    assert 0 < c.read_bytes + c.written_bytes <= 1.1 * least
    if op.startswith("local_response_norm"):
        assert c.global_load.bytes + c.global_store.bytes == least
    whole = op.startswith("local_response_norm") or op in ("max_pool2d", "max_pool2d_backward")
    if (layout == "nhwc" and not op.startswith("max_unpool2d")) or whole:
        assert c.global_load.units <= 1.1 * c.global_load.ideal
        slots = op.startswith("batch_norm_relu_backward")  # whose sums lie by channels, for who adds them up
        assert c.global_store.units <= (1.25 if slots else 1.1) * c.global_store.ideal


def sectors(*traffic):
    return sum(t.units for t in traffic) / sum(t.ideal for t in traffic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.name)
def test_pooled_planes_are_read_by_whole_sectors(simt, case, dtype):
    """NCHW, whatever the width of a row. Of one image, blocks are so small that they read some rows twice."""
    args = [(v, v) if isinstance(v, int) else v for v in (case.kernel_size, case.stride, case.padding, 1)]
    x = torch.randn(case.input_shape(1)[:1] + (32,) + case.input_shape(1)[2:]).to(dtype)
    with counted() as counters:
        y, argmax = simt._max_pool2d(x, *args, case.ceil_mode)
        forward = counters()
    with counted() as counters:
        simt.max_pool2d_backward(y, argmax, x.shape, *args, case.ceil_mode)
        backward = counters()
    least = sum(t.numel() * t.element_size() for t in (x, y, argmax))
    for c in (forward, backward):
        assert sectors(c.global_load, c.global_store) <= 1.1
        assert 32 * (c.global_load.units + c.global_store.units) <= 1.5 * least
        assert c.read_bytes + c.written_bytes <= 1.1 * least


def test_counters_see_planes_read_past_shared_memory(simt):
    """Rows of which shared memory does not hold enough: every lane reads the values of its own window."""
    with counted() as counters:
        simt._max_pool2d(torch.randn(1, 2, 9, 2100), *POOL3)
        assert sectors(counters().global_load) > 2


@pytest.mark.parametrize("op", ["local_response_norm", "local_response_norm_backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_normalized_vectors_meet_no_bank_conflict(simt, size, dtype, op):
    call, _ = pooling_calls(simt, SIZES[size], dtype, torch.channels_last)[op]
    with counted() as counters:
        call()
        c = counters()
    assert c.shared_load.units == c.shared_load.ideal > 0
    assert c.shared_store.units == c.shared_store.ideal > 0


@pytest.mark.parametrize("op", ["local_response_norm", "local_response_norm_backward"])
@pytest.mark.parametrize("plane", [(55, 55), (27, 27), (13, 13), (11, 6)], ids=str)
def test_normalized_planes_that_begin_anywhere_take_few_sectors(simt, plane, op):
    """A warp's 128 pixels forward, or 96 backward, touch one sector more than they fill; so do a plane's last ones."""
    call, tensors = pooling_calls(simt, (2, 16, *plane), torch.float32, torch.contiguous_format)[op]
    with counted() as counters:
        call()
        c = counters()
    least = sum(t.numel() * t.element_size() for t in tensors)
    assert 32 * (c.global_load.units + c.global_store.units) <= 1.1 * least
    assert sectors(c.global_load, c.global_store) <= 1.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["lrn_max_pool2d", "lrn_max_pool2d_backward"])
@pytest.mark.parametrize("plane", [(55, 55), (27, 27)], ids=str)
def test_normalization_with_pooling_takes_few_sectors(simt, plane, op, layout):
    """AlexNet's maps: rows of 55, 27 and 13 elements begin anywhere in a sector, and narrow ones of y move together."""
    call, _ = pooling_calls(simt, (1, 64, *plane), torch.float32, LAYOUTS[layout])[op]
    with counted() as counters:
        call()
        c = counters()
    assert sectors(c.global_load, c.global_store) <= 1.1
