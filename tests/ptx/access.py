"""Moves, loads and stores of every state space, cp.async and atomics on global memory."""

import numpy as np

from tests.ptx.decode import operation
from tests.ptx.memory import GLOBAL_BASE, LOCAL_WINDOW, SHARED_WINDOW, WINDOW, Fault
from tests.ptx.operands import UNSIGNED, address, integer_type, items, number, raw, write
from tests.ptx.parse import Immediate, Register, Vector, bits

HINTS = ("ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt", "volatile", "relaxed", "weak", "acquire", "release")
SCOPES = ("cta", "gpu", "sys", "cluster")
LEVELS = tuple(f"L1::{each}" for each in ("evict_normal", "evict_first", "evict_last", "no_allocate")) + tuple(
    f"L2::{each}" for each in ("64B", "128B", "256B", "evict_last", "evict_normal", "evict_first")
)


@operation("mov")
def move(instruction, modifiers):
    """mov, with {a, b} on one side as packing or unpacking."""
    width = bits(modifiers.kind())
    d, a = instruction.operands
    if isinstance(a, Vector):
        return pack(instruction, d, a.items, width)
    read = raw(a, width, instruction)
    if isinstance(d, Vector):
        part = width // len(d.items)
        stores = [write(item, instruction) for item in d.items]

        def unpack(frame, lanes):
            x = read(frame, lanes)
            for place, store in enumerate(stores):
                store(frame, lanes, (x >> x.dtype.type(part * place)).astype(UNSIGNED[part]))

        return unpack
    store = write(d, instruction)
    return lambda frame, lanes: store(frame, lanes, read(frame, lanes))


def pack(instruction, d, parts, width: int):
    part, whole = width // len(parts), UNSIGNED[width]
    reads, store = [raw(item, part, instruction) for item in parts], write(d, instruction)

    def run(frame, lanes):
        result = np.zeros(1, whole)
        for place, read in enumerate(reads):
            result = result | read(frame, lanes).astype(whole) << whole.type(part * place)
        store(frame, lanes, result)

    return run


