"""Global memory, and the per-thread .local and .param memory. Every access is checked for bounds and alignment."""

import bisect

import numpy as np

# Addresses say which space they are of. Global buffers lie 4 GiB apart, so that no stray index reaches another one.
WINDOW = 1 << 40
SHARED_WINDOW, LOCAL_WINDOW, GLOBAL_BASE = 1 * WINDOW, 2 * WINDOW, 3 * WINDOW
SPACING = 1 << 32


class Fault(Exception):
    """An access that a kernel may not make: the lane that made it, and what is wrong."""

    def __init__(self, lane: int, message: str):
        super().__init__(message)
        self.lane = int(lane)


def check_aligned(index: np.ndarray, address: np.ndarray, size: int, space: str) -> None:
    astray = address & (size - 1)
    if astray.any():
        position = int(np.argmax(astray != 0))
        raise Fault(index[position], f"misaligned {space} access of {size} bytes at {int(address[position]):#x}")


def gather(data: np.ndarray, start: np.ndarray, unit: int, count: int) -> np.ndarray:
    """data's bytes as [len(start), count] elements of `unit` bytes."""
    elements = data.view(f"u{unit}")
    first = start // unit
    return elements[first][:, None] if count == 1 else elements[first[:, None] + np.arange(count)]


def scatter(data: np.ndarray, start: np.ndarray, values: np.ndarray) -> None:
    elements = data.view(values.dtype)
    first = start // values.dtype.itemsize
    if values.shape[1] == 1:
        elements[first] = values[:, 0]
    else:
        elements[first[:, None] + np.arange(values.shape[1])] = values


class Memory:
    """Global buffers, 256-byte aligned as cudaMalloc's are."""

    def __init__(self):
        self.data = np.zeros(1 << 16, np.uint8)  # of all buffers, one behind the other
        self.top = 0
        self.starts: list[int] = []  # in data
        self.buffers: list[tuple[np.dtype, tuple[int, ...]]] = []
        self.table = np.zeros((2, 0), np.int64)  # each buffer's start and size
        self.modules: dict = {}  # a module's .const and .global variables, placed at its first launch

    def add(self, array: np.ndarray) -> int:
        """Copies an array in and returns its address."""
        array = np.ascontiguousarray(array)
        start, end = self.top, self.top + array.nbytes
        self.top = -(-end // 256) * 256
        while self.top > self.data.size:
            self.data = np.concatenate([self.data, np.zeros_like(self.data)])
        self.data[start:end] = array.reshape(-1).view(np.uint8)
        self.starts.append(start)
        self.buffers.append((array.dtype, array.shape))
        self.table = np.concatenate([self.table, [[start], [array.nbytes]]], axis=1)
        return GLOBAL_BASE + len(self.starts) * SPACING

    def read(self, address: int) -> np.ndarray:
        """What stands now in the buffer that add() gave this address for."""
        number = (address - GLOBAL_BASE) // SPACING - 1
        start, size = self.table[:, number].tolist()
        dtype, shape = self.buffers[number]
        return self.data[start : start + size].copy().view(dtype).reshape(shape)

    def check(self, index: np.ndarray, address: np.ndarray, size: int, action: str, align: int = 0) -> np.ndarray:
        """Offsets into data, after all checks; `index` names the lanes, `align` is the size if not given."""
        number, offset = ((address - GLOBAL_BASE) >> 32) - 1, address & (SPACING - 1)
        inside = (number >= 0) & (number < len(self.starts))
        if inside.all():
            start, limit = self.table[:, number]
            inside = offset + size <= limit
        if not inside.all():
            position = int(np.argmin(inside))
            raise Fault(index[position], self.out_of_bounds(int(address[position]), size, action))
        check_aligned(index, address, align or size, "global")
        return start + offset

    def out_of_bounds(self, address: int, size: int, action: str) -> str:
        number, offset = divmod(address - GLOBAL_BASE, SPACING)
        if offset > SPACING // 2:
            number, offset = number + 1, offset - SPACING
        message = f"global {action} of {size} bytes out of bounds at address {address:#x}"
        if not 1 <= number <= len(self.starts):
            return message
        return f"{message}, byte {offset} of {self.name(number - 1)}"

    def name(self, number: int) -> str:
        dtype, shape = self.buffers[number]
        return f"buffer {number} ({dtype}{list(shape)}, {self.table[1, number]} bytes)"

    def where(self, start: int) -> str:
        """An offset into data, in terms of its buffer."""
        number = bisect.bisect_right(self.starts, start) - 1
        return f"byte {start - self.starts[number]} of {self.name(number)}"

    def load(self, index: np.ndarray, address: np.ndarray, unit: int, count: int, align: int = 0) -> np.ndarray:
        return gather(self.data, self.check(index, address, unit * count, "read", align), unit, count)

    def store(self, index: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        start = self.check(index, address, values.dtype.itemsize * values.shape[1], "write")
        scatter(self.data, start, values)


class LaneMemory:
    """Bytes of each lane's own: its .local arrays, or the .param space of a function."""

    def __init__(self, lanes: int, variables, name: str):
        self.name = name
        self.places: dict = {}
        top = 0
        for variable in variables:
            start = -(-top // variable.align) * variable.align
            self.places[variable] = start
            top = start + variable.size + 16  # one access more than a variable's size
        self.stride = -(-top // 16) * 16 + 16
        self.valid = np.zeros(self.stride, bool)
        for variable, start in self.places.items():
            self.valid[start : start + variable.size] = True
        self.data = np.zeros(lanes * self.stride, np.uint8)

    def check(self, index: np.ndarray, address: np.ndarray, size: int, action: str) -> np.ndarray:
        inside = (address >= 0) & (address <= self.stride - size)
        if inside.all():
            inside = self.valid[address] & self.valid[address + (size - 1)]
        if not inside.all():
            position = int(np.argmin(inside))
            raise Fault(
                index[position], f"{self.name} {action} of {size} bytes out of bounds at {int(address[position])}"
            )
        check_aligned(index, address, size, self.name)
        return address + index * self.stride

    def load(self, index: np.ndarray, address: np.ndarray, unit: int, count: int) -> np.ndarray:
        return gather(self.data, self.check(index, address, unit * count, "read"), unit, count)

    def store(self, index: np.ndarray, address: np.ndarray, values: np.ndarray) -> None:
        start = self.check(index, address, values.dtype.itemsize * values.shape[1], "write")
        scatter(self.data, start, values)

    def fill(self, variable, content: bytes) -> None:
        """The same bytes for every lane."""
        start = self.places[variable]
        self.data.reshape(-1, self.stride)[:, start : start + len(content)] = np.frombuffer(content, np.uint8)

    def copy(self, index: np.ndarray, source, target) -> None:
        rows = self.data.reshape(-1, self.stride)
        start, end = self.places[source], self.places[target]
        rows[index, end : end + target.size] = rows[index, start : start + target.size]
