"""PTX text to functions of instructions whose operands name registers, variables and places in the code."""

import bisect
import re
import struct
from collections import ChainMap
from dataclasses import dataclass, field

import numpy as np


class PtxError(Exception):
    """What the interpreter refuses or what a kernel did wrong, with the line of the PTX text."""


BITS = {"pred": 1, "f16x2": 32, "bf16x2": 32, "bf16": 16, "tf32": 32}


def bits(kind: str) -> int:
    """The width of a PTX type: 32 for "s32"."""
    if kind in BITS:
        return BITS[kind]
    if match := re.fullmatch(r"[busf](8|16|32|64|128)", kind):
        return int(match[1])
    raise PtxError(f"unknown type .{kind}")


@dataclass(frozen=True)
class Register:
    index: int
    bits: int


@dataclass(frozen=True)
class Immediate:
    value: int | float
    bits: tuple[int, int] | None = None  # those of 0f3F800000 and 0d3FF0000000000000, and how many


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Sink:
    """The operand "_", where a result is dropped."""


@dataclass(eq=False)
class Variable:
    name: str
    space: str
    kind: str
    align: int
    size: int  # in bytes; 0 for an extern array, whose size the launch gives
    initial: bytes = b""


@dataclass(frozen=True)
class Address:
    """[base + offset], or a variable's address itself where an instruction takes a value."""

    base: Register | Variable
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple


@dataclass(frozen=True)
class Pair:
    """%r1|%p1: a result and the predicate beside it."""

    first: object
    second: object


@dataclass(frozen=True)
class Negated:
    register: Register


@dataclass(frozen=True)
class Group:
    """The parenthesised results or arguments of a call."""

    items: tuple


@dataclass(frozen=True)
class Name:
    """A label or a function."""

    name: str


@dataclass
class Instruction:
    line: int
    text: str
    guard: tuple[Register, bool] | None  # the predicate, and whether it is negated
    opcode: str
    modifiers: tuple[str, ...]
    operands: list
    target: int = -1  # of a branch: an index into the function's instructions

    def error(self, message: str) -> PtxError:
        return PtxError(f"line {self.line}: {message}: {self.text}")


@dataclass
class Function:
    name: str
    kernel: bool
    params: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    threads: tuple[int, ...] = ()  # .reqntid
    registers: list[int] = field(default_factory=list)  # the width of each
    variables: list[Variable] = field(default_factory=list)  # .shared, .local and the .param of calls
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Program:
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


def split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def immediate(text: str) -> Immediate | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Immediate(struct.unpack(">f", bytes.fromhex(text[2:]))[0], (int(text[2:], 16), 32))
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Immediate(struct.unpack(">d", bytes.fromhex(text[2:]))[0], (int(text[2:], 16), 64))
    if re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|0|[1-9]\d*)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    if re.fullmatch(r"[-+]?\d+\.\d*([eE][-+]?\d+)?", text):
        return Immediate(float(text))
    return None


def variable(text: str) -> Variable:
    """`.visible .const .align 4 .b8 table[8] = {1, 2, ...}`, or one parameter of a function."""
    declaration, _, values = text.partition("=")
    match = re.fullmatch(r"((?:\s*\.[\w:]+(?:\s+\d+(?=\s))?)*)\s+([\w$%.]+)\s*((?:\[\s*\d*\s*\]\s*)*)", declaration)
    if not match:
        raise PtxError(f"not a declaration: {text}")
    words = match[1].replace(".", " .").split()
    names = [word[1:] for word in words if word.startswith(".")]
    space = next((name for name in names if name in ("shared", "local", "param", "const", "global")), "")
    kind = next((name for name in names if re.fullmatch(r"[busf]\d+", name)), "")
    if not space or not kind:
        raise PtxError(f"not a declaration: {text}")
    unit = bits(kind) // 8
    # A pointer parameter's `.ptr .global .align 16` describes what it points to.
    align = int(words[words.index(".align") + 1]) if ".align" in words and ".ptr" not in words else unit
    size = unit
    for count in re.findall(r"\[\s*(\d*)\s*\]", match[3]):
        size *= int(count or 0)
    initial = b""
    if values:
        parsed = [immediate(value.strip()) for value in re.sub(r"[{}]", "", values).split(",")]
        if None in parsed:
            raise PtxError(f"an initialiser that is no number: {text}")
        parsed = [number.value for number in parsed]
        dtype = np.dtype(f"f{unit}") if kind[0] == "f" else np.dtype(f"u{unit}")
        wrapped = parsed if kind[0] == "f" else [int(value) & ((1 << 8 * unit) - 1) for value in parsed]
        initial = np.array(wrapped, dtype).tobytes()
    return Variable(match[2], space, kind, align, size, initial)


