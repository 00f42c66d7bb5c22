"""Loads PTX text and launches its kernels."""

import struct
from collections.abc import Sequence

import numpy as np

from tests.ptx import access, arithmetic, convert, logic, mma, warp  # noqa: F401  they register their instructions
from tests.ptx.decode import reachable
from tests.ptx.machine import Machine, Step
from tests.ptx.memory import Memory
from tests.ptx.parse import PtxError, Variable, bits, parse
from tests.ptx.view import LaunchView

LANES = 4096  # threads that run at once: enough to outweigh numpy's cost per call, few enough to stay in the cache
SHARED_LIMIT = 227 << 10  # of the largest block on compute capability 9.0


class Module:
    def __init__(self, text: str):
        self.program = parse(text)
        self.decoded: dict[str, dict[str, list[Step]]] = {}

    def kernel(self, name: str) -> str:
        """The kernel of this name, or the only one whose mangled name contains it."""
        kernels = [each for each, function in self.program.functions.items() if function.kernel]
        found = [each for each in kernels if each == name] or [each for each in kernels if name in each]
        if len(found) != 1:
            raise PtxError(f"{len(found)} kernels are called {name}; there are {', '.join(kernels)}")
        return found[0]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[int | float | bytes],
        memory: Memory,
        dynamic_shared: int = 0,
    ) -> int:
        """Runs a kernel to its end, in batches of blocks; returns how many instructions its threads executed."""
        name = self.kernel(name)
        function = self.program.functions[name]
        code = self.decoded.get(name) or self.decoded.setdefault(name, reachable(self.program, name))
        grid, block = ((*grid, 1, 1)[:3], (*block, 1, 1)[:3])
        threads = int(np.prod(block))
        if min(*grid, *block) < 1 or threads > 1024 or block[2] > 64:
            raise PtxError(f"{name} cannot be launched with grid {grid} and block {block}")
        if function.threads and (*function.threads, 1, 1)[:3] != block:
            raise PtxError(f"{name} wants blocks of {function.threads}, not {block}")
        if len(args) != len(function.params):
            raise PtxError(f"{name} has {len(function.params)} parameters, not {len(args)}")
        packed = [argument(variable, value) for variable, value in zip(function.params, args)]
        grains = {space: finest(code, space) for space in ("shared", "global")}
        places = self.place(memory)
        view = LaunchView(memory, grains["global"])

        blocks = int(np.prod(grid))
        batch = max(1, LANES // (-(-threads // 32) * 32))
        executed = 0
        with np.errstate(all="ignore"):
            for first in range(0, blocks, batch):
                part = range(first, min(blocks, first + batch))
                machine = Machine(self.program, code, places, view, grid, block, part, dynamic_shared, grains["shared"])
                if machine.shared.layout.used > SHARED_LIMIT:
                    raise PtxError(f"{name} wants {machine.shared.layout.used} bytes of shared memory")
                for variable, content in zip(function.params, packed):
                    machine.params.fill(variable, content)
                machine.run(name, machine.all[machine.live])
                executed += machine.executed
                in_flight = machine.shared.in_flight()
                if len(in_flight):
                    raise PtxError(f"{name} ends with a cp.async in flight, {machine.who(in_flight[0])}")
        return executed

    def place(self, memory: Memory) -> dict[Variable, int]:
        """The addresses of the .const and .global variables, which live as long as the memory does."""
        if self not in memory.modules:
            memory.modules[self] = {
                variable: memory.add(np.frombuffer(variable.initial.ljust(variable.size, b"\0"), np.uint8))
                for variable in self.program.variables.values()
                if variable.space in ("const", "global")
            }
        return memory.modules[self]


def finest(code: dict[str, list[Step]], space: str) -> int:
    """The size of the narrowest access to shared or global memory."""
    sizes = (access.access_size(step.instruction, space) for steps in code.values() for step in steps)
    return min((size for size in sizes if size), default=16)


def argument(variable: Variable, value: int | float | bytes) -> bytes:
    """One argument's bytes, as its parameter's type wants them."""
    if isinstance(value, bytes):
        content = value
    elif variable.kind[0] == "f" or isinstance(value, float):
        content = struct.pack({4: "<f", 8: "<d"}[variable.size], value)
    else:
        content = (int(value) & ((1 << bits(variable.kind)) - 1)).to_bytes(bits(variable.kind) // 8, "little")
    if len(content) != variable.size:
        raise PtxError(f"{variable.name} takes {variable.size} bytes, not {len(content)}")
    return content
