"""Global memory as one launch sees it: whatever one block writes, no other block may touch before the launch ends.

Blocks run in any order and are ordered by nothing that the interpreter models, so two of them that access one place,
one of them writing, race. Atomic operations are exempt, and so are blocks that write the same value.
"""

import numpy as np

from tests.ptx.memory import Fault, Memory, gather, scatter

SEVERAL = -1  # blocks; a single one is noted as its number + 1, nobody as 0


class LaunchView:
    def __init__(self, memory: Memory, grain: int):
        self.memory, self.grain = memory, grain
        self.writer = np.zeros(memory.data.size // grain + 1, np.int32)
        self.reader = np.zeros(memory.data.size // grain + 1, np.int32)
        self.block = np.zeros(0, np.int32)  # of each lane of the batch that runs, its number + 1

    def grains(self, start: np.ndarray, size: int) -> np.ndarray:
        """[lane, grain]: the places within `size` bytes."""
        count = -(-size // self.grain)
        lowest = (start // self.grain)[:, None]
        return lowest if count == 1 else lowest + np.arange(count)

    def load(self, index: np.ndarray, address: np.ndarray, unit: int, count: int, align: int = 0) -> np.ndarray:
        start = self.memory.check(index, address, unit * count, "read", align)
        grains, own = self.grains(start, unit * count), self.block[index][:, None]
        self.check(index, start, self.writer[grains], own, "write")
        before = self.reader[grains]
        if ((before != own) & (before != SEVERAL)).any():
            self.reader[grains] = np.where((before == 0) | (before == own), own, SEVERAL)
            lost = self.reader[grains] != own  # blocks that read together here, or were noted before
            self.reader[grains[lost]] = SEVERAL
        return gather(self.memory.data, start, unit, count)

    def store(self, index: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        unit, count = values.dtype.itemsize, values.shape[1]
        start = self.memory.check(index, address, unit * count, "write")
        grains, own = self.grains(start, unit * count), self.block[index][:, None]
        self.check(index, start, self.reader[grains], own, "read")
        new = (gather(self.memory.data, start, unit, count) != values).any(1)
        self.check(index[new], start[new], self.writer[grains[new]], own[new], "write")
        self.writer[grains] = own
        scatter(self.memory.data, start, values)
        lost = (gather(self.memory.data, start, unit, count) != values).any(1)
        if lost.any():
            position = int(np.argmax(lost))
            message = "race on global memory: two threads of this instruction write one place"
            raise Fault(index[position], f"{message}, {self.memory.where(int(start[position]))}")

    def check(self, index: np.ndarray, start: np.ndarray, before: np.ndarray, own: np.ndarray, what: str) -> None:
        foreign = (before != 0) & (before != own)
        if foreign.any():
            position = int(np.argmax(foreign.any(1)))
            other = int(before[position][np.argmax(foreign[position])])
            who = "several blocks" if other == SEVERAL else f"block number {other - 1}"
            where = self.memory.where(int(start[position]))
            raise Fault(index[position], f"race on global memory: {what} by {who} of {where}; now")
