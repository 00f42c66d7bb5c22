"""What is known about the Triton kernels without running them on a GPU: compiled for four architectures, and bounds of
named layers beside those of the CUDA kernels."""

import multiprocessing
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import ptxas, sass
from .bound import Bound, Work, balance, layer_bound
from .chips import CHIPS, Chip, occupancy
from .gate import Kernel
from .triton_launch import CACHE, Compiled, Launch, compile_launch

ARCHITECTURES = (80, 90, 100, 120)
_CHIPS = {80: "A100", 90: "H100", 120: "RTX 5090"}  # a 4090 would run code for sm_89
# What a matrix product is compiled to: mma.sync, wgmma, tcgen05.
TENSOR = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
SLACK = 0.03  # of a bound
FFMA_SHARE = 0.75  # of the instructions of float32 kernels' hottest loops


def chip_of(arch: int) -> Chip | None:
    """None: bench/static has no rates for it."""
    return next((chip for chip in CHIPS if chip.name == _CHIPS.get(arch)), None)


def processors_of(arch: int) -> int:
    chip = chip_of(arch)
    return chip.processors if chip else 148  # a B200's


def beside(architectures: Sequence[str]) -> tuple[int, ...]:
    """Triton's architectures for nvcc's; with all of nvcc's, sm_100 too."""
    of = {chip.arch: arch for arch in ARCHITECTURES if (chip := chip_of(arch))}
    return ARCHITECTURES if set(of) <= set(architectures) else tuple(of[each] for each in architectures if each in of)


@dataclass(frozen=True)
class TritonKernel(Kernel):
    launch: Launch | None = field(default=None, compare=False)
    shared: int = 0  # bytes, dynamic

    @property
    def label(self) -> str:
        """'pointwise_kernel bf16 128x64x64, split 2, 8 warps, 3 stages'."""
        a, options = self.launch.arguments, self.launch.options
        blocks = "x".join(str(value) for name, value in a.items() if name.startswith("BLOCK_"))
        parts = [f"{self.name.partition('<')[0]} {self.dtype} {blocks}"]
        parts += [f"split {a['SPLIT']}"] if a.get("SPLIT", 1) > 1 else []
        parts += [f"{a['PACK']} groups"] if a.get("PACK", 1) > 1 else []
        parts += [name.lower() for name in ("PERSISTENT", "STRIDED") if a.get(name)]
        return ", ".join([*parts, f"{options['num_warps']} warps", f"{options['num_stages']} stages"])

    @property
    def dtype(self) -> str:
        name = re.search(r"<(\w+)", self.name)[1]
        return "tf32" if name == "f32" and "PRECISION=tf32" in self.name else name

    def bounds(self) -> dict[str, float]:
        return {}  # a layer's says more: tiles' edges and their number count, too


@dataclass(frozen=True)
class LayerOnTriton:
    name: str
    kernel: dict[int, str]  # by architecture: the tile depends on the number of processors
    launches: int
    bytes: int
    macs: int
    bounds: dict[str, Bound] = field(default_factory=dict)  # by chip
    cuda: dict[str, Bound] = field(default_factory=dict)  # of the CUDA kernel that computes the same


@dataclass(frozen=True)
class TritonResult:
    kernels: dict[int, dict[str, TritonKernel]]  # by architecture and name
    layers: dict[str, LayerOnTriton]


def kernel_of(launch: Launch, arch: int, compiled: Compiled) -> TritonKernel:
    resources, code = ptxas.parse(compiled.log)[compiled.name], sass.parse(compiled.disassembly)[compiled.name]
    source = Path(launch.kernel.fn.__code__.co_filename).name
    return TritonKernel(launch.name(arch), source, str(arch), resources, code, launch, compiled.shared)


_pending: list[tuple[Launch, int, Path]] = []  # of the children of compile_all, which inherit it


def _compile(i: int) -> None:
    compile_launch(*_pending[i])


def compile_all(launches: Iterable[tuple[Launch, int]], cache_dir: Path = CACHE) -> dict[tuple[str, int], TritonKernel]:
    """By name and architecture, each once, in a process for each core: LLVM holds Python's lock as it compiles."""
    distinct = {(launch.name(arch), arch): (launch, arch) for launch, arch in launches}
    _pending[:] = [(launch, arch, cache_dir) for launch, arch in distinct.values()]
    # Forked: a kernel cannot be pickled.
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.imap_unordered(_compile, range(len(_pending))):
            pass
    return {key: kernel_of(*each, compile_launch(*each, cache_dir)) for key, each in distinct.items()}


def examine(
    architectures: Sequence[int] = ARCHITECTURES,
    cuda: dict[str, dict[str, Kernel]] | None = None,
    cache_dir: Path = CACHE,
) -> TritonResult:
    """cuda: the CUDA kernels by architecture and name, if their bounds shall stand beside."""
    from . import triton_fused
    from . import triton_layers as named

    started: dict[tuple[named.Layer, int], list[Launch]] = {}
    for arch in architectures:
        for layer in named.layers_on(arch):
            started[layer, arch] = named.launches_of(layer, processors_of(arch))
    every = [(launch, arch) for (_, arch), found in started.items() for launch in found]
    every += [(launch, arch) for arch in architectures for launch in triton_fused.started(processors_of(arch))]
    compiled = compile_all(every, cache_dir)
    kernels = {arch: {name: k for (name, of), k in compiled.items() if of == arch} for arch in architectures}
    results: dict[str, LayerOnTriton] = {}
    for (layer, arch), found in started.items():
        if str(layer) not in results:
            beside = cuda_bounds(layer, cuda) if cuda else {}
            macs = layer.case.macs(layer.batch)
            results[str(layer)] = LayerOnTriton(str(layer), {}, len(found), named.moved(layer, found), macs, {}, beside)
        result, main = results[str(layer)], named.main(found)
        kernel = kernels[arch][main.name(arch)]
        result.kernel[arch] = kernel.label
        if chip := chip_of(arch):
            work = Work(named.moved(layer, found), result.macs, fill=result.macs / named.executed(main))
            result.bounds[chip.name] = bound_of(chip, kernel, work, named.programs(main))
    return TritonResult(kernels, results)


