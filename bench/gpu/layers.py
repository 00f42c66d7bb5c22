"""Named layers, fastcnn's kernels against PyTorch's (cuDNN's): checked, then timed in turn."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench import test_bench_conv2d, test_bench_lrn, test_bench_pool
from bench._alternate import alternate
from bench._gate import WrongResult, check, poison
from bench._layer import Comparison, Layer, _format_of, backward, forward
from bench._rows import Row
from tests.cases import ALEXNET, GOOGLENET, LRNS, MOBILENET, POOLS, RESNET50, RESNEXT50, VGG16, find

from . import rivals
from .machine import ROOT, Ground, cudnn_benchmark, tf32_allowed

LAYOUTS = {"contiguous": "nchw", "channels_last": "nhwc"}  # as bench/static names them
SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_BUILDERS = {
    "conv2d": test_bench_conv2d.layer,
    "max_pool2d": test_bench_pool.max_pool_layer,
    "local_response_norm": test_bench_lrn.layer,
    "lrn_max_pool2d": test_bench_lrn.pooled_layer,
    **{op: rivals.builder(op) for op in rivals.OPS},
}


@dataclass(frozen=True)
class Job:
    """One row of the table."""

    op: str
    row: Row
    tf32: bool = False  # allowed for float32

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else self.row.dtype_name

    def __str__(self) -> str:
        r = self.row
        return f"{self.op} {r.case.name} b{r.batch} {r.layout} {self.precision} {r.direction}"

    @property
    def predicted_as(self) -> str:
        """The layer's name in bench/static/baseline.json."""
        way = "forward" if self.row.direction == "forward" else "backward"
        name = self.row.case.name
        if self.op == "lrn_max_pool2d":
            name += "+" + name.partition(".")[2].replace("lrn", "pool")
        dtype = "tf32" if self.tf32 else SHORT[self.row.dtype]
        batch = "" if self.row.batch == 128 else f" batch {self.row.batch}"
        return f"{name} {way} {LAYOUTS[self.row.layout]} {dtype}{batch}"


def layers_of_networks() -> list[tuple[str, object]]:
    convs = (*ALEXNET, *VGG16, *RESNET50, *RESNEXT50, *GOOGLENET, *MOBILENET)
    return [
        *(("conv2d", case) for case in convs),
        *(("max_pool2d", case) for case in POOLS),
        *(("local_response_norm", case) for case in LRNS),
        *(("lrn_max_pool2d", case) for case in test_bench_lrn.POOLED),
    ]


def jobs(batches: tuple[int, ...] = (32, 128, 1)) -> Iterator[Job]:
    """Every layer in one configuration, then in the next: a run that ends early has all layers in the first ones."""
    kinds = [(torch.float16, False), (torch.float32, True), (torch.float32, False), (torch.bfloat16, False)]
    layouts = ("channels_last", "contiguous")
    layers = layers_of_networks()
    for batch, (dtype, tf32), layout in itertools.product(batches, kinds, layouts):
        for op, case in layers:
            if op == "conv2d" or not tf32:
                yield Job(op, Row(case, batch, layout, "forward", dtype), tf32)
        if batch == batches[0] and layout == layouts[0] and (dtype, tf32) in kinds[:2]:
            for op, name in rivals.OPS.items():
                for case in rivals.cases(name):
                    yield Job(op, Row(case, batch, layout, "forward", dtype), tf32)
    for (dtype, tf32), layout, (op, case) in itertools.product(kinds, layouts, layers):
        if op == "conv2d" or not tf32:
            yield Job(op, Row(case, 32 if op == "conv2d" else 128, layout, "backward", dtype), tf32)


def small_jobs() -> Iterator[Job]:
    """For a dry run: each op, layout, type and direction, on maps that simt computes in moments."""
    conv = replace(find("alexnet.conv3"), name="small.conv", in_channels=8, out_channels=16, size=7)
    pool, norm = (replace(find(name), name=f"small.{op}", channels=8, size=9) for op, name in
                  (("pool", "alexnet.pool1"), ("lrn", "alexnet.lrn1")))  # fmt: skip
    ops = (("conv2d", conv), ("max_pool2d", pool), ("local_response_norm", norm), ("lrn_max_pool2d", norm))
    for op, case in ops:
        yield Job(op, Row(case, 5, "channels_last", "forward", torch.float16))
        yield Job(op, Row(case, 1, "contiguous", "forward", torch.float32), op == "conv2d")
        yield Job(op, Row(case, 2, "channels_last", "backward", torch.float32))
    pointwise = replace(conv, name="small.pointwise", kernel_size=1, padding=0)
    grouped = replace(conv, name="small.grouped", groups=2)
    for op, name in rivals.OPS.items():
        for case in (pointwise, grouped):
            if rivals.takes_part(name, case):
                yield Job(op, Row(case, 5, "channels_last", "forward", torch.float16))


