"""What `nvcc -Xptxas -v` says about each kernel."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    spill_stores: int  # bytes
    spill_loads: int
    shared: int  # bytes, static
    barriers: int


def parse(log: str) -> dict[str, Resources]:
    """By mangled name. Functions that kernels call are part of the kernels: a call's stack is in their own."""
    kernels = {}
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'([^']+)'", part)[1]
        frame = re.search(
            rf"Function properties for {re.escape(name)}\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads",
            part,
        )
        used = re.search(r"Used (\d+) registers[^\n]*", part)
        if frame is None or used is None:
            raise ValueError(f"ptxas -v says nothing of {name}:\n{part[:400]}")
        cumulative, shared, barriers = (
            int(found[1]) if (found := re.search(pattern, used[0])) else 0
            for pattern in (r"(\d+) bytes cumulative stack", r"(\d+) bytes smem", r"used (\d+) barriers")
        )
        stack, stores, loads = map(int, frame.groups())
        kernels[name] = Resources(int(used[1]), max(stack, cumulative), stores, loads, shared, barriers)
    return kernels
