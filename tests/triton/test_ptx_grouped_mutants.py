"""Faults planted in the text of grouped convolution's Triton kernels, each found in the PTX of the changed kernel."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

import fastcnn.kernels

from tests.ptx import PtxError
from tests.triton import test_ptx_grouped
from tests.triton.grouped_layers import Layer

pytestmark = pytest.mark.cpu
# The 4 groups of a pack and 2 of another; the last pixel is the image's last, so that nothing lies behind it.
NARROW = Layer(6, 4, 4, size=(3, 4))
STRIDED = Layer(2, 4, 4, size=(4, 5), stride=(2, 2))


def forward():
    test_ptx_grouped.forward(NARROW, torch.float16)


def input_gradient():
    test_ptx_grouped.backward(STRIDED, torch.float16)


def weight_gradient():
    tile = test_ptx_grouped.GroupedWeightTile(4, 16, 64, 16, 2, 4, 2)
    test_ptx_grouped.backward(Layer(2, 4, 4, size=(5, 6)), torch.float16, tiles=(None, tile))


def masked_gradient():
    test_ptx_grouped.backward(STRIDED, torch.float16, masked=True)


@dataclass(frozen=True)
class Fault:
    name: str
    module: str
    right: str  # in kernels/<module>.py
    wrong: str
    run: object
    report: str


FORWARD, BACKWARD = "grouped_forward", "grouped_backward"
READ, WRITE = r"global read of \d+ bytes out of bounds", r"global write of \d+ bytes out of bounds"
FAULTS = [
    Fault("rows below the image are read", FORWARD, "(h >= 0) & (h < height)", "(h >= 0)", forward, READ),
    Fault("channels behind the pack are read", FORWARD, "in_k = (k >= k_from) & (k < k_to)", "in_k = k >= k_from",
          forward, READ),
    Fault("channels of groups that are not there are stored", FORWARD, "in_columns = columns < live * OUTPUTS",
          "in_columns = columns < PACK * OUTPUTS", forward, WRITE),
    Fault("pixels behind the last one are stored", FORWARD, "mask = in_rows[:, None] & in_columns[None, :]\n    value",
          "mask = (in_rows | True)[:, None] & in_columns[None, :]\n    value", forward, WRITE),
    Fault("the pack's blocks are not diagonal", FORWARD, "diagonal & in_rows[:, None]", "in_rows[:, None]", forward,
          r"times the bound"),
    Fault("a tap of another residue", BACKWARD, "(residue - (STEP", "(residue + 1 - (STEP",
          input_gradient, r"input: .* times the bound"),
    Fault("gradients below the image are read", BACKWARD, "(p_strided >= 0) & (p < out_height)", "(p_strided >= 0)",
          input_gradient, READ),
    Fault("the ReLU's mask is left out", BACKWARD, "HAS_Y,\n        )\n        b =", "False,\n        )\n        b =",
          masked_gradient, r"input: .* times the bound"),
    Fault("splits share a step", BACKWARD, "(split + 1) * share)", "(split + 1) * share + 1)", weight_gradient,
          r"weight: .* times the bound"),
    Fault("splits share a place", BACKWARD, "split.to(tl.int64) * (groups", "0 * split.to(tl.int64) * (groups",
          weight_gradient, r"race on global memory"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found(fault, tmp_path, monkeypatch):
    source = (Path(fastcnn.kernels.__file__).parent / f"{fault.module}.py").read_text()
    assert source.count(fault.right) == 1
    path = tmp_path / f"{fault.module}_wrong.py"
    path.write_text(source.replace(fault.right, fault.wrong))
    name = f"fastcnn.kernels.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where from_ptx looks for launches
    spec.loader.exec_module(module)
    for launch in ("launch", "launch_input", "launch_weight"):
        if hasattr(module, launch):
            monkeypatch.setattr(test_ptx_grouped, launch, getattr(module, launch))
    with pytest.raises((PtxError, AssertionError), match=fault.report):
        fault.run()
