"""What the gate refuses, each with its reason."""

import re
from dataclasses import dataclass

from .gate import Kernel, Result

SLACK = 0.03  # of a bound


@dataclass(frozen=True)
class Excuse:
    pattern: str  # of kernels' names
    reason: str


# Kernels that may use local memory, as far as the baseline does: none.
KNOWN_STACK: tuple[Excuse, ...] = ()
# Kernels of narrower types that may compute in float64.
KNOWN_DOUBLE = (
    Excuse("AnyPower", "exponents other than 3/4 go through float64's pow, as torch's values need"),
    Excuse("avg_pool2d_", "a window's divisor is a float64, converted once"),
    Excuse("find_affine", "once a channel: the CPU's kernel folds in float64, too"),
    Excuse(r"channel_(statistics|gradients)", "the second stage of a reduction, over a few sums a channel"),
    Excuse("subsample2d_sum_kernel", "the second stage of a reduction, over a few sums a channel"),
)
# What the hottest loop of a kernel must be made of.
PATHS = (
    (r"mma(_\w+)?_kernel", ("HMMA",)),
    (r"mma(_\w+)?_kernel(?!<float)", ("LDSM",)),  # of float32 it transposes nothing
    # Halo tiles, and a tile of first layers' weight gradient, are copied before the loop over them.
    (r"(?<!first_)(?<!grouped_)mma(_\w+)?_kernel|first_mma_kernel", ("LDGSTS",)),
)
FFMA_SHARE = (r"ffma(_\w+)?_kernel", 0.75)


def excused(kernel: Kernel, known: tuple[Excuse, ...]) -> bool:
    return any(re.search(each.pattern, kernel.name) for each in known)


def is_double(kernel: Kernel) -> bool:
    return "double" in kernel.name


def baseline_of(result: Result) -> dict:
    """What the next check compares with. Zeros are left out."""
    kernels = {
        arch: {name: {k: v for k, v in facts(kernel).items() if v} for name, kernel in found.items()}
        for arch, found in result.kernels.items()
    }
    layers = {
        name: {
            "kernel": layer.kernel,
            "sectors": round(layer.sectors, 3) if layer.sectors else None,
            "conflicts": round(layer.work.conflicts, 3),
            "microseconds": {chip: round(bound.microseconds, 2) for chip, bound in layer.bounds.items()},
        }
        for name, layer in result.layers.items()
    }
    return {"kernels": kernels, "layers": layers}


def facts(kernel: Kernel) -> dict:
    r = kernel.resources
    return {
        "registers": r.registers,
        "shared": r.shared,
        "spills": kernel.spills,
        "stack": r.stack,
        "local": kernel.code.local_accesses,
        "loop": len(kernel.code.hottest.instructions),
        "bounds": {chip: round(bound, 4) for chip, bound in kernel.bounds().items()},
    }


def problems(result: Result, baseline: dict) -> list[str]:
    """One line each; empty: the gate is open."""
    found = [f"compiler warning: {warning}" for warning in result.warnings]
    for arch, kernels in result.kernels.items():
        before = baseline.get("kernels", {}).get(arch, {})
        for name, kernel in kernels.items():
            found += [f"sm_{arch} {name}: {problem}" for problem in of_kernel(kernel, before.get(name, {}))]
    return found + of_layers(result, baseline.get("layers", {}))


def of_kernel(kernel: Kernel, before: dict) -> list[str]:
    found, loop = [], kernel.code.hottest
    for what, key, now in (
        ("bytes of spills", "spills", kernel.spills),
        ("bytes of stack", "stack", kernel.resources.stack),
        ("local memory accesses", "local", kernel.code.local_accesses),
    ):
        if now > before.get(key, 0):
            found.append(f"{now} {what}, {before.get(key, 0)} in the baseline")
        elif now and not excused(kernel, KNOWN_STACK):
            found.append(f"{now} {what}, which no reason excuses")
    for pattern, groups in PATHS:
        if re.search(pattern, kernel.name):
            found += [f"the hottest loop has no {group}" for group in groups if not loop.mix[group]]
    pattern, least = FFMA_SHARE
    if re.search(pattern, kernel.name) and not is_double(kernel) and loop.share("FFMA") < least:
        found.append(f"the hottest loop is {loop.share('FFMA'):.0%} FFMA, not {least:.0%}")
    if loop.mix["double"] and not is_double(kernel) and not excused(kernel, KNOWN_DOUBLE):
        found.append(f"{loop.mix['double']} float64 instructions in the hottest loop")
    for chip, bound in kernel.bounds().items():
        was = before.get("bounds", {}).get(chip)
        if was and bound < was * (1 - SLACK):
            found.append(f"its loop's bound on {chip} drops from {was:.1%} to {bound:.1%}")
    return found


def of_layers(result: Result, before: dict) -> list[str]:
    if not result.layers:
        return []
    found = [f"{name}: in the baseline, but not among the layers any more" for name in before.keys() - result.layers]
    for name, layer in result.layers.items():
        was = before.get(name, {})
        for chip, bound in layer.bounds.items():
            least = was.get("microseconds", {}).get(chip)
            if least and bound.microseconds * (1 - SLACK) > least:
                found.append(f"{name}: its bound on {chip} drops: {least:.1f} us become {bound.microseconds:.1f} us")
        for what, key, now in (
            ("sectors per ideal sector", "sectors", layer.sectors),
            ("bank conflicts", "conflicts", layer.work.conflicts),
        ):
            if now and was.get(key) and now > was[key] * (1 + SLACK):
                found.append(f"{name}: {what} rise from {was[key]:.2f} to {now:.2f}")
    return sorted(found)
