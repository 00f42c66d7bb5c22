"""Shared memory of a batch of blocks: bounds per array, bytes never written, pending cp.async, races between barriers.

The shadow state is kept per grain, the size of the kernel's narrowest access. For each grain stand the last write and
the last read, as a stamp: time << 40 | line << 21 | code. Time counts the barriers; the code says which lane
it was, or that it was several lanes of one warp, or of several warps. An earlier access is ordered before a lane's own
if the lane passed a barrier since, or a bar.warp.sync if the other lane is of its warp, even where the mask left that
one out. Two lanes that store the same value to the same place do not race.
"""

import numpy as np

from tests.ptx.memory import Fault, check_aligned, gather, scatter

CODE = (1 << 21) - 1
OF_WARP = 1 << 19  # several lanes of one warp: OF_WARP + the warp
SEVERAL = CODE  # lanes of several warps
UNWRITTEN, WRITTEN, PENDING = 0, 1, 2
GAP = 1024  # bytes of nobody between two arrays


def first(found: np.ndarray) -> int:
    """The first row with anything found."""
    return int(np.argmax(found if found.ndim == 1 else found.any(1)))


def warp_of(code: np.ndarray) -> np.ndarray:
    return np.where(code < OF_WARP, code >> 5, np.where(code < SEVERAL, code - OF_WARP, -1))