def bound_of(chip: Chip, kernel: TritonKernel, work: Work, programs: int) -> Bound:
    threads = 32 * int(kernel.launch.options["num_warps"])
    fits = occupancy(chip, threads, kernel.resources.registers, kernel.shared, kernel.resources.barriers)
    if fits.blocks == 0:
        raise ValueError(f"{kernel.name} does not fit a processor of {chip.name}: {fits.limit}")
    return layer_bound(chip, kernel.code.hottest, work, balance(chip, programs))


def cuda_bounds(layer, kernels: dict[str, dict[str, Kernel]]) -> dict[str, Bound]:
    """Of the CUDA kernels, by architecture and name, that conv2d would launch for the same layer, on the same chips."""
    from . import layers

    if layer.direction != "forward":
        return {}
    same = layers.Layer(layer.case, "conv2d", layer.dtype, "nhwc", tf32=layer.tf32, batch=layer.batch)
    call, _ = layers.prepare(same, layer.batch, small=False, filled=False)
    found = {}
    for chip in map(chip_of, ARCHITECTURES):
        if chip and chip.arch in kernels:
            with layers.setting("FASTCNN_SIMT_PROCESSORS", str(chip.processors)):
                started = layers.launches(call)
            launch, split = layers.main(started), layers.split(same, started)
            loop, work = kernels[chip.arch][launch.kernel].code.hottest, layers.work(same, launch, None)
            if loop.mix["HMMA"]:  # the others' requests would have to be counted
                found[chip.name] = layer_bound(chip, loop, work, balance(chip, launch.blocks), split)
    return found


def baseline_of(result: TritonResult) -> dict:
    kernels = {
        str(arch): {name: {k: v for k, v in facts(kernel).items() if v} for name, kernel in found.items()}
        for arch, found in result.kernels.items()
    }
    layers = {
        name: {chip: round(bound.microseconds, 2) for chip, bound in layer.bounds.items()}
        for name, layer in result.layers.items()
    }
    return {"kernels": kernels, "layers": layers}


def facts(kernel: TritonKernel) -> dict:
    r = kernel.resources
    return {"registers": r.registers, "shared": kernel.shared, "loop": len(kernel.code.hottest.instructions)}


def problems(result: TritonResult, baseline: dict) -> list[str]:
    """One line each; empty: the gate is open."""
    found = [
        f"sm_{arch} {name}: {problem}"
        for arch, kernels in result.kernels.items()
        for name, kernel in kernels.items()
        for problem in of_kernel(kernel)
    ]
    before = baseline.get("layers", {})
    if any(arch < 100 for arch in result.kernels):  # which all layers are compiled for
        lost = sorted(before.keys() - result.layers)
        found += [f"{name}: in the baseline, but not among the layers any more" for name in lost]
    for name, layer in result.layers.items():
        for chip, bound in layer.bounds.items():
            least = before.get(name, {}).get(chip)
            if least and bound.microseconds * (1 - SLACK) > least:
                found.append(f"{name}: its bound on {chip} drops: {least:.1f} us become {bound.microseconds:.1f} us")
    return found


def multiplies(kernel: TritonKernel) -> bool:
    """By tl.dot: kernels that only add up what others left have none."""
    return "PRECISION" in kernel.launch.arguments


def of_kernel(kernel: TritonKernel) -> list[str]:
    r, loop, found = kernel.resources, kernel.code.hottest, []
    for what, now in (
        ("bytes of spills", kernel.spills),
        ("bytes of stack", r.stack),
        ("local memory accesses", kernel.code.local_accesses),
    ):
        found += [f"{now} {what}"] if now else []
    found += [f"{loop.mix['double']} float64 instructions in the hottest loop"] if loop.mix["double"] else []
    if not multiplies(kernel):
        return found
    bases = {i.base for i in loop.instructions}
    if kernel.dtype == "f32":
        share = loop.share("FFMA")
        found += [] if share >= FFMA_SHARE else [f"the hottest loop is {share:.0%} FFMA, not {FFMA_SHARE:.0%}"]
    elif (wanted := tensor_instruction(kernel)) not in bases:
        other = ", ".join(sorted(bases & set(TENSOR.values()))) or "none"
        found.append(f"the hottest loop has no {wanted}; tensor core instructions: {other}")
    if not loop.mix["LDGSTS"]:
        found.append("the hottest loop copies nothing to shared memory asynchronously")
    return found


def rows(kernel: TritonKernel) -> int:
    """Of a program's tile of sums, which is the product's first extent."""
    a = kernel.launch.arguments
    names = ("BLOCK_O",) if "backward_weight" in kernel.name else ("BLOCK_P", "BLOCK_M")
    return next(int(a[name]) for name in names if name in a)


def tensor_instruction(kernel: TritonKernel) -> str:
    """wgmma and tcgen05 multiply 64 rows at least: of a smaller tile mma.sync is all that can be."""
    return TENSOR[int(kernel.arch)] if rows(kernel) >= 64 else "HMMA"
