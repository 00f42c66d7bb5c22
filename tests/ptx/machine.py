"""Runs decoded functions on a batch of blocks: one array element per thread, the lowest program counter first.

Threads of one batch that stand at the same instruction execute it together. A barrier, and a warp collective whose
mask names lanes that are not there yet, holds its threads until the others come; if nobody can go on, that is
reported. Blocks are padded to whole warps with lanes that never start.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.memory import Fault, LaneMemory
from tests.ptx.parse import Function, Instruction, PtxError
from tests.ptx.shared import Layout, Shared
from tests.ptx.view import LaunchView

STEP_LIMIT = 5_000_000  # branches taken by one batch; beyond, a kernel is taken to spin


@dataclass
class Step:
    """One decoded instruction. `control` is "" for those that only compute."""

    instruction: Instruction
    control: str = ""
    run: Callable | None = None
    guard: int = -1  # the predicate's register
    negated: bool = False
    members: Callable | None = None  # a collective's mask; None with control "collective" means the whole warp
    callee: str = ""
    arguments: list = field(default_factory=list)  # a call's .param variables
    results: list = field(default_factory=list)


class Frame:
    """A function's registers. There is one frame per function: recursion is refused."""

    def __init__(self, machine: "Machine", function: Function, code: list[Step]):
        types = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
        self.machine, self.function, self.code = machine, function, code
        self.registers = [np.zeros(machine.lanes, types[width]) for width in function.registers]
        self.places = machine.places
        self.carry = np.zeros(machine.lanes, np.uint32)  # the condition code of add.cc and its like
        self.active = False


def merge(groups: dict[int, np.ndarray], counter: int, lanes: np.ndarray) -> None:
    groups[counter] = np.sort(np.concatenate([groups[counter], lanes])) if counter in groups else lanes


def bits_per_warp(flags: np.ndarray) -> np.ndarray:
    return np.packbits(flags.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]


