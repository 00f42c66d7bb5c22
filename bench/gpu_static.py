"""Examines the CUDA and Triton kernels without a GPU: compiles, disassembles, predicts what named layers can take.

python bench/gpu_static.py                prints the tables for sm_80
python bench/gpu_static.py --check        fails where a kernel has become worse than the committed baseline
python bench/gpu_static.py --write        renews that baseline and docs/gpu-static.md, for every architecture
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.static import check, gate, report, toolchain  # noqa: E402

BASELINE = ROOT / "bench/static/baseline.json"
PAGE = ROOT / "docs/gpu-static.md"


def compact(baseline: dict) -> str:
    """JSON with a line for each kernel and layer, so that a change shows as one."""

    def group(entries: dict, indent: str) -> str:
        lines = [f"{indent} {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items())]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"

    kernels = ",\n".join(f'  "{arch}": {group(found, "  ")}' for arch, found in baseline["kernels"].items())
    nvcc, layers = json.dumps(baseline["nvcc"]), group(baseline["layers"], " ")
    triton = baseline["triton"]
    compiled = ",\n".join(f'   "{arch}": {group(found, "   ")}' for arch, found in triton["kernels"].items())
    return (
        f'{{\n "nvcc": {nvcc},\n "kernels": {{\n{kernels}\n }},\n "layers": {layers},\n'
        f' "triton": {{\n  "version": {json.dumps(triton["version"])},\n  "kernels": {{\n{compiled}\n  }},\n'
        f'  "layers": {group(triton["layers"], "  ")}\n }}\n}}\n'
    )


def main(
    sources: Annotated[
        list[Path] | None, typer.Argument(help=".cu files and the layers they compute; else all of csrc/cuda")
    ] = None,
    arch: Annotated[list[str], typer.Option(help="80, 90a, 120 or all; may be repeated")] = ["80"],  # noqa: B006
    layers: Annotated[bool, typer.Option(help="the named layers, too")] = True,
    triton: Annotated[bool, typer.Option(help="the Triton kernels, too, as the named layers launch them")] = True,
    check_baseline: Annotated[
        bool, typer.Option("--check", help="exit with 1 where the gate refuses a kernel")
    ] = False,
    write: Annotated[bool, typer.Option(help="renew the baseline and docs/gpu-static.md")] = False,
    baseline: Annotated[Path, typer.Option(help="what --check compares with")] = BASELINE,
) -> None:
    console = Console()
    if toolchain.MISSING:
        console.print(f"cannot examine kernels: {toolchain.MISSING}")
        raise typer.Exit(2)
    if write and sources:
        raise typer.BadParameter("the baseline is of all files")
    architectures = gate.ARCHITECTURES if write or "all" in arch else tuple(arch)
    result = gate.examine(sources or gate.SOURCES, architectures, layers or write)
    on_triton = None
    if triton and layers and not sources:
        if toolchain.TRITON is None:
            console.print("there is no Triton: its kernels are not examined")
        else:
            from bench.static import triton_gate

            on_triton = triton_gate.examine(triton_gate.beside(architectures), result.kernels)
    before = json.loads(baseline.read_text()) if baseline.exists() else {}
    if sources and "layers" in before:
        before["layers"] = {name: layer for name, layer in before["layers"].items() if name in result.layers}
    for table in report.tables(result, on_triton):
        table.print(console)
    if write:
        if on_triton is None:
            raise typer.BadParameter("the baseline is of CUDA's and Triton's kernels")
        of_triton = {"version": toolchain.TRITON, **triton_gate.baseline_of(on_triton)}
        before = {"nvcc": toolchain.version(), **check.baseline_of(result), "triton": of_triton}
        baseline.write_text(compact(before))
        PAGE.write_text(report.markdown(result, on_triton, "python bench/gpu_static.py --write"))
    compilers = (("nvcc", before.get("nvcc"), toolchain.version()),)
    if on_triton:
        compilers += (("Triton", before.get("triton", {}).get("version"), toolchain.TRITON),)
    for name, other, this in compilers:
        if other not in (None, this):
            console.print(f"the baseline is of {name} {other}, this is {this}: differences may be the compiler's")
    found = check.problems(result, before)
    found += triton_gate.problems(on_triton, before.get("triton", {})) if on_triton else []
    for problem in found:
        console.print(f"[red]refused[/red] {problem}", soft_wrap=True, highlight=False)
    if found and (check_baseline or write):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
