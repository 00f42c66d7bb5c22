"""Triton kernels compiled for sm_80 and run from their PTX, against numpy and torch."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.ptx import Memory, PtxError, compile_triton

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, MASK_A: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        depth = start + tl.arange(0, BK)
        mask = depth[None, :] < K
        if MASK_A:
            mask &= rows[:, None] < M
        x = tl.load(a + rows[:, None] * K + depth[None, :], mask=mask, other=0.0)
        y = tl.load(
            b + depth[:, None] * N + columns[None, :], mask=(depth[:, None] < K) & (columns[None, :] < N), other=0.0
        )
        sums = tl.dot(x, y, sums)
    tl.store(c + rows[:, None] * N + columns[None, :], sums, mask=(rows[:, None] < M) & (columns[None, :] < N))


@triton.jit
def silu_minus_max(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.load(x + tl.program_id(0) * n + i, mask=i < n, other=float("-inf")).to(tl.float32)
    row -= tl.max(row, 0)
    tl.store(y + tl.program_id(0) * n + i, row * tl.sigmoid(row), mask=i < n)


def run_matmul(
    kind: str, m: int, n: int, k: int, mask_a: bool = True, aligned: bool = False, stages: int = 2, warps: int = 4
):
    """The result, and the same from float64. Aligned: k and n are promised to be multiples of 16, as pointers are."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    pointers = dict(a=f"*{kind}", b=f"*{kind}", c="*fp32")
    promised = (0, 1, 2, 4, 5) if aligned else (0, 1, 2)
    ptx = compile_triton(
        matmul,
        signature={**pointers, "M": "i32", "N": "i32", "K": "i32"},
        constexprs={"BM": 32, "BN": 32, "BK": 32, "MASK_A": mask_a},
        attrs={(i,): [["tt.divisibility", 16]] for i in promised},
        num_warps=warps,
        num_stages=stages,
    )
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    raw = (lambda x: x.view(torch.int16).numpy()) if dtype != torch.float32 else (lambda x: x.numpy())
    memory = Memory()
    addresses = [memory.add(raw(a)), memory.add(raw(b)), memory.add(np.full((m, n), np.nan, np.float32))]
    ptx.launch((-(-m // 32), -(-n // 32)), [*addresses, m, n, k], memory)
    if dtype == torch.float32:  # tf32, of which the tensor core takes the upper bits
        a, b = ((x.view(torch.int32) & -0x2000).view(torch.float32) for x in (a, b))
    return ptx, memory.read(addresses[2]), (a.double() @ b.double()).numpy()


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize(("m", "n", "k", "aligned"), [(64, 32, 64, True), (50, 48, 80, True), (33, 17, 45, False)])
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
def test_matmul(kind, m, n, k, aligned, warps):
    ptx, actual, wanted = run_matmul(kind, m, n, k, aligned=aligned, warps=warps)
    assert "mma.sync" in ptx
    assert not aligned or "cp.async" in ptx
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=k * 2**-21)


@pytest.mark.parametrize("stages", [1, 3, 4])
def test_pipeline_depth(stages):
    _, actual, wanted = run_matmul("bf16", 40, 32, 160, aligned=True, stages=stages)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=160 * 2**-21)


@pytest.mark.parametrize("n", [1, 100, 700])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_row_kernel(kind, n):
    dtype = getattr(torch, kind)
    name = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}[kind]
    ptx = compile_triton(silu_minus_max, {"x": name, "y": name, "n": "i32"}, {"BLOCK": 1024})
    x = torch.randn(3, n).to(dtype)
    bits = x.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
    memory = Memory()
    addresses = [memory.add(bits), memory.add(np.full_like(bits, -1))]
    ptx.launch((3,), [*addresses, n], memory)
    y = torch.from_numpy(memory.read(addresses[1])).view(dtype)
    row = x.double() - x.double().amax(1, keepdim=True)
    torch.testing.assert_close(y.double(), row * row.sigmoid(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_mask_too_wide():
    """Rows behind the last one are read: Triton's own interpreter lets that pass."""
    report = r"global read of \d+ bytes out of bounds at address .*, byte \d+ of buffer 0 .*: .*(ld.global|cp.async)"
    with pytest.raises(PtxError, match=report):
        run_matmul("fp16", 50, 48, 80, mask_a=False, aligned=True)


def test_false_promise_of_divisibility():
    """With n = 44 promised to be a multiple of 16, one mask holds for 8 columns, and the last row ends within them."""
    with pytest.raises(PtxError, match=r"global read of 16 bytes out of bounds .* byte 2808 of buffer 1"):
        run_matmul("fp16", 32, 44, 32, aligned=True)
