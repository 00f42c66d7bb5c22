"""Each of device.cuh's functions: on the host against the PTX manual's tables, under nvcc by its instruction."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.simt import ground

NVCC = shutil.which("nvcc")
MMA = ("f16", "bf16", "tf32")


@pytest.mark.parametrize("dtype", MMA)
def test_mma_fragment_layout(simt, dtype):
    """a (16 x k), b (k x 8) and d (16 x 8), scattered to the registers that the manual names."""
    element = ground.ELEMENTS[dtype]
    depth = 8 if dtype == "tf32" else 16
    rng = np.random.default_rng(1)
    # Small integers: exact in every dtype, so that no rounding excuses a cell in the wrong place.
    a, b = rng.integers(-8, 9, (16, depth)), rng.integers(-8, 9, (depth, 8))
    d = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    lane = np.arange(32)[:, None]
    g, t = lane // 4, lane % 4
    if dtype == "tf32":
        i, j = np.arange(4), np.arange(2)
        a_cells, b_cells = (g + 8 * (i % 2), t + 4 * (i // 2)), (t + 4 * j, g + 0 * j)
    else:
        i, j = np.arange(8), np.arange(4)
        a_cells = (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4))
        b_cells = (2 * t + j % 2 + 8 * (j // 2), g + 0 * j)
    d_cells = (g + 8 * (np.arange(4) // 2), 2 * t + np.arange(4) % 2)
    registers_a, registers_b = element(a[a_cells]).view(np.uint32), element(b[b_cells]).view(np.uint32)
    registers_d = d[d_cells]
    getattr(simt, f"mma_{dtype}")(registers_a, registers_b, registers_d)
    assert (registers_d == (d + a @ b)[d_cells]).all()


def test_mma_truncates_tf32(simt):
    a, b, d = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), np.zeros((32, 4), np.float32)
    a[0, 0] = np.float32(1).view(np.uint32) | 0x1FFF  # a[0][0], with all of the ignored bits set
    b[0, 0] = np.float32(3).view(np.uint32)
    simt.mma_tf32(a, b, d)
    assert d[0, 0] == 3


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix_layout(simt, matrices, transposed):
    rows = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    registers = np.zeros((32, matrices), np.uint32)
    getattr(simt, f"ldmatrix_{matrices}")(rows, registers, transposed)
    for lane in range(32):
        for j in range(matrices):
            matrix = rows[8 * j : 8 * j + 8]
            matrix = matrix.T if transposed else matrix
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert registers[lane, j] == int(low) | int(high) << 16


@pytest.mark.parametrize("by", [0, 1, 5, 31])
@pytest.mark.parametrize(("name", "dtype"), [("shuffle_4", np.float32), ("shuffle_8", np.float64)])
def test_shuffles(simt, order, name, dtype, by):
    x, y = np.arange(32, dtype=dtype) + 0.5, np.full((4, 32), np.nan, dtype)
    getattr(simt, name)(x, y, by)
    lane = np.arange(32)
    below, above = lane - by, lane + by
    sources = [lane * 0 + by, np.where(below < 0, lane, below), np.where(above > 31, lane, above), lane ^ by]
    assert (y == x[np.array(sources)]).all()


@pytest.mark.parametrize("valid", [0, 1])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_fills_with_zeros(simt, copy, size, valid):
    x = np.random.default_rng(0).integers(1, 255, (32, size), dtype=np.uint8)
    y = np.full_like(x, 255)
    getattr(simt, f"copy_{size}")(x, y, valid)
    assert (y == x * valid).all()


def test_f16_conversions_are_numpys(simt):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    widened = np.zeros(halves.size, np.float32)
    simt.widen_f16(halves, widened, halves.size)
    np.testing.assert_array_equal(widened, halves.astype(np.float32))
    floats = floats_around(widened)
    narrowed = np.zeros(floats.size, np.float16)
    simt.narrow_f16(floats, narrowed, floats.size)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    np.testing.assert_array_equal(narrowed, expected)
    assert (np.signbit(narrowed) == np.signbit(expected))[~np.isnan(expected)].all()


def test_bf16_conversions_are_torchs(simt):
    torch = pytest.importorskip("torch")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    widened = np.zeros(patterns.size, np.float32)
    simt.widen_bf16(patterns, widened, patterns.size)
    np.testing.assert_array_equal(widened, (patterns.astype(np.uint32) << 16).view(np.float32))
    floats = floats_around(widened)
    narrowed = np.zeros(floats.size, np.uint16)
    simt.narrow_bf16(floats, narrowed, floats.size)
    expected = torch.from_numpy(floats).bfloat16().float().numpy()
    np.testing.assert_array_equal((narrowed.astype(np.uint32) << 16).view(np.float32), expected)


def floats_around(values: np.ndarray) -> np.ndarray:
    """Each value, its neighbours in float32, and the ties between it and the next value with theirs."""
    values = values[~np.isnan(values)]
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    points = np.concatenate([values, ties, np.float32([np.nan, 65519.99, 65520, 3.4e38, 1e-45])])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)]).astype(np.float32)


def test_functions(simt):
    x = np.concatenate([np.linspace(0.01, 30, 1000), [1.0, 4.0, 2.0**-20]]).astype(np.float32)
    y = np.zeros((4, x.size), np.float32)
    simt.functions(x, y, x.size)
    exact = x.astype(np.float64)
    for got, expected in zip(y[1:], (exact**-0.5, 2**exact, np.log2(exact))):
        np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-9)
    assert (y[0].view(np.uint32) & 0x1FFF == 0).all()
    assert (abs(y[0] - x) <= 2.0**-11 * x).all()
    tie = np.uint32([0x3F800FFF, 0x3F801000, 0xBF801000, 0x7F800000]).view(np.float32)
    rounded = np.zeros((4, 4), np.float32)
    simt.functions(tie, rounded, 4)
    assert [hex(r) for r in rounded[0].view(np.uint32)] == ["0x3f800000", "0x3f802000", "0xbf802000", "0x7f800000"]


def nvcc(*arguments: str):
    if NVCC is None:
        pytest.skip("no nvcc")
    flags = ["-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", f"-I{ground.ROOT / 'csrc'}"]
    subprocess.run([NVCC, *flags, *arguments], check=True)


@pytest.mark.parametrize("path", ground.KERNELS, ids=lambda path: path.stem)
def test_nvcc_compiles_the_same_source(tmp_path, path):
    nvcc("-cubin", "-o", str(tmp_path / "kernel.cubin"), str(path))


INSTRUCTIONS = {
    "vector_add": ["ld.global.nc.v4.", "st.global.v4.", "cvt.f32.f16", "cvt.rn.f16.f32", "cvt.rn.bf16.f32"],
    "block_sum": ["shfl.sync.down.b32", "ld.shared.", "st.shared.", "bar.sync"],
    "probes": ["ld.global.f32", "shfl.sync.idx", "shfl.sync.up", "shfl.sync.bfly", "cvt.rna.tf32.f32", "bar.warp.sync"]
    + ["rsqrt.approx.f32", "ex2.approx.f32", "lg2.approx.f32", "cp.async.ca.shared.global"]
    + [f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16" for n in (1, 2, 4) for trans in ("", ".trans")],
    "gemm": ["cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group 1;"]
    + [f"mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32" for t in ("f16", "bf16")]
    + ["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"],
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_nvcc_emits(tmp_path, name):
    """No access is a generic one, which would first have to find out which memory it is for."""
    ptx = tmp_path / "kernel.ptx"
    nvcc("-ptx", "-o", str(ptx), str(ground.ROOT / f"tests/simt/kernels/{name}.cu"))
    text = ptx.read_text()
    assert [instruction for instruction in INSTRUCTIONS[name] if instruction not in text] == []
    assert not re.search(r"\b(ld|st)\.(global|shared)(\.nc)?\.[bsu]8\b", text)  # nor byte by byte
    assert not re.search(r"\b(ld|st)\.(v[24]\.)?[bfsu]\d+\b", text)
