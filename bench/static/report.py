"""The gate's tables, for the terminal and for docs/gpu-static.md."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from . import check, fusion, toolchain
from .chips import CHIPS, MMA_SYNC_OF_HOPPER
from .gate import Kernel, Result

if TYPE_CHECKING:  # else only where there is Triton
    from .triton_gate import TritonResult

MIX = ("HMMA", "FFMA", "LDG", "LDGSTS", "STG", "LDS", "LDSM", "STS", "special", "double", "integer", "branch", "other")


@dataclass(frozen=True)
class Table:
    title: str
    text: str  # what the columns mean
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        rows = [self.columns, ("---",) * len(self.columns), *self.rows]
        text = textwrap.fill(self.text, 120)
        return "\n".join([f"## {self.title}", "", text, "", *(f"|{'|'.join(row)}|" for row in rows), ""])

    def print(self, console: Console) -> None:
        table = RichTable(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def tables(result: Result, on_triton: "TritonResult | None" = None) -> list[Table]:
    made = [families(arch, kernels.values()) for arch, kernels in result.kernels.items()]
    made += [notable(result), bounds(result)]
    if result.layers:
        made += [residency(result), mixes(result), predicted(result), traffic(result)]
    if on_triton:
        made += [triton_kernels(on_triton), triton_layers(on_triton)]
    return [table for table in made if table.rows]


def span(numbers: Iterable[int]) -> str:
    known = sorted(set(numbers))
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"


def families(arch: str, kernels: Iterable[Kernel]) -> Table:
    groups = defaultdict(list)
    for kernel in kernels:
        groups[kernel.source, kernel.family].append(kernel)
    rows = []
    for (source, family), members in sorted(groups.items()):
        resources = [k.resources for k in members]
        rows.append(
            (
                family,
                source,
                str(len(members)),
                span(r.registers for r in resources),
                str(max(k.spills for k in members)),
                str(max(r.stack for r in resources)),
                str(max(k.code.local_accesses for k in members)),
                span(r.shared for r in resources),
                span(r.barriers for r in resources),
                span(len(k.code.hottest.instructions) for k in members),
                span(len(k.code.hottest.path) for k in members),
            )
        )
    columns = (
        "kernel",
        "file",
        "instances",
        "registers",
        "spills",
        "stack",
        "local",
        "shared",
        "barriers",
        "loop",
        "path",
    )
    text = (
        "Every instance of each kernel template: registers of a thread; bytes of spills and stack, and accesses to "
        "local memory, of the worst instance; bytes of static shared memory; barriers; instructions of the hottest "
        "loop, and of the shortest way through it that makes all its accesses and products."
    )
    return Table(f"Kernels on sm_{arch}", text, columns, rows)


def notable(result: Result) -> Table:
    rows = []
    for arch, kernels in result.kernels.items():
        for excuse in (*check.KNOWN_STACK, *check.KNOWN_DOUBLE):
            let = [k for k in kernels.values() if check.excused(k, (excuse,))]
            if excuse in check.KNOWN_STACK:
                let = [k for k in let if k.resources.stack]
                what = f"up to {max((k.resources.stack for k in let), default=0)} bytes of stack"
            else:
                let = [k for k in let if k.code.hottest.mix["double"] and not check.is_double(k)]
                what = "float64 in the hottest loop"
            if let:
                families = ", ".join(sorted({k.family for k in let}))
                rows.append((f"sm_{arch}", f"{len(let)} of {families}", what, excuse.reason))
    return Table("Exceptions", "What the gate lets pass, and why.", ("", "kernels", "what", "reason"), rows)


def bounds(result: Result) -> Table:
    rows = []
    for arch, kernels in result.kernels.items():
        for k in kernels.values():
            loop = k.code.hottest
            main = "HMMA" if loop.mix["HMMA"] else "FFMA"
            for chip, bound in k.bounds().items():
                share = f"{loop.share(main):.1%} {main}"
                rows.append((f"`{k.name}`", f"sm_{arch}", share, chip, f"{bound:.0%}"))
    text = (
        "Of kernels whose hottest loop is arithmetic: the share of the time for which that loop can keep tensor cores, "
        "or the float32 units, busy. Of the H100's, the share of what mma.sync reaches, "
        f"{MMA_SYNC_OF_HOPPER:.0%} of its peak."
    )
    return Table("Loop bounds: predicted, not timed", text, ("kernel", "code", "of the loop", "chip", "bound"), rows)


def used(result: Result) -> list[tuple[str, Kernel]]:
    names = dict.fromkeys(layer.kernel for layer in result.layers.values())
    return [(arch, kernels[name]) for name in names for arch, kernels in result.kernels.items()]


def residency(result: Result) -> Table:
    rows = {}
    for layer in result.layers.values():
        cells = []
        for chip in CHIPS:
            if fits := layer.occupancy.get(chip.name):
                cells.append(f"{fits.blocks} x {layer.threads // 32} = {fits.share(chip):.0%} ({fits.limit})")
        key = (f"`{layer.kernel}`", str(layer.threads), str(layer.shared))
        rows[key] = (*key, *cells)
    chips = [chip.name for chip in CHIPS if chip.arch in result.kernels]
    text = (
        "Blocks that a processor holds at once x warps of a block, as a share of the warps that it could hold, and "
        "what keeps it from more; as the named layers launch the kernels."
    )
    return Table("Occupancy", text, ("kernel", "threads", "dynamic shared", *chips), sorted(rows.values()))


def mixes(result: Result) -> Table:
    rows = []
    for arch, k in used(result):
        mix, wide = k.code.hottest.mix, k.code.wide_share
        numbers = [str(mix[group] or "") for group in MIX]
        rows.append(
            (f"`{k.name}`", arch, str(len(k.code.hottest.path)), *numbers, "" if wide is None else f"{wide:.0%}")
        )
    text = (
        "Instructions of the hottest loop: of the innermost loops, the one that holds most of a kernel's work, with "
        "all its branches; `path`: on the shortest way through it that makes all its accesses and products; "
        "`special`: MUFU; `other` includes moves, conversions and predicates. Last, the share of the kernel's accesses "
        "to global memory that move 16 bytes a lane."
    )
    return Table("Instruction mix of the named layers' kernels", text, ("kernel", "sm", "path", *MIX, "16 B"), rows)


def predicted(result: Result) -> Table:
    rows = []
    for layer in result.layers.values():
        cells = [
            f"{b.microseconds:.0f} us {b.unit}, {b.roofline:.0%}" if (b := layer.bounds.get(chip.name)) else ""
            for chip in CHIPS
            if chip.arch in result.kernels
        ]
        rows.append((layer.name, f"{layer.work.bytes / 1e6:.0f}", f"{layer.work.macs / 1e9:.1f}", *cells))
    chips = [chip.name for chip in CHIPS if chip.arch in result.kernels]
    text = (
        "For a batch of 128, or as named: megabytes that must cross the memory bus, 10^9 multiply-adds, and for each "
        "chip the bound, the unit that sets it (`L1`: the first-level cache and shared memory), and the share that "
        "memory or arithmetic alone would take (100%: nothing else is in the way). Optimistic: of the kernel's "
        "instructions only the shortest way through its hottest loop counts, and neither latency, cache misses nor "
        "throttled clocks do. Where the last tiles of a matrix product are cut into pieces, these take their turn "
        "after the whole tiles, and what they leave crosses the memory bus twice; that a second launch starts costs "
        "nothing here."
    )
    return Table("Layers: predicted, not timed", text, ("layer", "MB", "GMAC", *chips), rows)


def traffic(result: Result) -> Table:
    rows = []
    for layer in result.layers.values():
        if layer.sectors is not None and layer.bytes is not None:
            conflicts = f"{layer.work.conflicts:.2f}" if layer.work.shared_requests else ""
            rows.append((layer.name, f"`{layer.kernel}`", f"{layer.bytes:.2f}", f"{layer.sectors:.2f}", conflicts))
    text = (
        "Counted while the kernels run on the CPU, on one image of the layer (convolutions: once for each window, on "
        "32 input channels of each group and as many images as it takes for the same tile). Bytes: in distinct "
        "sectors, by those that must move. Sectors: that requests touch, by the fewest that their bytes fit in; what "
        "neighbouring lanes leave unused of a sector, caches may serve later. Conflicts: cycles of shared memory (of "
        "matrix products: of ldmatrix) by the fewest of the same requests."
    )
    return Table("Memory traffic", text, ("layer", "kernel", "bytes", "sectors", "conflicts"), rows)


def chips() -> Table:
    rows = [
        (
            *(c.name, f"sm_{c.arch}", str(c.processors), f"{c.clock}", str(c.memory), str(c.fp32), str(c.fp64)),
            *(str(c.integer), " / ".join(f"{rate:.0f}" for rate in c.tensor.values())),
            *(str(c.registers), str(c.threads), str(c.blocks), str(c.shared), str(c.barriers)),
        )
        for c in CHIPS
    ]
    text = (
        'Limits and rates of a processor (SM) and clock: CUDA C++ Programming Guide, "Technical Specifications per '
        'Compute Capability" and "Throughput of Native Arithmetic Instructions"; how registers and shared memory are '
        "allotted: `cuda_occupancy.h` of CUDA 13.0; processors, clocks (GHz), memory (GB/s) and tensor rates "
        "(multiply-adds of 16-bit / TF32 operands, sums in float32): NVIDIA's architecture papers for each. The H100's "
        'tensor rate is what mma.sync was measured to reach of it by a third party (Hazy Research, "GPUs Go Brrr", '
        "2024)."
    )
    columns = ("chip", "code", "SMs", "GHz", "GB/s", "FP32", "FP64", "INT", "tensor")
    return Table("Chips", text, (*columns, "registers", "threads", "blocks", "shared", "barriers"), rows)


def triton_kernels(result: "TritonResult") -> Table:
    rows = []
    for arch, kernels in result.kernels.items():
        groups = defaultdict(list)
        for kernel in kernels.values():
            groups[kernel.source, kernel.name.partition("<")[0], kernel.dtype].append(kernel)
        for (source, family, dtype), members in sorted(groups.items()):
            loops = [k.code.hottest for k in members]
            products = sorted({i.base for loop in loops for i in loop.instructions if i.group == "HMMA"})
            rows.append(
                (
                    *(family, source, f"sm_{arch}", dtype, str(len(members))),
                    *(span(k.resources.registers for k in members), span(k.shared for k in members)),
                    *(str(max(k.spills for k in members)), str(max(k.code.local_accesses for k in members))),
                    *(span(len(loop.instructions) for loop in loops), " ".join(products)),
                    span(loop.mix["LDGSTS"] for loop in loops),
                )
            )
    columns = ("kernel", "file", "sm", "type", "variants", "registers", "shared", "spills", "local", "loop")
    text = (
        f"Compiled by Triton {toolchain.TRITON} with the constants and promises that the ops' host code launches them "
        "with for the named layers and for what else they can fuse (bench/static/triton_fused.py), each variant once: "
        "registers of a thread, bytes of dynamic shared memory, bytes of spills and accesses to local memory of the "
        "worst variant; of the hottest loop: instructions, how it multiplies (HMMA: mma.sync; HGMMA: wgmma; UTCHMMA: "
        "tcgen05) and its asynchronous copies."
    )
    return Table("Triton kernels", text, (*columns, "tensor cores", "copies"), sorted(rows))


def triton_layers(result: "TritonResult") -> Table:
    chips = [chip.name for chip in CHIPS if any(chip.name in layer.bounds for layer in result.layers.values())]
    rows = []
    for layer in result.layers.values():
        cells = []
        for chip in chips:
            b, cuda = layer.bounds.get(chip), layer.cuda.get(chip)
            if b is None:
                cells.append("")
                continue
            beside = f" (CUDA {cuda.microseconds:.1f})" if cuda else ""
            cells.append(f"{b.microseconds:.1f} us {b.unit}, {b.roofline:.0%}{beside}")
        tile = next(iter(layer.kernel.values()))
        rows.append((layer.name, f"`{tile}`", f"{layer.bytes / 1e6:.1f}", f"{layer.macs / 1e9:.2f}", *cells))
    text = (
        "As above, for a batch of 128, or as named; 16-bit and TF32 layers in channels_last. The tile is the first "
        "chip's: on more processors it may be a smaller one. MB: each tensor of each launch once, those between two "
        "launches twice; of a 1x1 layer's input with a stride what is read. That a layer's input is in a cache, or a "
        "tensor is read again for every tile, is left out. In brackets the same bound of the CUDA kernel that would "
        "run with FASTCNN_TRITON=0. No rates of a chip with sm_100 are at hand."
    )
    return Table("Layers on Triton: predicted, not timed", text, ("layer", "kernel", "MB", "GMAC", *chips), rows)


def markdown(result: Result, on_triton: "TritonResult", command: str) -> str:
    head = (
        f"Made by `{command}` with nvcc {toolchain.version()} and Triton {toolchain.TRITON}; do not edit. "
        "[gpu.md](gpu.md) says what this shows and what it does not. **Nothing here was timed: every "
        "bound is predicted from machine code and published rates.** "
        "What `python bench/gpu_static.py --check` compares with stands in `bench/static/baseline.json`."
    )
    title = "# The CUDA and Triton kernels, examined without a GPU"
    made = [*(table.markdown() for table in tables(result, on_triton)), fusion.table(), chips().markdown()]
    return "\n".join([title, "", textwrap.fill(head, 120), "", *made])
