"""Machine code of kernels that the static gate's layers do not have: siblings, their gradient, sums over pixels."""

import importlib.util

import pytest
import torch

from bench.static import ptxas, toolchain

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)
if toolchain.MISSING:
    pytest.skip(toolchain.MISSING, allow_module_level=True)

import fastcnn.kernels  # noqa: F401  registers the ops

from bench.static.triton_launch import Compiled, compile_launch, launches
from tests.cases import find

pytestmark = pytest.mark.cpu
ops = torch.ops.fastcnn
CASES = [find(f"googlenet.3a.{name}") for name in ("1x1", "3x3_reduce", "5x5_reduce")]
MMA = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


def compiled(name: str, arch: int, dtype: torch.dtype, batch: int = 8) -> Compiled:
    def pixels(shape):
        return torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, ys = pixels(CASES[0].input_shape(batch)), [pixels(case.output_shape(batch)) for case in CASES]
    weights = [torch.empty(case.weight_shape, dtype=dtype) for case in CASES]
    biases = [torch.empty(case.out_channels, dtype=dtype) for case in CASES]
    statistics = torch.empty(CASES[0].out_channels), torch.empty(CASES[0].out_channels)
    calls = {
        "siblings": lambda: ops.pointwise_conv2d_siblings(x, weights, biases, True, False),
        "siblings_cat": lambda: ops.pointwise_conv2d_siblings_cat(x, weights, biases, True, False),
        "backward": lambda: ops.pointwise_conv2d_siblings_backward_input(ys, weights, ys, False),
        "reduce": lambda: ops.pointwise_conv2d_backward_reduce(ys[0], ys[0], ys[0], *statistics),
    }
    return compile_launch(launches(calls[name])[0], arch)


@pytest.mark.parametrize("arch", MMA)
@pytest.mark.parametrize("name", ["siblings", "backward"])
def test_tensor_cores_and_asynchronous_copies(name, arch):
    code = compiled(name, arch, torch.bfloat16)
    assert MMA[arch] in code.disassembly
    assert "LDGSTS.E" in code.disassembly
    assert_in_registers(code)


@pytest.mark.parametrize("name", ["siblings", "siblings_cat", "backward", "reduce"])
def test_float32_does_not_spill(name):
    code = compiled(name, 80, torch.float32)
    assert "FFMA" in code.disassembly
    assert "HMMA" not in code.disassembly
    assert_in_registers(code)


def test_16_bytes_a_load_of_the_sums():
    assert "LDG.E.128" in compiled("reduce", 80, torch.bfloat16).disassembly


def assert_in_registers(code: Compiled) -> None:
    resources = ptxas.parse(code.log)[code.name]
    assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
    assert "LDL" not in code.disassembly
