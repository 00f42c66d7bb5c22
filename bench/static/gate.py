"""Collects what is known about the kernels and the named layers without running them on a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from . import ptxas, sass, toolchain
from .bound import Bound, Split, Work, balance, layer_bound, loop_bound
from .chips import CHIPS, Chip, Occupancy, occupancy

ARCHITECTURES = tuple(dict.fromkeys(chip.arch for chip in CHIPS))
SOURCES = tuple(sorted((toolchain.ROOT / "csrc/cuda").glob("*.cu")))


@dataclass(frozen=True)
class Kernel:
    name: str  # without namespaces and arguments: max_pool2d_kernel<float, unsigned char, 4, 3>
    source: str
    arch: str
    resources: ptxas.Resources
    code: sass.Code

    @property
    def family(self) -> str:
        return self.name.split("<")[0]

    @property
    def spills(self) -> int:
        return self.resources.spill_stores + self.resources.spill_loads

    def bounds(self) -> dict[str, float]:
        """Of the hottest loop, by chip."""
        chips = (chip for chip in CHIPS if chip.arch == self.arch)
        found = {chip.name: loop_bound(chip, self.code.hottest) for chip in chips}
        return {name: bound for name, bound in found.items() if bound is not None}


@dataclass(frozen=True)
class LayerResult:
    name: str
    kernel: str
    blocks: int
    threads: int
    shared: int  # bytes of dynamic shared memory
    work: Work
    sectors: float | None  # as in layers.Traffic; None: not counted
    bytes: float | None
    bounds: dict[str, Bound] = field(default_factory=dict)  # by chip
    occupancy: dict[str, Occupancy] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    kernels: dict[str, dict[str, Kernel]]  # by architecture and name
    layers: dict[str, LayerResult]
    warnings: tuple[str, ...]  # of nvcc and ptxas


def kernels_of(source: Path, arch: str, **places: Path) -> tuple[dict[str, Kernel], list[str]]:
    """And the compiler's warnings."""
    compiled = toolchain.compile_file(source, arch, **places)
    resources, codes = ptxas.parse(compiled.log), sass.parse(compiled.disassembly)
    if not resources.keys() <= codes.keys():
        raise ValueError(f"{source.name}: kernels without code: {sorted(resources.keys() - codes.keys())}")
    names = toolchain.demangle(list(resources))
    kernels = [
        Kernel(toolchain.short(names[mangled]), source.name, arch, resources[mangled], codes[mangled])
        for mangled in resources
    ]
    warnings = [f"{source.name}: {line.strip()}" for line in compiled.log.splitlines() if "warning" in line.lower()]
    return {kernel.name: kernel for kernel in sorted(kernels, key=lambda k: k.name)}, warnings


def examine(sources: Iterable[Path], architectures: Iterable[str], with_layers: bool, **places: Path) -> Result:
    kernels: dict[str, dict[str, Kernel]] = {}
    warnings = []
    for arch in architectures:
        kernels[arch] = {}
        for source in sources:
            found, said = kernels_of(source, arch, **places)
            taken = found.keys() & kernels[arch].keys()  # by another file's
            kernels[arch] |= {f"{name} [{source.stem}]" if name in taken else name: k for name, k in found.items()}
            warnings += said
    return Result(kernels, examine_layers(kernels) if with_layers else {}, tuple(warnings))


def examine_layers(kernels: dict[str, dict[str, Kernel]]) -> dict[str, LayerResult]:
    """Those that one of the kernels computes."""
    from . import layers  # imports fastcnn, which the kernels do not need

    results, counted = {}, {}
    for layer in layers.all_layers():
        call, _ = layers.prepare(layer, layer.batch, small=False, filled=False)
        launch = layers.main(layers.launches(call))
        if not any(launch.kernel in found for found in kernels.values()):
            continue
        key = layers.counted_as(layer, launch.kernel)
        if key not in counted:
            counted[key] = layers.count(layer, launch.kernel)
        traffic = counted[key]
        result = LayerResult(
            str(layer),
            launch.kernel,
            launch.blocks,
            launch.threads,
            launch.shared,
            layers.work(layer, launch, traffic),
            traffic.sectors if traffic else None,
            traffic.bytes if traffic else None,
        )
        for chip in CHIPS:
            if chip.arch in kernels:
                with layers.setting("FASTCNN_SIMT_PROCESSORS", str(chip.processors)):
                    split = layers.split(layer, layers.launches(call))
                bind(result, kernels[chip.arch][launch.kernel], chip, split)
        results[result.name] = result
    return results


def bind(result: LayerResult, kernel: Kernel, chip: Chip, split: Split | None = None) -> None:
    r = kernel.resources
    fits = occupancy(chip, result.threads, r.registers, r.shared + result.shared, r.barriers)
    result.occupancy[chip.name] = fits
    if fits.blocks == 0:
        raise ValueError(f"{result.name}: {kernel.name} does not fit a processor of {chip.name}: {fits.limit}")
    balanced = balance(chip, result.blocks)
    result.bounds[chip.name] = layer_bound(chip, kernel.code.hottest, result.work, balanced, split)
