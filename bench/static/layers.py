"""Named layers, and what fastcnn's CUDA ops start for them: found by running the ops' own host code on the CPU."""

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcnn.ops._face import TF32
from tests.cases import ConvCase, LRNCase, PoolCase, find
from tests.cases.geometry import pair
from tests.simt import library
from tests.simt.ground import Counters

from .bound import Split, Work
from .toolchain import demangle, short

BATCH = 128
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
Call = tuple[Callable[[], object], tuple[Tensor, ...]]  # what to run, and the tensors it must read or write


@dataclass(frozen=True)
class Layer:
    case: ConvCase | LRNCase | PoolCase
    op: str
    dtype: torch.dtype
    layout: str
    pool: PoolCase | None = None  # that a normalization is fused with
    tf32: bool = False
    batch: int = BATCH

    @property
    def backward(self) -> bool:
        return self.op.endswith("_backward")

    def __str__(self) -> str:
        name = self.case.name + (f"+{self.pool.name.split('.')[1]}" if self.pool else "")
        dtype = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[self.dtype]
        dtype = "tf32" if self.tf32 else dtype
        batch = "" if self.batch == BATCH else f" batch {self.batch}"
        return f"{name} {'backward' if self.backward else 'forward'} {self.layout} {dtype}{batch}"


def all_layers() -> list[Layer]:
    kinds = ((torch.float32, "nchw"), (torch.float32, "nhwc"), (torch.bfloat16, "nhwc"))
    norms, pools = (
        ("alexnet.lrn1", "alexnet.lrn2"),
        (
            *(
                "alexnet.pool1",
                "alexnet.pool2",
                "alexnet.pool5",
                "resnet50.maxpool",
                "googlenet.pool1",
                "googlenet.pool2",
            ),
        ),
    )
    convs = (
        *(f"alexnet.conv{i}" for i in range(2, 6)),
        *("vgg16.conv2_2", "vgg16.conv3_1", "vgg16.conv3_2", "vgg16.conv4_1", "vgg16.conv4_2", "vgg16.conv5_1"),
    )
    layers = []
    for dtype, layout in kinds:
        for way in ("", "_backward"):
            layers += [Layer(find(name), f"local_response_norm{way}", dtype, layout) for name in norms]
            layers += [Layer(find(name), f"max_pool2d{way}", dtype, layout) for name in pools]
            pairs = (("alexnet.lrn1", "alexnet.pool1"), ("alexnet.lrn2", "alexnet.pool2"))
            layers += [Layer(find(n), f"lrn_max_pool2d{way}", dtype, layout, find(p)) for n, p in pairs]
    layers += [Layer(find(name), "conv2d", torch.float16, "nhwc") for name in convs]
    # Few tiles: of vgg16.conv5_1 one image's 196 pixels times 512 channels.
    layers += [Layer(find(name), "conv2d", torch.float16, "nhwc", batch=1) for name in ("vgg16.conv4_2", convs[-1])]
    layers += [Layer(find(name), "conv2d", torch.float32, at, tf32=True) for at in LAYOUTS for name in convs]
    return [layer for layer in layers if registered(layer)]


def registered(layer: Layer) -> bool:
    name = layer.op if layer.backward else f"_{layer.op}"
    library.load()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastcnn_simt::{name}", "CPU")