class Scope:
    """Names of one pair of braces: inline PTX may declare the same register in many of them."""

    def __init__(self, outer: "Scope | None" = None):
        self.names: ChainMap = outer.names.new_child() if outer else ChainMap()
        self.labels: ChainMap = outer.labels.new_child() if outer else ChainMap()
        self.outer = outer


class Body:
    """Collects the statements of one function."""

    def __init__(self, function: Function, program: Program):
        self.function = function
        self.scope = Scope()
        self.scope.names.update(program.variables)
        self.scope.names.update({v.name: v for v in [*function.params, *function.results]})
        self.branches: list[tuple[Instruction, Scope]] = []

    def statement(self, text: str, line: int) -> None:
        if re.match(r"\.reg\b", text):
            self.registers(text)
        elif re.match(r"\.(shared|local|param)\b", text):
            declared = variable(text)
            self.function.variables.append(declared)
            self.scope.names[declared.name] = declared
        elif not re.match(r"\.pragma\b", text):
            self.instruction(text, line)

    def registers(self, text: str) -> None:
        match = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", text)
        if not match:
            raise PtxError(f"not a declaration: {text}")
        width = bits(match[1])
        for name in split(match[2]):
            block = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
            for each in [f"{block[1]}{i}" for i in range(int(block[2]))] if block else [name]:
                self.scope.names[each] = Register(len(self.function.registers), width)
                self.function.registers.append(width)

    def instruction(self, text: str, line: int) -> None:
        guard = None
        match = re.fullmatch(r"(?:@\s*(!?)\s*([%\w$]+)\s+)?([a-z]\w*)((?:\.[\w:]+)*)\s*(.*)", text)
        if not match:
            raise PtxError(f"line {line}: not an instruction: {text}")
        if match[2]:
            guard = (self.operand(match[2], text, line), bool(match[1]))
        opcode, modifiers = match[3], tuple(match[4].split(".")[1:])
        instruction = Instruction(line, text, guard, opcode, modifiers, [])
        if opcode == "bra":
            instruction.operands = [Name(match[5])]
            self.branches.append((instruction, self.scope))
        elif opcode == "call":
            for part in split(match[5]):
                name = part in self.scope.names or part.startswith("(")
                instruction.operands.append(self.operand(part, text, line) if name else Name(part))
        else:
            instruction.operands = [self.operand(part, text, line) for part in split(match[5])]
        self.function.instructions.append(instruction)

    def operand(self, text: str, statement: str, line: int):
        def inner(part):
            return self.operand(part, statement, line)

        names = self.scope.names
        if text in names:
            return Address(names[text], 0) if isinstance(names[text], Variable) else names[text]
        if text[0] == "{" and text[-1] == "}":
            return Vector(tuple(inner(part) for part in split(text[1:-1])))
        if text[0] == "(" and text[-1] == ")":
            return Group(tuple(inner(part) for part in split(text[1:-1])))
        if text == "_":
            return Sink()
        if text[0] == "!":
            return Negated(inner(text[1:].strip()))
        if "|" in text:
            return Pair(*(inner(part.strip()) for part in text.split("|")))
        if constant := immediate(text):
            return constant
        if match := re.fullmatch(r"(\[?)\s*([%\w$.]+)\s*(?:([+-])\s*(-?\w+))?\s*(\]?)", text):
            offset = int(match[4] or "0", 0) * (-1 if match[3] == "-" else 1)
            if match[2] in names and (match[1] == "[") == (match[5] == "]"):
                if match[1] or isinstance(names[match[2]], Variable):
                    return Address(names[match[2]], offset)
            elif re.fullmatch(r"%[a-z]\w*(\.[xyz])?", text):
                return Special(text[1:])
        raise PtxError(f"line {line}: unknown operand {text}: {statement}")

    def label(self, name: str) -> None:
        self.scope.labels[name] = len(self.function.instructions)

    def close_scope(self, line: int) -> "Body | None":
        """Leaves a pair of braces; the outermost one ends the body with an implied ret and settles its branches."""
        if self.scope.outer:
            self.scope = self.scope.outer
            return self
        self.function.instructions.append(Instruction(line, "}", None, "ret", (), []))
        for instruction, scope in self.branches:
            name = instruction.operands[0].name
            if name not in scope.labels:
                raise instruction.error(f"no label {name}")
            instruction.target = scope.labels[name]
        return None


