"""Instructions to steps. Every modifier must be taken by somebody: what is not known is refused."""

from collections.abc import Callable

from tests.ptx.machine import Step
from tests.ptx.operands import raw
from tests.ptx.parse import Function, Group, Immediate, Instruction, Name, PtxError, Register, bits

BUILDERS: dict[str, Callable] = {}


def operation(*opcodes: str):
    """Registers what builds these opcodes' run(frame, lanes) from (instruction, modifiers)."""

    def register(build):
        BUILDERS.update(dict.fromkeys(opcodes, build))
        return build

    return register


class Modifiers:
    """The words behind an opcode, taken one by one."""

    def __init__(self, instruction: Instruction):
        self.instruction = instruction
        self.left = list(instruction.modifiers)

    def flag(self, name: str) -> bool:
        if name not in self.left:
            return False
        self.left.remove(name)
        return True

    def one_of(self, *names: str, default: str | None = None) -> str:
        found = [name for name in names if name in self.left]
        if len(found) > 1 or (not found and default is None):
            raise self.instruction.error(f"none of {', '.join(names)}" if not found else f"both {' and '.join(found)}")
        if found:
            self.left.remove(found[0])
            return found[0]
        return default

    def first_of(self, *names: str) -> str:
        """The next modifier, which must be one of these: for names that may stand twice, such as types."""
        if not self.left or self.left[0] not in names:
            raise self.instruction.error(f"not one of {', '.join(names)}")
        return self.left.pop(0)

    def drop(self, *names: str) -> None:
        """Modifiers without a meaning here: cache hints and memory order, under one order of all accesses."""
        self.left = [name for name in self.left if name not in names]

    def kind(self) -> str:
        """The type at the end."""
        if not self.left:
            raise self.instruction.error("no type")
        bits(self.left[-1])
        return self.left.pop()


def decode(instruction: Instruction) -> Step:
    modifiers = Modifiers(instruction)
    step = Step(instruction)
    if instruction.guard:
        register, step.negated = instruction.guard
        if not isinstance(register, Register) or register.bits != 1:
            raise instruction.error("a guard that is no predicate")
        step.guard = register.index
    try:
        if instruction.opcode in CONTROL:
            CONTROL[instruction.opcode](step, instruction, modifiers)
        elif instruction.opcode in BUILDERS:
            built = BUILDERS[instruction.opcode](instruction, modifiers)
            if isinstance(built, Collective):
                step.control, step.run, step.members = "collective", built.run, built.members
            else:
                step.run = built
        else:
            raise instruction.error("unknown instruction")
    except ValueError:
        raise instruction.error("an unexpected number of operands") from None
    except KeyError as error:
        raise instruction.error(f"unsupported {error}") from None
    except PtxError as error:
        raise error if str(error).startswith("line") else instruction.error(str(error)) from None
    if modifiers.left:
        raise instruction.error(f"unknown modifier .{modifiers.left[0]}")
    return step


class Collective:
    """What the lanes of a mask do together; `members` reads the mask, None means the whole warp."""

    def __init__(self, run: Callable, members: Callable | None = None):
        self.run, self.members = run, members


def branch(step: Step, instruction: Instruction, modifiers: Modifiers) -> None:
    modifiers.drop("uni")
    step.control = "branch"


def leave(step: Step, instruction: Instruction, modifiers: Modifiers) -> None:
    modifiers.drop("uni")
    step.control = "exit" if instruction.opcode == "exit" else "return"


def call(step: Step, instruction: Instruction, modifiers: Modifiers) -> None:
    modifiers.drop("uni")
    name = next((operand for operand in instruction.operands if not isinstance(operand, Group)), None)
    if not isinstance(name, Name):
        raise instruction.error("a call through a register")
    step.control, step.callee = "call", name.name
    before = instruction.operands[: instruction.operands.index(name)]
    after = instruction.operands[instruction.operands.index(name) + 1 :]
    step.results = [address.base for group in before for address in group.items]
    step.arguments = [address.base for group in after for address in group.items]


def barrier(step: Step, instruction: Instruction, modifiers: Modifiers) -> None:
    """bar.sync and barrier.sync of the whole block; bar.warp.sync of a mask's lanes."""
    if modifiers.flag("warp"):
        modifiers.first_of("sync")
        (mask,) = instruction.operands
        step.control, step.members = "collective", raw(mask, 32, instruction)

        def run(frame, lanes):
            frame.machine.shared.synchronise(lanes, warp_only=True)

        step.run = run
        return
    modifiers.drop("cta", "aligned")
    modifiers.first_of("sync")
    (identity,) = instruction.operands
    if not isinstance(identity, Immediate):
        raise instruction.error("a barrier with a number known only at run time")
    step.control = "barrier"


def trap(step: Step, instruction: Instruction, modifiers: Modifiers) -> None:
    def run(frame, lanes):
        raise instruction.error(f"trap, reached by {frame.machine.who(frame.machine.index(lanes)[0])}")

    step.run = run


CONTROL = {"bra": branch, "ret": leave, "exit": leave, "call": call, "bar": barrier, "barrier": barrier, "trap": trap}


def reachable(program, name: str, seen: dict[str, list[Step]] | None = None) -> dict[str, list[Step]]:
    """The steps of a function and of all that it calls."""
    seen = {} if seen is None else seen
    function: Function = program.functions[name]
    seen[name] = steps = [decode(instruction) for instruction in function.instructions]
    for step in steps:
        if step.control == "barrier" and not function.kernel:
            raise step.instruction.error("a barrier within a called function")
        if step.control == "call":
            if step.callee not in program.functions:
                raise step.instruction.error(f"no function {step.callee}")
            if step.callee not in seen:
                reachable(program, step.callee, seen)
    return seen