def prepare(layer: Layer, batch: int, small: bool, filled: bool) -> Call:
    """small: convolutions sum over fewer channels. filled: with data, else as memory comes."""
    ops, case = library.load(), layer.case
    shape = list(case.input_shape(batch))
    if small:
        shape = reduced(layer, shape)
    n, c, h, w = shape

    def tensor(*size: int, dtype=layer.dtype) -> Tensor:
        empty = torch.empty(size, dtype=dtype, memory_format=LAYOUTS[layer.layout])
        return empty.normal_() if filled and dtype.is_floating_point else empty.zero_() if filled else empty

    x = tensor(*shape)
    if isinstance(case, ConvCase):
        weight = torch.empty(case.out_channels, c // case.groups, *pair(case.kernel_size), dtype=layer.dtype)
        geometry = [*pair(case.stride), *pair(case.padding), *pair(case.dilation), case.groups, 0]
        oh, ow = replace(case, size=(h, w)).output_size
        y = torch.empty(n, case.out_channels, oh, ow, dtype=layer.dtype, device="meta")
        accuracy = 1 + layer.tf32 * TF32
        return (lambda: ops._conv2d(x, weight.zero_(), None, None, None, geometry, False, accuracy)), (x, weight, y)
    pool = layer.pool or case
    norm = ()
    if isinstance(case, LRNCase):
        alpha = case.alpha if case.alpha_mode == "sum" else case.alpha / case.window
        norm = (case.window, alpha, case.beta, case.k, case.groups, False)
    if isinstance(pool, LRNCase):
        if layer.backward:
            g = tensor(*shape)
            return (lambda: ops.local_response_norm_backward(g, x, *norm)), (g, x, x)
        return (lambda: ops._local_response_norm(x, *norm)), (x, x)
    window = (pair(pool.kernel_size), pair(pool.stride), pair(pool.padding), (1, 1), pool.ceil_mode)
    size = torch.nn.functional.max_pool2d(
        torch.empty(1, 1, h, w), *map(pair, (pool.kernel_size, pool.stride, pool.padding)), ceil_mode=pool.ceil_mode
    ).shape[2:]
    argmax, g = tensor(n, c, *size, dtype=torch.uint8), tensor(n, c, *size)
    calls = {
        "max_pool2d": (lambda: ops._max_pool2d(x, *window), (x, g, argmax)),
        "max_pool2d_backward": (lambda: ops.max_pool2d_backward(g, argmax, x.shape, *window), (g, argmax, x)),
        "lrn_max_pool2d": (lambda: ops._lrn_max_pool2d(x, *norm, *window), (x, g, argmax)),
        "lrn_max_pool2d_backward": (
            lambda: ops.lrn_max_pool2d_backward(g, argmax, x, *norm, *window),
            (g, argmax, x, x),
        ),
    }
    return calls[layer.op]


def reduced(layer: Layer, shape: list[int]) -> list[int]:
    if isinstance(layer.case, ConvCase):
        shape[1] = 32 * layer.case.groups  # the outputs, and with them the tiles, stay
    return shape


class LaunchRecord(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, ...]
    threads: int
    shared: int

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)


@contextmanager
def setting(name: str, value: str = "1") -> Iterator[ctypes.CDLL]:
    ground = ctypes.CDLL(str(library.build(os.environ.get("FASTCNN_SIMT_SANITIZE", ""))))
    ground.fastcnn_simt_counters.restype = Counters
    ground.fastcnn_simt_launches.restype = ctypes.c_uint64
    ground.fastcnn_simt_set(name.encode(), value.encode())
    try:
        yield ground
    finally:
        ground.fastcnn_simt_set(name.encode(), None)


def kernel_of(closure: str) -> str:
    """The kernel in the demangled type of launch()'s closure."""
    start = re.search(r"launch<\s*&?\(?", closure).end()
    return short(closure[start:])


def launches(call: Callable[[], object]) -> list[Launch]:
    """What the call would start, none of which is run."""
    with setting("FASTCNN_SIMT_TRACE") as ground:
        ground.fastcnn_simt_reset_launches()
        call()
        records = (LaunchRecord * ground.fastcnn_simt_launches(None, ctypes.c_uint64(0)))()
        ground.fastcnn_simt_launches(records, ctypes.c_uint64(len(records)))
    names = [f"_Z{record.type.decode()}" for record in records]
    closures = demangle(names)
    return [
        Launch(kernel_of(closures[name]), tuple(r.grid), math.prod(r.block), r.shared)
        for name, r in zip(names, records)
    ]


@dataclass(frozen=True)
class Traffic:
    """Counted on a reduced layer that the same kernel runs."""

    sectors: float  # of global memory, per least number that the requests' bytes need
    conflicts: float  # cycles of shared memory per ideal cycle; where there is ldmatrix, of it alone
    bytes: float  # in distinct sectors, per byte that must move
    requests: float  # of warps to global memory, per element of x
    shared_requests: float


