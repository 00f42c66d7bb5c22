"""Operands as functions of a frame and its active lanes.

A reader takes (frame, lanes), where lanes is slice(None) or an array of indices, and gives one value per lane, or a
single one that broadcasts. Registers hold bits: unsigned integers of their width, or bool for predicates.
"""

from collections.abc import Callable

import numpy as np

from tests.ptx import floats
from tests.ptx.parse import Address, Immediate, Instruction, Negated, Register, Sink, Special, Vector, bits

UNSIGNED = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
SIGNED = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32), 64: np.dtype(np.int64)}

Reader = Callable[..., np.ndarray]
Writer = Callable[..., None]


def integer_type(kind: str) -> np.dtype:
    """The numpy type of an integer or untyped PTX type; a float's bits."""
    return (SIGNED if kind[0] == "s" else UNSIGNED)[bits(kind)]


def raw(operand, width: int, instruction: Instruction) -> Reader:
    """Reads bits: unsigned integers of `width`, taken from the low end of a wider register."""
    if width == 1:
        return predicate(operand, instruction)
    unsigned = UNSIGNED[width]
    if isinstance(operand, Register):
        index = operand.index
        if operand.bits == width:
            return lambda frame, lanes: frame.registers[index][lanes]
        if operand.bits > width:
            return lambda frame, lanes: frame.registers[index][lanes].astype(unsigned)
    if isinstance(operand, Immediate) and isinstance(operand.value, int):
        constant = np.array([operand.value & ((1 << width) - 1)], unsigned)
        return lambda frame, lanes: constant
    if isinstance(operand, Immediate) and operand.bits and operand.bits[1] == width:
        constant = np.array([operand.bits[0]], unsigned)
        return lambda frame, lanes: constant
    if isinstance(operand, Address) and not isinstance(operand.base, Register):
        return lambda frame, lanes: np.array([frame.places[operand.base] + operand.offset]).astype(unsigned)
    if isinstance(operand, Special):
        name = operand.name
        return lambda frame, lanes: special(frame, name, instruction, lanes).astype(unsigned)
    raise instruction.error(f"an operand that .b{width} cannot take")


def special(frame, name: str, instruction: Instruction, lanes) -> np.ndarray:
    values = frame.machine.special.get(name)
    if values is None:
        raise instruction.error(f"unknown special register %{name}")
    return values[lanes] if len(values) > 1 else values


def integer(operand, kind: str, instruction: Instruction) -> Reader:
    read = raw(operand, bits(kind), instruction)
    if kind[0] != "s":
        return read
    dtype = integer_type(kind)
    return lambda frame, lanes: read(frame, lanes).view(dtype)


def predicate(operand, instruction: Instruction) -> Reader:
    if isinstance(operand, Negated):
        read = predicate(operand.register, instruction)
        return lambda frame, lanes: ~read(frame, lanes)
    if isinstance(operand, Register) and operand.bits == 1:
        index = operand.index
        return lambda frame, lanes: frame.registers[index][lanes]
    if isinstance(operand, Immediate) and operand.value in (-1, 0, 1):
        constant = np.array([operand.value != 0])
        return lambda frame, lanes: constant
    raise instruction.error("an operand that is no predicate")


def number(operand, kind: str, instruction: Instruction) -> Reader:
    """Reads floating-point values as floats.LOAD gives them; packed pairs with a last axis of 2."""
    if isinstance(operand, Immediate) and isinstance(operand.value, float) and not operand.bits:
        constant = np.array([operand.value], floats.working_type(kind))
        return lambda frame, lanes: constant
    read = raw(operand, bits(kind), instruction)
    load = floats.LOAD[kind]
    return lambda frame, lanes: load(read(frame, lanes))


def value(operand, kind: str, instruction: Instruction) -> Reader:
    """Reads numbers, integers or predicates, as the type says."""
    return (number if kind in floats.LOAD else integer)(operand, kind, instruction)


def write(operand, instruction: Instruction, signed: bool = False) -> Writer:
    """Writes bits into a register at least as wide; a signed type is extended by its sign."""
    if isinstance(operand, Sink):
        return lambda frame, lanes, result: None
    if not isinstance(operand, Register):
        raise instruction.error("a result that is no register")
    index = operand.index
    if operand.bits == 1:

        def store(frame, lanes, result):
            frame.registers[index][lanes] = result

        return store
    width, unsigned, wide = operand.bits, UNSIGNED[operand.bits], SIGNED[operand.bits]

    def store(frame, lanes, result):
        if result.dtype != unsigned:
            narrow = UNSIGNED[8 * result.dtype.itemsize]
            if result.dtype.itemsize * 8 == width:
                result = result.view(unsigned)
            elif result.dtype.itemsize * 8 > width:
                raise instruction.error(f"a result wider than its .b{width} register")
            elif signed:
                result = result.view(SIGNED[8 * result.dtype.itemsize]).astype(wide).view(unsigned)
            else:
                result = result.view(narrow).astype(unsigned)
        frame.registers[index][lanes] = result

    return store


def write_number(operand, kind: str, instruction: Instruction) -> Writer:
    """Writes floating-point values, rounded to nearest even if they are not yet of the type."""
    store, keep = write(operand, instruction), floats.STORE[kind]
    return lambda frame, lanes, result: store(frame, lanes, keep(result))


def write_value(operand, kind: str, instruction: Instruction) -> Writer:
    if kind in floats.STORE:
        return write_number(operand, kind, instruction)
    return write(operand, instruction, signed=kind[0] == "s")


def address(operand, instruction: Instruction) -> Reader:
    """Reads [base + offset] as int64."""
    if not isinstance(operand, Address):
        raise instruction.error("an operand that is no address")
    offset = operand.offset
    if isinstance(operand.base, Register):
        read = raw(operand.base, operand.base.bits, instruction)
        return lambda frame, lanes: read(frame, lanes).astype(np.int64) + offset
    return lambda frame, lanes: np.array([frame.places[operand.base] + offset], np.int64)


def items(operand) -> tuple:
    """The elements of {a, b, ...}, or the operand alone."""
    return operand.items if isinstance(operand, Vector) else (operand,)
