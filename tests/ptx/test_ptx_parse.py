"""PTX text to instructions."""

import numpy as np
import pytest

from tests.ptx import Memory, Module, PtxError
from tests.ptx.parse import Address, Immediate, Register, Vector, parse

TEXT = """
.version 9.0
.target sm_80  // a comment; with a semicolon
.const .align 4 .f32 table[3] = {0f3F800000, 0fC0000000, 2.5};
.global .align 4 .b8 grid[2][3] = {{1, 2, 3}, {4, 5, 255}};
.extern .shared .align 16 .b8 dynamic[];
.func (.param .b32 result) twice(.param .b32 x);
.visible .entry first(
  .param .u64 .ptr .global .align 16 pointer,
  .param .align 8 .b8 params[24]
)
.reqntid 64, 2
{
  .reg .b32 %r<4>;
  .pragma "nounroll; really";
  .loc 1 2 3
$L__BB0_1: /* two lines
  of comment */
  { .reg .f32 %x; mov.b32 %x, 0f7FFFFFFF; mov.b32 %r1, %x; }
  { .reg .b64 %x; bra skip; mov.b64 %x, 1;
    skip: }
  @!%p bra $L__BB0_1;
}
.section .debug_str { .b8 1 .b8 2 }
"""


def test_program():
    program = parse(TEXT.replace("@!%p", ".reg .pred %p; @!%p"))
    table, grid = program.variables["table"], program.variables["grid"]
    assert np.frombuffer(table.initial, np.float32).tolist() == [1, -2, 2.5]
    assert (grid.size, list(grid.initial)) == (6, [1, 2, 3, 4, 5, 255])
    function = program.functions["first"]
    assert [(v.size, v.align) for v in function.params] == [(8, 8), (24, 8)]
    assert function.threads == (64, 2)
    code = function.instructions
    assert [each.opcode for each in code] == ["mov", "mov", "bra", "mov", "bra", "ret"]
    assert [each.line for each in code[:3]] == [19, 19, 20]
    assert (code[2].target, code[4].target) == (4, 0)
    assert code[4].guard[1]
    inner, outer = code[0].operands[0], code[3].operands[0]
    assert inner != outer  # %x of either scope
    assert function.registers[inner.index] == 32
    assert function.registers[outer.index] == 64


def test_operands():
    text = """.entry k() { .reg .b64 %a; .reg .b32 %r<3>; .shared .align 4 .b8 tile[64];
    ld.shared.v2.b32 {%r0, %r1}, [tile+8]; st.global.b32 [ %a + -4 ], %r2; mov.u32 %r0, -0x10;
    add.f32 %r0, %r1, 0f3F800000; mov.u32 %r1, tile; }"""
    function = parse(text).functions["k"]
    load, store, move, add, place, _ = function.instructions
    tile = function.variables[0]
    assert load.operands == [Vector((Register(1, 32), Register(2, 32))), Address(tile, 8)]
    assert store.operands[0] == Address(Register(0, 64), -4)
    assert move.operands[1] == Immediate(-16)
    assert add.operands[2] == Immediate(1.0, (0x3F800000, 32))
    assert place.operands[1] == Address(tile, 0)


def test_not_a_number_keeps_its_bits():
    memory = Memory()
    out = memory.add(np.zeros(1, np.uint32))
    text = """.entry k(.param .u64 out) { .reg .b64 %o; .reg .b32 %r; ld.param.u64 %o, [out]; mov.b32 %r, 0f7FFFFFFF;
    st.global.b32 [%o], %r; }"""
    Module(text).launch("k", (1,), (1,), [out], memory)
    assert memory.read(out)[0] == 0x7FFFFFFF


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (".entry k() { add.s32 ", "the text ends within add.s32"),
        (".entry k() {\\n\\n add.s32 }", "line 3: unexpected } after: add.s32"),
        (".entry k() { mov.u32 %a, 1; }", "line 1: a result that is no register: mov.u32 %a, 1"),
        (".global .b32 table[2] = {other, 1};", "an initialiser that is no number"),
        (".entry k() { .reg .quad %a; }", "unknown type .quad"),
    ],
)
def test_mistakes(text, report):
    with pytest.raises(PtxError, match=report):
        Module(text.replace("\\n", "\n")).launch("k", (1,), (1,), [], Memory())


@pytest.mark.parametrize(
    ("change", "report"),
    [
        ({"name": "kernel"}, "2 kernels are called kernel; there are kernel_a, kernel_b"),
        ({"name": "nobody"}, "0 kernels are called nobody"),
        ({"block": (33,)}, r"kernel_a wants blocks of \(32,\), not \(33, 1, 1\)"),
        ({"block": (2048,)}, "kernel_a cannot be launched"),
        ({"args": []}, "kernel_a has 1 parameters, not 0"),
        ({"args": [b"12"]}, "x takes 4 bytes, not 2"),
        ({"dynamic_shared": 300000}, "wants 300000 bytes of shared memory"),
    ],
)
def test_launches(change, report):
    text = ".extern .shared .b8 s[]; .entry kernel_a(.param .f32 x) .reqntid 32 { ret; } .entry kernel_b() { ret; }"
    launch = {"name": "kernel_a", "grid": (1,), "block": (32,), "args": [1.5], "memory": Memory()}
    Module(text).launch(**launch)
    with pytest.raises(PtxError, match=report):
        Module(text).launch(**{**launch, **change})


def test_global_variables_outlive_a_launch():
    text = """.global .align 4 .u32 counter = {40};
    .entry k(.param .u64 out) { .reg .b64 %o; .reg .b32 %r; ld.global.u32 %r, [counter]; add.u32 %r, %r, 1;
    st.global.u32 [counter], %r; ld.param.u64 %o, [out]; st.global.u32 [%o], %r; }"""
    module, memory = Module(text), Memory()
    out = memory.add(np.zeros(1, np.uint32))
    for wanted in (41, 42):
        module.launch("k", (1,), (1,), [out], memory)
        assert memory.read(out)[0] == wanted