def both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The code of the lanes of two codes together."""
    warp = warp_of(one)
    return np.where((warp == warp_of(other)) & (warp >= 0), OF_WARP + warp, SEVERAL)


class Layout:
    """Where each .shared array of a block stands: no better aligned than it was declared, with gaps between."""

    def __init__(self, variables, dynamic: int):
        self.places: dict = {}
        self.arrays: list[tuple[int, int, str]] = []  # start, size, name
        fixed = [variable for variable in variables if variable.size]
        extern = [variable for variable in variables if not variable.size]  # all are the launch's dynamic memory
        top = GAP
        for variable in fixed:
            self.places[variable] = start = self.aligned(top, variable.align)
            self.arrays.append((start, variable.size, variable.name))
            top = start + variable.size + GAP
        if extern:
            start = self.aligned(top, max(variable.align for variable in extern))
            self.places.update(dict.fromkeys(extern, start))
            self.arrays.append((start, dynamic, extern[0].name))
            top = start + dynamic + GAP
        self.used = sum(size for _, size, _ in self.arrays)
        self.stride = -(-top // 128) * 128
        self.valid = np.zeros(self.stride, bool)
        for start, size, _ in self.arrays:
            self.valid[start : start + size] = True

    @staticmethod
    def aligned(top: int, align: int) -> int:
        start = -(-top // align) * align
        return start + align if start % (2 * align) == 0 and align < 64 else start

    def nearest(self, address: int) -> str:
        before = [array for array in self.arrays if array[0] <= address]
        if not before:
            return "before the first array"
        start, size, name = max(before)
        return f"byte {address - start} of {name} ({size} bytes)"


class Shared:
    def __init__(self, layout: Layout, blocks: int, grain: int, lanes_per_block: int):
        self.layout, self.grain, self.lanes_per_block = layout, grain, lanes_per_block
        self.data = np.zeros(blocks * layout.stride, np.uint8)
        self.state = np.zeros(self.data.size // grain, np.uint8)
        self.writes = np.zeros(self.state.size, np.int64)
        self.reads = np.zeros(self.state.size, np.int64)
        self.time = 1
        lanes = blocks * lanes_per_block
        self.block_sync = np.full(lanes, 1 << 40, np.int64)  # the time of each lane's last barrier, as a stamp
        self.warp_sync = np.full(lanes, 1 << 40, np.int64)
        self.line = 0  # of the instruction that is running
        self.copies: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # lane, group, start, values
        self.committed = np.zeros(lanes, np.int64)  # groups of cp.async, per lane

    def synchronise(self, lanes: np.ndarray, warp_only: bool) -> None:
        self.time += 1
        (self.warp_sync if warp_only else self.block_sync)[lanes] = self.time << 40

    def start(self, index: np.ndarray, address: np.ndarray, size: int, action: str) -> np.ndarray:
        """Offsets into data, after the checks of bounds and alignment."""
        inside = (address >= 0) & (address <= self.layout.stride - size)
        if inside.all():
            inside = self.layout.valid[address] & self.layout.valid[address + (size - 1)]
        if not inside.all():
            position = int(np.argmin(inside))
            where = self.layout.nearest(int(address[position]))
            raise Fault(index[position], f"shared {action} of {size} bytes out of bounds: {where}")
        check_aligned(index, address, size, "shared")
        return address + index // self.lanes_per_block * self.layout.stride

    def grains(self, start: np.ndarray, size: int) -> np.ndarray:
        lowest = start // self.grain
        count = size // self.grain
        return lowest if count == 1 else lowest[:, None] + np.arange(count)

    def unordered(self, stamps: np.ndarray, lane: np.ndarray) -> np.ndarray | None:
        """Which of the earlier accesses are another lane's with no barrier since; None if none is."""
        lane = lane if stamps.ndim == 1 else lane[:, None]
        recent = (stamps >= self.block_sync[lane]) & (stamps & CODE != lane)
        if not recent.any():
            return None
        recent &= (warp_of(stamps & CODE) != lane >> 5) | (stamps >= self.warp_sync[lane])
        return recent if recent.any() else None

    def race(self, index: np.ndarray, stamps: np.ndarray, found: np.ndarray, what: str) -> Fault:
        position = first(found)
        stamp = int(np.max(np.where(found[position], stamps[position], 0)))
        code, line = stamp & CODE, stamp >> 21 & (1 << 19) - 1
        other = f"thread {code % self.lanes_per_block}" if code < OF_WARP else "several threads"
        return Fault(index[position], f"race on shared memory: {what} by {other} at line {line}, no barrier since; now")

    def stamp(self, lane: np.ndarray, grains: np.ndarray) -> np.ndarray:
        """What this instruction leaves, per grain."""
        return self.time << 40 | self.line << 21 | (lane if grains.ndim == 1 else lane[:, None])

    def load(self, index: np.ndarray, address: np.ndarray, unit: int, count: int) -> np.ndarray:
        size = unit * count
        start = self.start(index, address, size, "read")
        grains = self.grains(start, size)
        state = self.state[grains]
        if not (state == WRITTEN).all():
            position = first(state != WRITTEN)
            reason = "with a cp.async pending" if (state[position] == PENDING).any() else "never written"
            where = self.layout.nearest(int(address[position]))
            raise Fault(index[position], f"read of shared memory {reason}: {where}")
        stamps = self.writes[grains]
        found = self.unordered(stamps, index)
        if found is not None:
            raise self.race(index, stamps, found, "write")
        self.note_read(grains, index)
        return gather(self.data, start, unit, count)

    def note_read(self, grains: np.ndarray, lane: np.ndarray) -> None:
        lane = lane if grains.ndim == 1 else lane[:, None]
        now = self.time << 40 | self.line << 21
        before = self.reads[grains]
        code = before & CODE
        noted = (code == lane) | (code == SEVERAL) | (code == OF_WARP + (lane >> 5))
        if (noted & (before >= self.time << 40)).all():
            return
        own = np.broadcast_to(lane, grains.shape)
        others = (before >= self.block_sync[lane]) & (code != lane)
        if others.any():  # another lane has read it since the last barrier: remember both
            own = own.copy()
            own[others] = both(code[others], own[others])
        self.reads[grains] = now | own
        kept = self.reads[grains] & CODE
        lost = kept != own
        if lost.any():  # several lanes read one grain at once, and only one of them was noted
            place, code = grains[lost], both(kept[lost], own[lost])
            self.reads[place] = now | code
            self.reads[place[code == SEVERAL]] = now | SEVERAL

    def check_write(self, grains: np.ndarray, start, index, values: np.ndarray | None) -> None:
        pending = self.state[grains] == PENDING
        if pending.any():
            raise Fault(index[first(pending)], "write to shared memory with a cp.async pending")
        stamps = self.reads[grains]
        found = self.unordered(stamps, index)
        if found is not None:
            raise self.race(index, stamps, found, "read")
        stamps = self.writes[grains]
        found = self.unordered(stamps, index)
        if found is not None and values is not None:
            same = (gather(self.data, start, values.dtype.itemsize, values.shape[1]) == values).all(1)
            found = found & ~(same if found.ndim == 1 else same[:, None])
        if found is not None and found.any():
            raise self.race(index, stamps, found, "write")

    def store(self, index: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        size = values.dtype.itemsize * values.shape[1]
        start = self.start(index, address, size, "write")
        grains = self.grains(start, size)
        self.check_write(grains, start, index, values)
        scatter(self.data, start, values)
        self.writes[grains] = self.stamp(index, grains)
        self.state[grains] = WRITTEN
        lost = (gather(self.data, start, values.dtype.itemsize, values.shape[1]) != values).any(1)
        if lost.any():
            raise Fault(index[first(lost)], "race on shared memory: two threads of this instruction write one place")

    def copy_later(self, index: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        """cp.async: the bytes arrive when the lane waits for them; until then nobody may touch the place."""
        size = values.dtype.itemsize * values.shape[1]
        start = self.start(index, address, size, "write")
        grains = self.grains(start, size)
        self.check_write(grains, start, index, None)
        stamps = self.stamp(index, grains)
        self.writes[grains] = stamps
        lost = self.writes[grains] != stamps
        if lost.any():
            raise Fault(index[first(lost)], "race on shared memory: two threads of this instruction copy to one place")
        self.state[grains] = PENDING
        self.copies.append((index, self.committed[index], start, values))

    def commit(self, index: np.ndarray) -> None:
        self.committed[index] += 1

    def wait(self, index: np.ndarray, groups: int) -> None:
        """Until at most `groups` of each lane's latest groups are pending; their bytes are its own writes now."""
        finished = np.zeros(len(self.committed), np.int64)
        finished[index] = self.committed[index] - groups
        pending = []
        for lane, group, start, values in self.copies:
            done = group < finished[lane]
            if done.any():
                grains = self.grains(start[done], values.dtype.itemsize * values.shape[1])
                scatter(self.data, start[done], values[done])
                self.state[grains] = WRITTEN
                self.writes[grains] = self.stamp(lane[done], grains)
            if not done.all():
                pending.append((lane[~done], group[~done], start[~done], values[~done]))
        self.copies = pending

    def in_flight(self) -> np.ndarray:
        """The lanes whose cp.async nobody waited for."""
        return np.concatenate([lane for lane, *_ in self.copies]) if self.copies else np.zeros(0, np.int64)
