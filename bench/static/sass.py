"""Reads nvdisasm's text: each kernel's instructions and its hottest loop."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,6}\*/\s+(?P<guard>@!?U?PT?\d*\s+)?(?P<name>[A-Z][A-Za-z0-9_.]*)(?P<rest>[^;]*);"
)
_LABEL = re.compile(r"^(\.L_x?_?\d+):")
_TARGET = re.compile(r"`\((\.L_x?_?\d+)\)")
# Columns of the instruction mix, and what else is looked for by name.
GROUPS = {
    "HMMA": ("HMMA", "HGMMA", "UTCHMMA"),  # mma.sync, wgmma, tcgen05
    "FFMA": ("FFMA", "FMUL", "FADD", "FFMA2"),
    "LDG": ("LDG",),
    "LDGSTS": ("LDGSTS", "UBLKCP", "UTMALDG"),
    "STG": ("STG",),
    "LDS": ("LDS",),
    "LDSM": ("LDSM",),
    "STS": ("STS",),
    "special": ("MUFU",),
    "double": ("DFMA", "DMUL", "DADD", "DSETP", "DMNMX"),
    "branch": ("BRA", "BSSY", "BSYNC", "BREAK", "EXIT", "CALL", "RET", "BRX", "JMP", "WARPSYNC", "BRXU"),
    "integer": (
        *("IADD3", "IADD", "VIADD", "IMAD", "LOP3", "SHF", "LEA", "ISETP", "IMNMX", "VIMNMX", "SEL", "PRMT", "IABS"),
        *("PLOP3", "BFE", "FLO", "POPC", "SGXT", "VIADDMNMX", "VIMNMX3"),
    ),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
# A loop's weight: what kernels are for. A tensor core's product stands for hundreds of FFMA.
_WEIGHT = {"HMMA": 64, "FFMA": 1, "double": 1, "LDG": 4, "LDGSTS": 4, "STG": 4, "LDS": 1, "LDSM": 1, "special": 1}
_MUST = {"HMMA", "LDG", "LDGSTS", "STG", "LDS", "LDSM", "STS"}


@dataclass(frozen=True)
class Instruction:
    name: str  # with its modifiers: LDG.E.128.CONSTANT
    rest: str
    guard: str = ""  # the predicate in front: @P0, @!PT

    @property
    def never(self) -> bool:
        """Padding, which is issued and does nothing."""
        return self.guard == "@!PT"

    @property
    def leaves(self) -> bool:
        """Whether what follows in memory is not what follows in time."""
        conditional = self.guard or (self.base == "BRA" and not self.rest.strip().startswith("`"))
        return self.base in ("BRA", "EXIT", "RET", "BRX", "JMP") and not conditional

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def group(self) -> str:
        # the uniform datapath's (UIADD3, ULEA) are integer too
        return _GROUP_OF.get(self.base) or ("integer" if _GROUP_OF.get(self.base[1:]) == "integer" else "other")

    @property
    def bytes(self) -> int:
        """A lane's share of a memory access."""
        if self.base == "LDSM":
            return 4 * int(self.name[-1]) if self.name[-1] in "124" else 4
        sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
        return next((sizes[part] for part in self.name.split(".")[1:] if part in sizes), 4)


def counted(instructions: tuple[Instruction, ...]) -> Counter:
    """By group."""
    return Counter("other" if i.never else i.group for i in instructions)


@dataclass(frozen=True)
class Loop:
    instructions: tuple[Instruction, ...]
    forward: dict[int, int] = field(default_factory=dict, hash=False)  # where its forward branches lead, by index

    @cached_property
    def mix(self) -> Counter:
        return counted(self.instructions)

    @property
    def weight(self) -> int:
        return sum(_WEIGHT.get(group, 0) * n for group, n in self.mix.items())

    def share(self, group: str) -> float:
        return self.mix[group] / len(self.instructions)

    @cached_property
    def path(self) -> tuple[Instruction, ...]:
        """The shortest way from its first to its last instruction that makes all the accesses and products; the loop
        where there is none because they stand on different branches."""
        end = len(self.instructions) - 1
        best: list[tuple[int, int] | None] = [None] * (end + 1)  # instructions so far, and the one before
        best[0] = (1, -1)
        must = [i.group in _MUST and not i.never for i in self.instructions]
        for i, instruction in enumerate(self.instructions):
            if (here := best[i]) is None:
                continue
            following = [] if instruction.leaves else [i + 1]
            following += [self.forward[i]] if i in self.forward else []
            for to in following:
                known = best[to] if to <= end else (0, 0)
                if not any(must[i + 1 : to]) and (known is None or here[0] + 1 < known[0]):
                    best[to] = (here[0] + 1, i)
        if best[end] is None:
            return self.instructions
        way = [end]
        while best[way[-1]][1] >= 0:
            way.append(best[way[-1]][1])
        return tuple(self.instructions[i] for i in reversed(way))


@dataclass(frozen=True)
class Code:
    """A kernel's machine code."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]  # innermost ones

    @cached_property
    def hottest(self) -> Loop:
        return max(self.loops, key=lambda loop: loop.weight, default=Loop(self.instructions))

    @cached_property
    def local_accesses(self) -> int:
        return sum(i.base in ("LDL", "STL") for i in self.instructions)

    @cached_property
    def wide_share(self) -> float | None:
        """Of the accesses to global memory, those that move 16 bytes a lane."""
        sizes = [i.bytes for i in self.instructions if i.group in ("LDG", "STG", "LDGSTS")]
        return sum(size == 16 for size in sizes) / len(sizes) if sizes else None


def parse(text: str) -> dict[str, Code]:
    """By mangled name."""
    parts = re.split(r"^\.text\.(\S+):\n", text, flags=re.MULTILINE)
    return {
        name: parse_kernel(re.split(r"^\s*\.section|^//-----", body, maxsplit=1, flags=re.MULTILINE)[0])
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def parse_kernel(body: str) -> Code:
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in body.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            instructions.append(Instruction(found["name"], found["rest"], (found["guard"] or "").strip()))
    branches = {
        i: labels[target[1]]
        for i, instruction in enumerate(instructions)
        if instruction.base == "BRA" and (target := _TARGET.search(instruction.rest)) and target[1] in labels
    }
    # A branch to itself is the trap behind a kernel's end.
    spans = {(to, i) for i, to in branches.items() if to < i}
    innermost = [s for s in spans if not any(t != s and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    loops = tuple(
        Loop(
            tuple(instructions[first : last + 1]),
            {i - first: to - first for i, to in branches.items() if first <= i < to <= last},
        )
        for first, last in sorted(innermost)
    )
    return Code(tuple(instructions), loops)