def header(text: str, program: Program) -> Function:
    """`.visible .func (.param .b32 result) name(.param .b64 first, ...) .noinline`."""
    match = re.search(r"\.(entry|func)\b\s*(?:\(([^()]*)\))?\s*([\w$%]+)\s*(?:\(([^()]*)\))?(.*)", text, flags=re.S)
    if not match:
        raise PtxError(f"not a function: {text}")
    threads = re.search(r"\.reqntid\s+([\d,\s]+)", match[5])
    return Function(
        match[3],
        match[1] == "entry",
        [variable(part) for part in split(match[4] or "")],
        [variable(part) for part in split(match[2] or "")],
        tuple(int(extent) for extent in threads[1].split(",")) if threads else (),
    )


def blank(match: re.Match) -> str:
    """Nothing, over as many lines."""
    return "\n" * match[0].count("\n")


def statements(text: str):
    """The text cut at its semicolons, labels and block braces: (mark, what stands before it, its line)."""
    newlines = [match.start() for match in re.finditer("\n", text)]
    start, blocks, depth = 0, 0, 0  # depth: of a vector's or an initialiser's braces
    for match in re.finditer(r'"[^"]*"|[{};]|(?<!:):(?!:)', text):
        mark, before = match[0], text[start : match.start()]
        statement = " ".join(before.split())
        line = bisect.bisect_left(newlines, start + len(before) - len(before.lstrip())) + 1
        if mark[0] == '"' or (mark == ":" and not re.fullmatch(r"[\w$]+", statement)):
            continue
        opens = mark == "{" and (statement == "" if blocks else re.search(r"\.(entry|func)\b", statement) is not None)
        if depth or (mark == "{" and not opens):
            depth += (mark == "{") - (mark == "}")
            continue
        blocks += (mark == "{") - (mark == "}")
        yield mark, statement, line
        start = match.end()
    if text[start:].strip():
        raise PtxError(f"the text ends within {text[start:].strip()[:60]}")


def parse(text: str) -> Program:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    text = re.sub(r"^[ \t]*\.(loc|file|version|target|address_size)\b[^\n]*", "", text, flags=re.M)
    text = re.sub(r"^[ \t]*\.section\b[^{]*\{[^}]*\}", blank, text, flags=re.M)
    program, body = Program(), None
    for mark, statement, line in statements(text):
        if mark == "{" and body is None:
            function = header(statement, program)
            program.functions[function.name] = function
            body = Body(function, program)
        elif mark == "{":
            body.scope = Scope(body.scope)
        elif mark == ":" and body:
            body.label(statement)
        elif mark == "}" and body and not statement:
            body = body.close_scope(line)
        elif mark == ";" and body and statement:
            body.statement(statement, line)
        elif mark == ";" and statement and not re.search(r"\.(func|entry|pragma)\b", statement):
            declared = variable(statement)
            program.variables[declared.name] = declared
        elif mark != ";":
            raise PtxError(f"line {line}: unexpected {mark} after: {statement}")
    return program