def count(layer: Layer, kernel: str) -> Traffic | None:
    """None where no reduced layer starts this kernel."""
    batch = 1
    while main(launches(prepare(layer, batch, small=True, filled=False)[0])).kernel != kernel:
        batch *= 2
        if batch > BATCH:
            return None
    call, tensors = prepare(layer, batch, small=True, filled=True)
    with setting("FASTCNN_SIMT_COUNT") as ground:
        ground.fastcnn_simt_reset_counters()
        call()
        c = ground.fastcnn_simt_counters()
    loads, stores = c.global_load, c.global_store
    shared = (c.shared_load, c.shared_store, c.ldmatrix)
    # Of a matrix product the epilogue uses shared memory, too, and of the reduced sum it is a large part.
    looped = (c.ldmatrix,) if c.ldmatrix.requests else shared
    elements = math.prod(reduced(layer, list(layer.case.input_shape(batch))))
    least = sum(t.numel() * t.element_size() for t in tensors)
    return Traffic(
        (loads.units + stores.units) / (loads.ideal + stores.ideal),
        sum(t.units for t in looped) / max(1, sum(t.ideal for t in looped)),
        (c.read_bytes + c.written_bytes) / least,
        (loads.requests + stores.requests) / elements,
        sum(t.requests for t in shared) / elements,
    )


def counted_as(layer: Layer, kernel: str) -> tuple:
    """Layers of which this is the same need be counted once."""
    case = layer.case
    return (kernel, case.kernel_size, case.stride) if isinstance(case, ConvCase) else (layer,)


def main(started: list[Launch]) -> Launch:
    """The launch that does the layer's work: packing and reducing go before and after it."""
    if not started:
        raise RuntimeError("the op started no kernel")
    return max(started, key=lambda launch: ("mma_kernel" in launch.kernel, launch.blocks * launch.threads))


def tiles(layer: Layer, launch: Launch) -> tuple[int, int] | None:
    """Of a matrix product, how many tiles cover the output, and how many elements each has: the first two sizes of the
    kernel's template."""
    tile = re.search(r"\bconv2d_mma_kernel<\w+, (\d+), (\d+)", launch.kernel)
    if tile is None or not isinstance(layer.case, ConvCase):
        return None
    n, c, h, w = layer.case.output_shape(layer.batch)
    m, columns, groups = int(tile[1]), int(tile[2]), layer.case.groups
    return -(-n * h * w // m) * -(-c // groups // columns) * groups, m * columns


def steps(layer: Layer, launch: Launch) -> int:
    """Of 64 bytes of each operand's rows: in planes of channels, each within a tap."""
    case, taps = layer.case, math.prod(pair(layer.case.kernel_size))
    row = case.in_channels // case.groups * layer.dtype.itemsize
    return -(-row // 64) * taps if launch.kernel.endswith("true>") else -(-row * taps // 64)


def fill(layer: Layer, launch: Launch) -> float:
    """The share of a matrix product's work that is output, and sum."""
    covered = tiles(layer, launch)
    if covered is None:
        return 1.0
    macs = steps(layer, launch) * 64 // layer.dtype.itemsize * math.prod(covered)
    return layer.case.macs(layer.batch) / macs


def split(layer: Layer, started: list[Launch]) -> Split | None:
    """None where every tile falls to one block. The second launch has a row of blocks for each tile in pieces."""
    finish = next((launch for launch in started if "mma_finish" in launch.kernel), None)
    if finish is None:
        return None
    product = main(started)
    (count, elements), rest = tiles(layer, product), finish.grid[1]
    pieces, over = divmod(product.blocks - (count - rest), rest)
    if over:
        raise RuntimeError(f"{layer}: {product.blocks} blocks are no {count} tiles with {rest} of them in pieces")
    total = steps(layer, product)
    return Split(count, rest, pieces, -(-total // pieces) / total, rest * pieces * elements * 4, finish.blocks)


def work(layer: Layer, launch: Launch, traffic: Traffic | None) -> Work:
    _, tensors = prepare(layer, layer.batch, small=False, filled=False)
    elements = math.prod(layer.case.input_shape(layer.batch))
    return Work(
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        macs=layer.case.macs(layer.batch) if isinstance(layer.case, ConvCase) else 0,
        requests=traffic.requests * elements if traffic else 0,
        shared_requests=traffic.shared_requests * elements if traffic else 0,
        conflicts=traffic.conflicts if traffic else 1.0,
        fill=fill(layer, launch),
    )
