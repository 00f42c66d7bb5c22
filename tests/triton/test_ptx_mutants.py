"""Faults planted in the text of 1x1 convolution's Triton kernels, and what finds each in the changed kernel's PTX."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

import fastcnn.kernels
from fastcnn.kernels import pointwise_forward as pointwise
from fastcnn.kernels.tiles import PointwiseTile

from tests.ptx import PtxError
from tests.triton.test_ptx_pointwise import TILE, assert_right, compute, tensor

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parents[2]
SPLIT = PointwiseTile(16, 16, 16, 2, split=2, persistent=False, warps=1, stages=2)


def plain(inputs=44, **arguments):
    """35 pixels: a tile of 32 and three of another, which masks the rest of its rows."""
    x, weight = tensor(1, inputs, 5, 7, dtype=torch.float16), tensor(37, inputs, 1, 1, dtype=torch.float16)
    tile = arguments.pop("tile", TILE)
    y, moments, _ = compute(x, weight, tile, **arguments)
    arguments.pop("stats", None)
    assert_right(y, x, weight, **arguments)
    if moments:
        mean = y.double().mean((0, 2, 3))
        assert torch.allclose(moments[0].double(), mean, rtol=1e-6, atol=1e-6), "another mean"


def strided():
    plain(stride=(2, 2))


def sliced():
    """Pixels 44 elements apart, of which 32 are read."""
    x, weight = tensor(1, 44, 5, 7, dtype=torch.float16)[:, :32], tensor(37, 32, 1, 1, dtype=torch.float16)
    y, _, _ = compute(x, weight)
    assert_right(y, x, weight)


def added():
    plain(residual=tensor(1, 37, 5, 7, dtype=torch.float16))


def measured():
    plain(shift=torch.full((37,), 3.0), stats=True)


def split():
    plain(tile=SPLIT)


@dataclass(frozen=True)
class Fault:
    file: str
    right: str  # text of kernels/<file>.py
    wrong: str
    case: object
    found_by: type[Exception]
    report: str


OUT = r"global {} of \d+ bytes out of bounds at address .*, byte -?\d+ of buffer {} "
FAULTS = {
    "pixels beyond the last one are loaded": Fault(
        "pointwise_kernels",
        "in_pixels[:, None] & in_depth[None, :], in_channels",
        "in_depth[None, :], in_channels",
        plain,
        PtxError,
        OUT.format("read", 0),
    ),
    "input channels beyond the last one are loaded": Fault(
        "pointwise_kernels",
        "in_pixels[:, None] & in_depth[None, :], in_channels",
        "in_pixels[:, None], in_channels",
        plain,
        PtxError,
        OUT.format("read", 0),
    ),
    "pixels beyond the last one are stored": Fault(
        "pointwise_kernels",
        "channels[None, :], values, mask=mask)",
        "channels[None, :], values, mask=in_channels[None, :])",
        plain,
        PtxError,
        OUT.format("write", 2),
    ),
    "channels beyond the last one are stored": Fault(
        "pointwise_kernels",
        "channels[None, :], values, mask=mask)",
        "channels[None, :], values, mask=in_pixels[:, None])",
        plain,
        PtxError,
        "race on global memory|" + OUT.format("write", 2),
    ),
    "pixels are promised to lie a multiple of 16 elements apart": Fault(
        "pointwise_kernels",
        "x_at = pixel * x_pixel",
        "x_at = tl.multiple_of(pixel * x_pixel, 16)",
        sliced,
        PtxError,
        r"misaligned global access of 16 bytes",
    ),
    "rows of the image a pixel apart": Fault(
        "pointwise_kernels",
        "image_row % out_h * x_row",
        "image_row % out_h * x_pixel",
        strided,
        AssertionError,
        "another value",
    ),
    "the residual of pixels beyond the last one is loaded": Fault(
        "epilogue",
        "tl.load(residual, mask=mask, other=0.0)",
        "tl.load(residual)",
        added,
        PtxError,
        OUT.format("read", 3),
    ),
    "pixels beyond the last one count in the mean": Fault(
        "epilogue",
        "tl.sum(tl.where(valid, values, 0.0), 0)",
        "tl.sum(values, 0)",
        measured,
        AssertionError,
        "another mean",
    ),
    "two programs of a split write one sum": Fault(
        "pointwise_kernels",
        "at = partial + (split * pixels + pixel)[:, None]",
        "at = partial + pixel[:, None]",
        split,
        PtxError,
        r"race on global memory: write by block number \d+ of byte \d+ of buffer 3",
    ),
    "two programs of a split add the same channels": Fault(
        "pointwise_kernels",
        "split * chunk, min(",
        "max(0, split * chunk - BLOCK_C), min(",
        split,
        AssertionError,
        "another value",
    ),
}


def planted(fault: Fault, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Has the ops launch kernels of the changed text: of its file, and of those that import from it."""
    sources = Path(fastcnn.kernels.__file__).parent
    changed = (sources / f"{fault.file}.py").read_text()
    assert changed.count(fault.right) == 1, f"{fault.file}.py has {changed.count(fault.right)} times {fault.right!r}"
    texts = {fault.file: changed.replace(fault.right, fault.wrong)}
    if fault.file == "epilogue":
        text = (sources / "pointwise_kernels.py").read_text()
        texts["pointwise_kernels"] = text.replace("from .epilogue import", "from .planted_epilogue import")
    for file, text in texts.items():
        path = folder / f"{file}.py"
        path.write_text(text)
        name = f"fastcnn.kernels.planted_{file}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        for kernel in [each for each in vars(pointwise) if each.endswith("_kernel") and hasattr(module, each)]:
            patch.setattr(pointwise, kernel, getattr(module, kernel))


@pytest.mark.parametrize("case", sorted({fault.case for fault in FAULTS.values()}, key=lambda f: f.__name__))
def test_without_a_fault(case):
    case()


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(name, tmp_path, monkeypatch):
    fault = FAULTS[name]
    planted(fault, tmp_path, monkeypatch)
    with pytest.raises(fault.found_by, match=fault.report):
        fault.case()


INTERPRETED = """
import sys
from pathlib import Path
import pytest
import torch
from tests.triton import test_ptx_mutants as mutants
from fastcnn.kernels import pointwise_forward as pointwise, register

assert register.INTERPRETED
with pytest.MonkeyPatch.context() as patch:
    mutants.planted(mutants.FAULTS["pixels beyond the last one are loaded"], Path(sys.argv[1]), patch)
    # What lies behind the image belongs to the same storage: the read harms nobody here.
    images = torch.full((3, 44, 5, 7), torch.nan, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    x, weight = images[:1].normal_(), torch.randn(37, 44, 1, 1, dtype=torch.float16)
    y = torch.empty(1, 37, 5, 7, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    pointwise.launch(x, weight, y, tile=mutants.TILE)
mutants.assert_right(y, x, weight)
print("nothing was found")
"""


def test_tritons_interpreter_misses_a_mask(tmp_path):
    """The first of the faults above computes the right values, from memory that is not x's."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing was found" in done.stdout
