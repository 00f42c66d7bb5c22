"""mma.sync: D = A B + C on a warp's registers.

Products and sums are taken in float64 and rounded once at the end. Tensor cores keep fewer bits while they add, in an
order of their own: compare with a tolerance.
"""

import numpy as np

from tests.ptx import floats
from tests.ptx.decode import Collective, operation
from tests.ptx.operands import items, number, raw, write_number

GROUP, THREAD = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4  # a lane's row of four, its place in it


def fragment_a(kind: str, k: int):
    """Row and column of each lane's elements of A[16][k]."""
    i = np.arange(16 * k // 32)
    if kind == "tf32":
        return GROUP + 8 * (i & 1), THREAD + 4 * (i >> 1)
    return GROUP + 8 * (i >> 1 & 1), 2 * THREAD + (i & 1) + 8 * (i >> 2)


def fragment_b(kind: str, k: int):
    """Row and column of each lane's elements of B[k][8]."""
    i = np.arange(8 * k // 32)
    if kind == "tf32":
        return THREAD + 4 * i, GROUP + 0 * i
    return 2 * THREAD + (i & 1) + 8 * (i >> 1), GROUP + 0 * i


def fragment_c():
    """Row and column of each lane's elements of C[16][8] and D[16][8]."""
    i = np.arange(4)
    return GROUP + 8 * (i >> 1), 2 * THREAD + (i & 1)


# f64: A[8][4], B[4][8], C[8][8]
DOUBLE = ((GROUP, THREAD), (THREAD, GROUP), (GROUP + 0 * np.arange(2), 2 * THREAD + np.arange(2)))
SHAPES = {"m16n8k16": 16, "m16n8k8": 8, "m16n8k4": 4}
DEPTHS = {"f16": (8, 16), "bf16": (8, 16), "tf32": (4, 8)}


@operation("mma")
def multiply_accumulate(instruction, modifiers):
    for name in ("sync", "aligned"):
        modifiers.first_of(name)
    shape = modifiers.first_of(*SHAPES, "m8n8k4")
    modifiers.first_of("row")
    modifiers.first_of("col")
    result = modifiers.first_of("f32", "f16", "f64")
    kind = modifiers.first_of("f16", "bf16", "tf32", "f64")
    modifiers.first_of(kind)
    modifiers.first_of(result)
    if kind == "f64":
        if shape != "m8n8k4" or result != "f64":
            raise instruction.error("a shape of .f64 that is not m8n8k4")
        fragments, sizes = DOUBLE, ((8, 4), (4, 8), (8, 8))
    else:
        k = SHAPES.get(shape)
        if k not in DEPTHS[kind] or result == "f64" or (result == "f16" and kind != "f16"):
            raise instruction.error("a shape and types that do not go together")
        fragments, sizes = (fragment_a(kind, k), fragment_b(kind, k), fragment_c()), ((16, k), (k, 8), (16, 8))
    d, *inputs = instruction.operands
    kinds = (kind, kind, result)
    reads = [
        matrix(operand, each, fragment, size, instruction)
        for operand, each, fragment, size in zip(inputs, kinds, fragments, sizes, strict=True)
    ]
    packed = f"{result}x2" if result == "f16" else result
    (rows, columns), (_, width) = fragments[2], sizes[2]
    places = (rows * width + columns).ravel()
    per_register = 2 if result == "f16" else 1
    stores = [write_number(item, packed, instruction) for item in items(d)]
    if len(stores) * per_register != rows.shape[1]:
        raise ValueError

    def run(frame, lanes):
        a, b, c = (read(frame, lanes) for read in reads)
        product = np.matmul(a, b) + c
        mine = product.reshape(len(product), -1)[:, places].reshape(-1, rows.shape[1])  # one row per lane
        for place, store in enumerate(stores):
            part = mine[:, place * per_register : (place + 1) * per_register]
            part = part if per_register == 2 else part[:, 0]
            store(frame, lanes, floats.narrow(part, result))

    return Collective(run)


def matrix(operand, kind: str, fragment, size: tuple[int, int], instruction):
    """Reads a fragment's registers as float64 matrices, one per warp."""
    rows, columns = fragment
    elements = np.argsort((rows * size[1] + columns).ravel())  # of all lanes, in the matrix's order
    packed = kind in ("f16", "bf16")
    if len(items(operand)) * (2 if packed else 1) != rows.shape[1]:
        raise ValueError
    if kind == "tf32":  # the hardware ignores the low 13 bits
        bits = [raw(item, 32, instruction) for item in items(operand)]
        reads = [lambda f, x, read=read: (read(f, x) & np.uint32(0xFFFFE000)).view(np.float32) for read in bits]
    else:
        reads = [number(item, f"{kind}x2" if packed else kind, instruction) for item in items(operand)]

    def read_all(frame, lanes):
        count = len(frame.machine.index(lanes))
        values = np.empty((count, rows.shape[1]))
        for place, read in enumerate(reads):
            columns_of = slice(2 * place, 2 * place + 2) if packed else place
            values[:, columns_of] = read(frame, lanes)
        return values.reshape(count // 32, -1)[:, elements].reshape(-1, *size)

    return read_all