def sums(job: Job) -> list[int]:
    """Of a convolution: how many products an element of each compared tensor adds up (bench/test_bench_conv2d.py)."""
    case = job.row.case
    out, per_group, kh, kw = case.weight_shape
    if job.row.direction == "forward":
        return [per_group * kh * kw]
    positions = job.row.batch * math.prod(case.output_size)
    image = [out // case.groups * kh * kw] if case.in_channels > 4 else []
    return [*image, positions, *([positions] if case.bias else [])]


def widened(bounds: list[Tensor], job: Job) -> list[Tensor]:
    """The bounds of float32 for operands of ten bits.

    Each product is then off by 2^-9 of itself at most. In a sum of n with random signs that is 8*2^-9*sqrt(sum of
    squares) at most, and the bound of float32 is 32*sqrt(n)*2^-24*sqrt(sum of squares), or four times less for few
    products (bench/_gate.py).
    """
    if not job.tf32:
        return bounds
    return [b * max(2.0**15 / (n + 2) ** 0.5, 1.0) for b, n in zip(bounds, sums(job), strict=True)]


def build(job: Job, ground: Ground) -> tuple[Comparison, Comparison]:
    """What is checked and what is timed. Large batches are checked by their first, a middle and their last image."""
    generator = ground.generator()
    layer: Layer = _BUILDERS[job.op](job.row, generator)
    if job.row.direction != "forward":
        whole = backward(layer, generator, reads_input=job.op != "max_pool2d")
        return whole, whole
    x, batch = layer.inputs[0], job.row.batch
    picked = torch.tensor(sorted({0, batch // 2, batch - 1}), device=x.device)
    part = replace(layer, inputs=[x[picked].contiguous(memory_format=_format_of(x)), *layer.inputs[1:]])
    small = forward(part)

    def of(function: Callable[..., Tensor]) -> Callable[[], tuple[Tensor]]:
        def call() -> tuple[Tensor]:
            expected = small.expected[0]
            poison([expected.new_empty(batch, *expected.shape[1:])], layer.dtype)
            y = function(*layer.inputs)
            if not y.isfinite().all():
                raise WrongResult("elements of images that are not compared are no numbers")
            return (y[picked],)

        return call

    y_shape = (batch, *small.expected[0].shape[1:])
    y_bytes = torch.Size(y_shape).numel() * layer.dtype.itemsize
    moved = 0.0 if layer.flops else sum(t.nbytes for t in layer.inputs) + y_bytes
    timed = Comparison(
        lambda: (layer.fast(*layer.inputs),), lambda: (layer.stock(*layer.inputs),), (), (), layer.dtype,
        flops=layer.flops, moved=moved,
    )  # fmt: skip
    return replace(small, fast=of(layer.fast), stock=of(layer.stock)), timed


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph: at batch 1 a GPU is done before the next kernel is on its way."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(job: Job, ground: Ground, peaks: dict, seconds: float) -> dict:
    """The row's record; 'refused' in it says why a wrong result was not timed."""
    record = {
        "op": job.op, "layer": job.row.case.name, "batch": job.row.batch, "layout": job.row.layout,
        "precision": job.precision, "direction": job.row.direction,
    }  # fmt: skip
    with tf32_allowed(job.tf32), torch.set_grad_enabled(job.row.direction != "forward"):
        with cudnn_benchmark(False):  # references are not worth a search
            checked, timed = build(job, ground)
            dtype, bounds = checked.dtype, widened(list(checked.bounds), job)
            try:
                _, record["error_over_bound"] = check(checked.fast, checked.expected, bounds, dtype)
            except WrongResult as error:
                return {**record, "refused": f"fastcnn's result is wrong: {error}"}
        try:  # cuDNN's Winograd and its half-precision sums are allowed more than fastcnn's kernels
            loose = [64 * b for b in bounds]
            _, error = check(checked.stock, checked.expected, loose, dtype, repeatable=False)
            record["stock_error_over_bound"] = 64 * error
        except WrongResult as error:
            return {**record, "refused": f"stock computes something else: {error}"}
        fast, stock = timed.fast, timed.stock
        record["graph"] = not ground.dry and job.row.batch == 1 and job.row.direction == "forward"
        if record["graph"]:
            fast, stock = graphed(fast), graphed(stock)
        mine, theirs = alternate(fast, stock, seconds, 3 if ground.dry else None, ground.block)
    record |= {
        "fastcnn_s": mine.median, "stock_s": theirs.median, "ratio": theirs.median / mine.median,
        "fastcnn_quartiles_s": mine.quartiles, "stock_quartiles_s": theirs.quartiles, "rounds": len(mine.seconds),
    }  # fmt: skip
    rate = peaks.get(f"product_{job.precision}") if timed.flops else peaks.get("memory_bytes_per_s")
    if rate:
        record["fraction_of_peak"] = (timed.flops or timed.moved) / mine.median / rate
    return record


class Predictions:
    """bench/static's bounds for this GPU."""

    def __init__(self, gpu: str):
        layers = json.loads((ROOT / "bench/static/baseline.json").read_text())["layers"]
        times = [entry["microseconds"] for entry in layers.values()]
        self.chip = next((chip for chip in (times[0] if times else {}) if chip.split()[-1] in gpu), None)
        self._seconds = {
            name: entry["microseconds"][self.chip] * 1e-6 for name, entry in layers.items() if self.chip is not None
        }

    def add(self, job: Job, record: dict) -> None:
        seconds = self._seconds.get(job.predicted_as)
        if seconds is not None and "fastcnn_s" in record:
            record |= {"predicted_s": seconds, "measured_over_predicted": record["fastcnn_s"] / seconds}
