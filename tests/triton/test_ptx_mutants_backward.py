"""Faults planted in the text of the gradients' and siblings' Triton kernels, each found in the changed kernel's PTX."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from fastcnn.kernels import pointwise_backward, pointwise_siblings

from tests.ptx import PtxError
from tests.triton.from_ptx import from_ptx
from tests.triton.gradients import assert_close, references, tensors

pytestmark = pytest.mark.cpu
ops = torch.ops.fastcnn


def gradients(sizes=(1, 24, 17, 7, 5, (2, 2)), processors=2):
    x, weight, grad, y = tensors(torch.float32, *sizes)
    stride = sizes[-1]
    (dx, dw), (size_x, size_w) = references(x, weight, grad, stride, y)
    with from_ptx(processors):
        got_x = ops.pointwise_conv2d_backward_input(grad, weight, x.shape, stride, y, False)
        got_w = ops.pointwise_conv2d_backward_weight(grad, x, stride, y, False)
    assert_close(got_x, dx, size_x, grad.shape[1])
    assert_close(got_w, dw, size_w, grad[:, 0].numel())


def pieces():
    gradients((2, 16, 16, 23, 13, (1, 1)), 108)


def siblings():
    x, weights = tensors(torch.float32, 1, 24, 1, 5, 7, (1, 1))[0], [torch.randn(o, 24, 1, 1) for o in (19, 5)]
    with from_ptx():
        ys = ops.pointwise_conv2d_siblings(x, weights, [], False, False)
    for y, w in zip(ys, weights, strict=True):
        wanted, size = (torch.nn.functional.conv2d(*both) for both in ((x.double(), w.double()), (x.abs(), w.abs())))
        assert_close(y, wanted, size, 24)


@dataclass(frozen=True)
class Fault:
    module: ModuleType
    right: str
    wrong: str
    case: Callable[[], None]
    found_by: type[Exception]
    report: str


BEYOND = r"global {} of \d+ bytes out of bounds at address .*, byte -?\d+ of buffer \d+ "
FAULTS = {
    "x of pixels beyond the last one is loaded": Fault(
        pointwise_backward,
        "mask=in_pixels[:, None] & in_inputs[None, :], other",
        "mask=in_inputs[None, :], other",
        gradients,
        PtxError,
        BEYOND.format("read"),
    ),
    "cells reach beyond the image": Fault(
        pointwise_backward,
        "in_pixels & (h < H) & (w < W)",
        "in_pixels",
        gradients,
        PtxError,
        "race on global memory|" + BEYOND.format("write"),
    ),
    "pixels that no output reads are left out": Fault(
        pointwise_backward,
        "tl.store(dx + at, tl.zeros_like(values), mask=mask)",
        "pass",
        gradients,
        AssertionError,
        "exceeds the bound",
    ),
    "two pieces are written to one place": Fault(
        pointwise_backward,
        "at = split * outputs * inputs + o",
        "at = o",
        pieces,
        PtxError,
        r"race on global memory: write by block number \d+",
    ),
    "a piece begins with the one before it": Fault(
        pointwise_backward,
        "for start in range(first, ",
        "for start in range(tl.maximum(first - BLOCK_M, 0), ",
        pieces,
        AssertionError,
        "exceeds the bound",
    ),
    "channels beyond a branch's last one are stored": Fault(
        pointwise_siblings,
        "mask = in_pixels[:, None] & in_outputs[None, :]",
        "mask = in_pixels[:, None]",
        siblings,
        PtxError,
        "race on global memory|" + BEYOND.format("write"),
    ),
    "a branch's rows lie as far apart as its neighbour's": Fault(
        pointwise_siblings,
        "y_row if SLICES else o1,",
        "y_row if SLICES else o0,",
        siblings,
        PtxError,
        BEYOND.format("write"),
    ),
}


def plant(fault: Fault, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Has the ops launch kernels of the changed text: of what stands before the host code, which registers ops."""
    text = Path(fault.module.__file__).read_text().partition("\n\ndef check(")[0]
    assert text.count(fault.right) == 1, f"there are {text.count(fault.right)} of {fault.right!r}"
    path, name = folder / "planted.py", "fastcnn.kernels.planted"
    path.write_text(text.replace(fault.right, fault.wrong) + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    for kernel in (each for each in vars(fault.module) if each.endswith("_kernel") and hasattr(module, each)):
        patch.setattr(fault.module, kernel, getattr(module, kernel))


@pytest.mark.parametrize("case", [gradients, pieces, siblings])
def test_without_a_fault(case):
    case()


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(name, tmp_path, monkeypatch):
    fault = FAULTS[name]
    plant(fault, tmp_path, monkeypatch)
    with pytest.raises(fault.found_by, match=fault.report):
        fault.case()