@operation("cvta")
def convert_address(instruction, modifiers):
    """Between a space's own addresses and generic ones, where shared and local memory have a window each."""
    width = bits(modifiers.kind())
    outward = not modifiers.flag("to")
    space = modifiers.one_of("global", "const", "shared", "shared::cta", "local")
    d, a = instruction.operands
    read, store = raw(a, width, instruction), write(d, instruction)
    window = {"shared": SHARED_WINDOW, "shared::cta": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    if width != 64:
        raise instruction.error("a generic address of other than 64 bits")
    shift = np.uint64(window) if outward else np.uint64((1 << 64) - window & (1 << 64) - 1)
    return lambda frame, lanes: store(frame, lanes, read(frame, lanes) + shift)


def space_of(modifiers) -> str:
    modifiers.drop(*HINTS, *SCOPES, *LEVELS)
    modifiers.left = [
        name.removesuffix("::cta").removesuffix("::entry").removesuffix("::func") for name in modifiers.left
    ]
    return modifiers.one_of("global", "const", "shared", "local", "param", default="generic")


def without_policy(instruction, modifiers) -> list:
    """The operands but a cache policy."""
    hinted = modifiers.flag("L2::cache_hint")
    return instruction.operands[:-1] if hinted else instruction.operands


class Generic:
    """Addresses of any space: each lane's goes to the memory in whose window it lies."""

    def __init__(self, machine):
        self.machine = machine

    def parts(self, index: np.ndarray, start: np.ndarray):
        machine, window = self.machine, start & ~(WINDOW - 1)
        spaces = {SHARED_WINDOW: machine.shared, LOCAL_WINDOW: machine.local}
        for base in np.unique(window):
            memory = spaces.get(int(base), machine.memory)
            chosen = window == base
            yield memory, chosen, index[chosen], start[chosen] - (base if int(base) in spaces else 0)

    def load(self, index: np.ndarray, start: np.ndarray, unit: int, count: int) -> np.ndarray:
        result = np.zeros((len(index), count), f"u{unit}")
        for memory, chosen, own, place in self.parts(index, start):
            result[chosen] = memory.load(own, place, unit, count)
        return result

    def store(self, index: np.ndarray, start: np.ndarray, values: np.ndarray) -> None:
        for memory, chosen, own, place in self.parts(index, start):
            memory.store(own, place, values[chosen])


def memory_of(machine, space: str):
    if space == "generic":
        return Generic(machine)
    spaces = {"shared": machine.shared, "local": machine.local, "param": machine.params}
    return spaces.get(space, machine.memory)


def addresses(read, frame, lanes) -> tuple[np.ndarray, np.ndarray]:
    index = frame.machine.index(lanes)
    return index, np.broadcast_to(read(frame, lanes), index.shape)


@operation("ld", "ldu")
def load(instruction, modifiers):
    kind = modifiers.kind()
    space, count = space_of(modifiers), int(modifiers.one_of("v2", "v4", default="v1")[1:])
    d, a = without_policy(instruction, modifiers)
    if len(items(d)) != count:
        raise ValueError
    unit, start = bits(kind) // 8, address(a, instruction)
    stores = [write(item, instruction, signed=kind[0] == "s") for item in items(d)]
    line = instruction.line

    def run(frame, lanes):
        machine = frame.machine
        index, place = addresses(start, frame, lanes)
        machine.shared.line = line
        values = memory_of(machine, space).load(index, place, unit, count)
        for column, store in enumerate(stores):
            store(frame, lanes, values[:, column])

    return run


@operation("st")
def store(instruction, modifiers):
    width = bits(modifiers.kind())
    space, count = space_of(modifiers), int(modifiers.one_of("v2", "v4", default="v1")[1:])
    a, source = without_policy(instruction, modifiers)
    if len(items(source)) != count:
        raise ValueError
    start = address(a, instruction)
    reads = [raw(item, width, instruction) for item in items(source)]
    line = instruction.line

    def run(frame, lanes):
        machine = frame.machine
        index, place = addresses(start, frame, lanes)
        values = np.empty((len(index), count), UNSIGNED[width])
        for column, read in enumerate(reads):
            values[:, column] = read(frame, lanes)
        machine.shared.line = line
        memory_of(machine, space).store(index, place, values)

    return run


def access_size(instruction, space: str) -> int:
    """How many bytes an instruction may touch in shared or global memory at once; 0 if none."""
    modifiers, operands = instruction.modifiers, instruction.operands
    if instruction.opcode in ("ld", "ldu", "st"):
        named = {name.removesuffix("::cta") for name in modifiers} & {"global", "const", "shared", "local", "param"}
        if named and space not in named and (space, named) != ("global", {"const"}):
            return 0
        count = next((int(name[1:]) for name in modifiers if name in ("v2", "v4")), 1)
        return bits(modifiers[-1]) // 8 * count
    if instruction.opcode == "ldmatrix" and space == "shared":
        return 16
    if instruction.opcode == "cp" and len(operands) >= 3 and isinstance(operands[2], Immediate):
        return operands[2].value
    return 0


@operation("cp")
def copy_async(instruction, modifiers):
    modifiers.first_of("async")
    line = instruction.line
    if modifiers.flag("commit_group"):
        return lambda frame, lanes: frame.machine.shared.commit(frame.machine.index(lanes))
    everything = modifiers.flag("wait_all")
    if everything or modifiers.flag("wait_group"):
        groups = 0
        if not everything:
            (operand,) = instruction.operands
            groups = operand.value

        def wait(frame, lanes):
            shared, index = frame.machine.shared, frame.machine.index(lanes)
            shared.line = line
            if everything:
                shared.commit(index)
            shared.wait(index, groups)

        return wait
    bypass = modifiers.one_of("ca", "cg") == "cg"
    modifiers.drop(*LEVELS)
    modifiers.one_of("shared", "shared::cta")
    modifiers.first_of("global")
    target, source, size, *rest = without_policy(instruction, modifiers)
    if not isinstance(size, Immediate) or size.value not in ((16,) if bypass else (4, 8, 16)) or len(rest) > 1:
        raise instruction.error("a copy of a size that there is not")
    target, source, size = address(target, instruction), address(source, instruction), size.value
    taken = source_size(rest, size, instruction)

    def run(frame, lanes):
        machine = frame.machine
        index, place = addresses(target, frame, lanes)
        _, origin = addresses(source, frame, lanes)
        count = np.broadcast_to(taken(frame, lanes), index.shape)
        machine.shared.line = line
        if (count == size).all():
            values = machine.memory.load(index, origin, 4, size // 4)
        else:
            values = partial(machine.memory, index, origin, count, size)
        machine.shared.copy_later(index, place, values)

    return run


def partial(memory, index: np.ndarray, origin: np.ndarray, count: np.ndarray, size: int) -> np.ndarray:
    """`size` bytes for each lane, of which the first `count` come from memory and the others are zero."""
    values = np.zeros((len(index), size), np.uint8)
    for each in np.unique(count[count > 0]).tolist():
        chosen = count == each
        if each > size:
            raise Fault(index[np.argmax(chosen)], f"cp.async takes {each} bytes of {size}")
        unit = 4 if each % 4 == 0 else 1
        part = memory.load(index[chosen], origin[chosen], unit, each // unit, align=size)
        values[chosen, :each] = part.view(np.uint8)
    return values.view(np.uint32)


def source_size(rest, size: int, instruction):
    """How many bytes a lane takes from the source; zeros fill the others. A predicate says whether to take none."""
    if not rest:
        return lambda frame, lanes: np.array([size])
    if isinstance(rest[0], Register) and rest[0].bits == 1:
        index = rest[0].index
        return lambda frame, lanes: np.where(frame.registers[index][lanes], 0, size)
    return raw(rest[0], 32, instruction)


@operation("createpolicy")
def create_policy(instruction, modifiers):
    """A cache policy: no effect on values."""
    modifiers.left.clear()
    d, *_ = instruction.operands
    store = write(d, instruction)
    return lambda frame, lanes: store(frame, lanes, np.zeros(1, np.uint64))


@operation("membar", "fence", "prefetch")
def no_effect(instruction, modifiers):
    """Accesses happen in program order, so that fences change nothing."""
    modifiers.left.clear()
    return lambda frame, lanes: None


ATOMIC = {
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
}


@operation("atom", "red")
def atomic(instruction, modifiers):
    """On global memory, one lane after the other."""
    kind = modifiers.kind()
    modifiers.drop(*HINTS, *SCOPES, "noftz")
    modifiers.flag("global")
    if "shared" in modifiers.left or kind.endswith("x2") or kind == "bf16":
        raise instruction.error("atomics but on numbers in global memory")
    name = modifiers.one_of(*ATOMIC, "cas")
    d, a, b, *third = [None, *instruction.operands] if instruction.opcode == "red" else instruction.operands
    if (name == "cas") != (len(third) == 1):
        raise ValueError
    width, start = bits(kind), address(a, instruction)
    dtype = np.dtype(f"f{width // 8}") if kind[0] == "f" else integer_type(kind)
    reads = [
        (number if kind[0] == "f" else raw)(each, kind if kind[0] == "f" else width, instruction)
        for each in (b, *third)
    ]
    store = write(d, instruction) if d is not None else None

    def run(frame, lanes):
        memory = frame.machine.memory.memory  # past the launch's view: atomic operations do not race
        index, place = addresses(start, frame, lanes)
        if (place < GLOBAL_BASE).any():
            raise Fault(index[np.argmax(place < GLOBAL_BASE)], "an atomic that is not on global memory")
        values = [np.broadcast_to(read(frame, lanes), index.shape).view(dtype) for read in reads]
        before = np.empty(len(index), UNSIGNED[width])
        for lane in range(len(index)):
            one = slice(lane, lane + 1)
            word = memory.load(index[one], place[one], width // 8, 1)
            before[lane] = word[0, 0]
            old = word.view(dtype)[0, 0]
            if name == "cas":
                new = values[1][lane] if old == values[0][lane] else old
            else:
                new = ATOMIC[name](old, values[0][lane])
            memory.store(index[one], place[one], np.array([[new]], dtype).view(UNSIGNED[width]))
        if store:
            store(frame, lanes, before)

    return run