class Machine:
    def __init__(self, program, code, places, memory: LaunchView, grid, block, blocks: range, dynamic: int, grain: int):
        self.program, self.code, self.memory, self.block, self.blocks = program, code, memory, block, blocks
        self.grid = grid
        threads = int(np.prod(block))
        self.per_block = -(-threads // 32) * 32
        self.lanes = self.per_block * len(blocks)
        self.all = np.arange(self.lanes)
        thread = self.all % self.per_block
        self.live = thread < threads
        self.memory.block = (np.asarray(blocks) + 1)[self.all // self.per_block].astype(np.int32)
        self.executed = 0  # instructions times lanes, those whose guard is false included
        self.steps = 0

        variables = list(program.variables.values())
        owned = [v for name in code for v in program.functions[name].variables]
        signatures = [v for name in code for f in [program.functions[name]] for v in [*f.params, *f.results]]
        layout = Layout([v for v in variables + owned if v.space == "shared"], dynamic)
        self.shared = Shared(layout, len(blocks), grain, self.per_block)
        self.local = LaneMemory(self.lanes, [v for v in owned if v.space == "local"], "local")
        self.params = LaneMemory(self.lanes, [v for v in owned + signatures if v.space == "param"], "parameter")
        self.places = {**places, **layout.places, **self.local.places, **self.params.places}
        self.frames = {name: Frame(self, program.functions[name], steps) for name, steps in code.items()}
        self.special = self.special_registers(threads, thread, dynamic)

    def special_registers(self, threads: int, thread: np.ndarray, dynamic: int) -> dict[str, np.ndarray]:
        """Arrays of one element, or of one per lane."""
        block = np.asarray(self.blocks)[self.all // self.per_block]
        lane = np.uint32(1) << (thread % 32).astype(np.uint32)
        special = {
            "laneid": thread % 32,
            "warpid": thread // 32,
            "nwarpid": np.array([self.per_block // 32]),
            "lanemask_eq": lane,
            "lanemask_lt": lane - np.uint32(1),
            "lanemask_le": lane | (lane - np.uint32(1)),
            "lanemask_gt": ~(lane | (lane - np.uint32(1))),
            "lanemask_ge": ~(lane - np.uint32(1)),
            "dynamic_smem_size": np.array([dynamic]),
        }
        for axis, name in enumerate("xyz"):
            special[f"ntid.{name}"] = np.array([self.block[axis]])
            special[f"nctaid.{name}"] = np.array([self.grid[axis]])
            special[f"tid.{name}"] = thread // int(np.prod(self.block[:axis])) % self.block[axis]
            special[f"ctaid.{name}"] = block // int(np.prod(self.grid[:axis])) % self.grid[axis]
        return special

    def index(self, lanes) -> np.ndarray:
        return self.all if isinstance(lanes, slice) else lanes

    def who(self, lane: int) -> str:
        names = [f"{kind}id.{axis}" for kind in ("cta", "t") for axis in "xyz"]
        bx, by, bz, tx, ty, tz = (int(self.special[name][lane]) for name in names)
        return f"block ({bx}, {by}, {bz}) thread ({tx}, {ty}, {tz})"

    def run(self, name: str, start: np.ndarray) -> None:
        """Runs a function from its first instruction until all of `start` have left it."""
        frame = self.frames[name]
        if frame.active:
            raise PtxError(f"{name} calls itself: recursion is not supported")
        frame.active = True
        groups, waiting = {0: start}, {}
        while groups or waiting:
            if not groups:
                self.release(frame, groups, waiting)
            counter = min(groups)
            index = groups.pop(counter)
            self.advance(frame, counter, index, groups, waiting)
        frame.active = False

    def advance(self, frame: Frame, counter: int, index: np.ndarray, groups: dict, waiting: dict) -> None:
        """Executes from `counter` on until the group splits, meets another one, waits or ends."""
        next_group = min(groups, default=len(frame.code))
        lanes = slice(None) if len(index) == self.lanes else index
        while True:
            step = frame.code[counter]
            active, rest = index, None
            active_lanes = lanes
            if step.guard >= 0:
                condition = frame.registers[step.guard][lanes]
                if step.negated:
                    condition = ~condition
                if not condition.all():
                    active, rest = index[condition], index[~condition]
                    active_lanes = active
            counter += 1
            self.executed += len(index)
            if len(active):
                if step.control == "":
                    self.compute(frame, step, active_lanes)
                elif step.control == "branch" and rest is None:
                    self.count_step(step)
                    counter = step.instruction.target
                else:
                    if rest is not None:
                        merge(groups, counter, rest)
                    self.transfer(frame, step, counter, active, groups, waiting)
                    return
            if counter >= next_group:
                merge(groups, counter, index)
                return

    def transfer(self, frame: Frame, step: Step, counter: int, active: np.ndarray, groups, waiting) -> None:
        """What splits a group or ends its run; `counter` is the next instruction's."""
        self.count_step(step)
        if step.control == "branch":
            merge(groups, step.instruction.target, active)
        elif step.control == "exit" or (step.control == "return" and frame.function.kernel):
            self.live[active] = False
        elif step.control == "barrier":
            merge(waiting, counter - 1, active)
        elif step.control == "call":
            active = self.call(step, active)
            if len(active):
                merge(groups, counter, active)
        elif step.control == "collective":
            if counter - 1 in waiting:
                active = np.sort(np.concatenate([active, waiting.pop(counter - 1)]))
            ready = self.ready(frame, step, active)
            if not ready.all():
                merge(waiting, counter - 1, active[~ready])
            if ready.any():
                self.collective(frame, step, active[ready])
                merge(groups, counter, active[ready])

    def count_step(self, step: Step) -> None:
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise step.instruction.error("the kernel does not end")

    def call(self, step: Step, active: np.ndarray) -> np.ndarray:
        """Runs a function to its end; returns the lanes that came back."""
        callee = self.program.functions[step.callee]
        if (len(step.arguments), len(step.results)) != (len(callee.params), len(callee.results)):
            raise step.instruction.error("a call that does not fit its function")
        for source, target in zip(step.arguments, callee.params):
            self.params.copy(active, source, target)
        self.run(step.callee, active)
        active = active[self.live[active]]
        for source, target in zip(callee.results, step.results):
            self.params.copy(active, source, target)
        return active

    def compute(self, frame: Frame, step: Step, lanes) -> None:
        try:
            step.run(frame, lanes)
        except Fault as fault:
            raise step.instruction.error(f"{fault} by {self.who(fault.lane)}") from None

    def collective(self, frame: Frame, step: Step, active: np.ndarray) -> None:
        self.compute(frame, step, slice(None) if len(active) == self.lanes else active)

    def ready(self, frame: Frame, step: Step, active: np.ndarray) -> np.ndarray:
        """Which lanes have all of their mask's live lanes beside them."""
        if step.members is None and len(active) == self.lanes:
            return np.ones(len(active), bool)
        flags = np.zeros(self.lanes, bool)
        flags[active] = True
        arrived, live = bits_per_warp(flags)[active >> 5], bits_per_warp(self.live)[active >> 5]
        if step.members is None:
            if (live != 0xFFFFFFFF).any():
                lane = active[np.argmax(live != 0xFFFFFFFF)]
                raise step.instruction.error(f"a warp that is not whole, with {self.who(lane)}")
            return arrived == live
        mask = np.broadcast_to(step.members(frame, active), active.shape)
        own = mask >> (active & 31).astype(np.uint32) & np.uint32(1)
        if not own.all():
            raise step.instruction.error(f"a mask without its own lane, {self.who(active[np.argmin(own)])}")
        return arrived & mask & live == mask & live

    def release(self, frame: Frame, groups: dict, waiting: dict) -> None:
        """Lets those go on who have waited for all others, by now here or gone."""
        code = frame.code
        for counter in [c for c in waiting if code[c].control == "collective"]:
            index = waiting.pop(counter)
            ready = self.ready(frame, code[counter], index)
            if not ready.all():
                waiting[counter] = index[~ready]
            if ready.any():
                self.collective(frame, code[counter], index[ready])
                merge(groups, counter + 1, index[ready])
        if groups:
            return
        live = self.live.reshape(-1, self.per_block).sum(1)
        for counter in [c for c in waiting if code[c].control == "barrier"]:
            index = waiting.pop(counter)
            block = index // self.per_block
            complete = (np.bincount(block, minlength=len(live)) == live)[block]
            if not complete.all():
                waiting[counter] = index[~complete]
            if complete.any():
                self.shared.synchronise(index[complete], warp_only=False)
                merge(groups, counter + 1, index[complete])
        if not groups:
            raise self.deadlock(frame, waiting)

    def deadlock(self, frame: Frame, waiting: dict) -> PtxError:
        """Names where the threads of one block wait for each other."""
        block = int(min(index[0] for index in waiting.values())) // self.per_block
        places = []
        for counter, index in sorted(waiting.items()):
            count = int((index // self.per_block == block).sum())
            if count:
                instruction = frame.code[counter].instruction
                places.append(f"{count} at line {instruction.line} ({instruction.text})")
        barrier = all(frame.code[counter].control == "barrier" for counter in waiting)
        kind = "divergent barrier" if barrier else "divergent warp collective"
        total = int(self.live.reshape(-1, self.per_block)[block].sum())
        who = self.who(block * self.per_block).split(" thread")[0]
        return PtxError(f"{kind}: of the {total} live threads of {who}, {', '.join(places)} wait for the others")
