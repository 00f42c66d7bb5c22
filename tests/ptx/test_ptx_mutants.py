"""Faults planted in the kernels of csrc/cuda, found in the PTX that nvcc makes of them."""

import os

import pytest
import torch

from tests.ptx import NVCC, PtxError
from tests.ptx.replay import compiled_kernel, module, record, replay
from tests.simt import library, mutants
from tests.simt.mutants import CASES, MUTANTS

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING)),
]


def run(fault, folder, monkeypatch):
    """What the kernel with the fault makes of its case, and the exact result."""
    monkeypatch.setitem(os.environ, "FASTCNN_SIMT_PROCESSORS", "1")  # no sum in pieces, as in the case on simt
    mutant = MUTANTS[fault]
    sources, case = mutants.planted(mutant, folder), CASES[mutant.kernel]
    x, weight = (torch.from_numpy(operand).permute(0, 3, 1, 2) for operand in case.operands())
    weight = weight.contiguous()
    groups = x.shape[1] // weight.shape[1]
    y, launches = record(
        lambda: library.load().conv2d(x, weight, None, None, case.stride, case.padding, (1, 1), groups, False, 1)
    )

    def find(name):
        compiled, names = module(mutant.kernel, sources)
        return (compiled, names[name]) if name in names else compiled_kernel(name)

    (got,) = replay(launches, [x, weight], [y], find)
    return got, torch.from_numpy(mutants.expected(mutant.kernel)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("missing barrier", r"race on shared memory: write by|read of shared memory with a cp.async pending"),
        ("wrong wait count", r"read of shared memory with a cp.async pending: byte \d+ of .*ldmatrix"),
        ("uninitialised shared read", r"read of shared memory never written: byte \d+ of"),
        ("missing mask", r"global write of 16 bytes out of bounds"),
        ("misaligned 16-byte copy", r"misaligned global access of 16 bytes"),
        ("divergent barrier", r"divergent barrier: of the \d+ live threads of block \(0, 0, 0\), \d+ at line \d+"),
    ],
)
def test_planted_fault(tmp_path, monkeypatch, fault, report):
    with pytest.raises(PtxError, match=report):
        run(fault, tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", ["swapped fragment registers", "wrong stride"])
def test_planted_fault_changes_the_result(tmp_path, monkeypatch, fault):
    got, want = run(fault, tmp_path, monkeypatch)
    assert got.isfinite().all()
    assert ((got - want).abs() > 0.5).any()
