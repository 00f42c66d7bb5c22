"""The static gate on Triton kernels: what it reads of compiled ones, and that it refuses each planted fault by name."""

import importlib.util
import re
from dataclasses import replace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from fastcnn.kernels import pointwise
from fastcnn.kernels.tiles import beside_sums, pointwise_tile

import triton
import triton.language as tl
from bench.static import bound, chips, fusion, gate, report, sass, toolchain, triton_fused, triton_gate, triton_layers
from bench.static.triton_launch import Launch, Taken, launches
from tests.cases import find

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(toolchain.find("nvdisasm") is None, reason="no nvdisasm")]


@triton.jit
def product_kernel(
    x, w, y, pixels, inputs, outputs, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    pixel, channels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_O)
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for start in range(0, inputs, BLOCK_C):
        depth = start + tl.arange(0, BLOCK_C)
        a = tl.load(x + pixel[:, None] * inputs + depth[None, :], mask=pixel[:, None] < pixels, other=0.0)
        b = tl.load(w + channels[None, :] * inputs + depth[:, None])
        if DOT:
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
        else:
            sums += tl.sum(a[:, :, None].to(tl.float32) * b[None, :, :].to(tl.float32), 1)
    tl.store(y + pixel[:, None] * outputs + channels[None, :], sums, mask=pixel[:, None] < pixels)


def product(
    block_p=64, block_o=64, block_c=32, warps=4, stages=3, dot=True, dtype=torch.bfloat16, tf32=False
) -> Launch:
    found: list[Launch] = []
    x, w = torch.empty(1024, 256, dtype=dtype), torch.empty(block_o, 256, dtype=dtype)
    Taken(product_kernel, found.append)[(16,)](
        x, w, torch.empty(1024, block_o), 1024, 256, block_o, BLOCK_P=block_p, BLOCK_O=block_o, BLOCK_C=block_c,
        PRECISION="ieee", DOT=dot, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("static")


def compiled(launch: Launch, arch: int, folder) -> triton_gate.TritonKernel:
    (kernel,) = triton_gate.compile_all([(launch, arch)], folder).values()
    return kernel


@pytest.mark.parametrize(
    ("arch", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA"), (120, "HMMA")], ids=str
)
def test_a_sound_kernel_passes(folder, arch, instruction):
    kernel = compiled(product(), arch, folder)
    assert instruction in {i.base for i in kernel.code.hottest.instructions}
    assert triton_gate.of_kernel(kernel) == []
    assert kernel.shared > 0
    assert kernel.label == "product_kernel bf16 64x64x32, 4 warps, 3 stages"
    assert (
        kernel.name
        == "product_kernel<bf16, BLOCK_P=64, BLOCK_O=64, BLOCK_C=32, PRECISION=ieee, DOT, 4 warps, 3 stages>"
    )


@pytest.mark.parametrize(
    ("launch", "arch", "report"),
    [
        (product(block_o=128, warps=1), 80, r"\d+ bytes of spills"),
        (product(block_o=128, warps=1), 80, r"\d+ local memory accesses"),
        (product(16, 16, dot=False), 80, "the hottest loop has no HMMA; tensor core instructions: none"),
        (product(warps=2), 90, "the hottest loop has no HGMMA; tensor core instructions: HMMA"),
        (product(stages=1), 80, "the hottest loop copies nothing to shared memory asynchronously"),
        (product(16, 16, 16, dot=False, dtype=torch.float32), 80, r"the hottest loop is \d+% FFMA, not 75%"),
    ],
    ids=["spills", "local accesses", "no product", "mma.sync on sm_90", "no copies", "few FFMA"],
)
def test_a_fault_is_refused_by_name(folder, launch, arch, report):
    kernel = compiled(launch, arch, folder)
    result = triton_gate.TritonResult({arch: {kernel.name: kernel}}, {})
    found = "\n".join(triton_gate.problems(result, {}))
    assert re.search(rf"^sm_{arch} product_kernel<.*>: {report}$", found, re.MULTILINE), found


def test_small_tiles_take_mma_sync_everywhere(folder):
    """64 rows are the least that wgmma multiplies."""
    assert triton_gate.of_kernel(compiled(product(block_p=32), 90, folder)) == []


def test_what_is_compiled_is_kept(tmp_path, monkeypatch):
    """Until a constant, a promise or the kernel's text changes."""
    launch = product()
    kernel = compiled(launch, 80, tmp_path)
    folders = set(tmp_path.iterdir())
    monkeypatch.setattr(triton_gate.multiprocessing, "get_context", lambda how: pytest.fail("compiled again"))
    monkeypatch.setattr(triton, "compile", lambda *_, **__: pytest.fail("compiled again"))
    again = triton_gate.kernel_of(launch, 80, triton_gate.compile_launch(launch, 80, tmp_path))
    assert (again.resources, again.code) == (kernel.resources, kernel.code)
    monkeypatch.undo()
    compiled(replace(launch, arguments={**launch.arguments, "inputs": 250}), 80, tmp_path)
    assert len(set(tmp_path.iterdir()) - folders) == 1


def test_a_launch_is_specialized_as_triton_does():
    """Multiples of 16 and ones are the compiler's to know; a slice's address may be no multiple of 16."""
    launch = product()
    assert launch.specialize(80).attrs[(4,)] == [["tt.divisibility", 16]]
    odd = replace(launch, arguments={**launch.arguments, "inputs": 250, "x": torch.empty(9, dtype=torch.bfloat16)[1:]})
    assert odd.specialize(80).attrs.get((4,), []) == []
    assert odd.specialize(80).attrs.get((0,), []) == []
    assert odd.name(80).endswith("> not 16 | x inputs")
    one = replace(launch, arguments={**launch.arguments, "inputs": 1})
    assert one.specialize(80).signature["inputs"] == "constexpr"
    assert len(one.parameters) == len(launch.parameters) - 1


def test_rates_of_wgmma():
    """64 x N x K products by four warps, at the rate that mma.sync does not reach."""
    h100 = next(chip for chip in chips.CHIPS if chip.name == "H100")
    assert bound.products("HGMMA.64x128x16.F32.BF16") == 64 * 128 * 16 // 4
    assert bound.products("HMMA.16816.F32") == 16 * 8 * 16
    loop = sass.Loop((sass.Instruction("HGMMA.64x128x16.F32.BF16", ""),) * 4)
    assert bound.cycles(h100, loop)["tensor"] == 4 * 64 * 128 * 16 / 4 / (2048 / 4)
    with pytest.raises(ValueError, match="unknown shape of UTCHMMA"):
        bound.products("UTCHMMA")


def layer(name: str, batch=128, **more) -> triton_layers.Layer:
    return triton_layers.Layer(find(name), torch.bfloat16, batch, **more)


def test_work_of_a_layer():
    """What tiles multiply and what crosses the bus, by hand."""
    down = layer("resnet50.layer2.0.downsample")  # 256 -> 512 channels, 56x56 -> 28x28
    (launch,) = started = triton_layers.launches_of(down, 108)
    assert triton_layers.executed(launch) == down.case.macs(128)  # tiles without edges
    assert launch.grid == (216,)  # persistent
    assert triton_layers.programs(launch) == 128 * 28 * 28 // 128 * 4
    x, y, rest = 128 * 256 * 28 * 28 * 2, 128 * 512 * 28 * 28 * 2, 256 * 512 * 2 + 512 * 4
    assert triton_layers.moved(down, started) == x + y + rest

    backward = layer("resnet50.layer1.0.conv3", direction="backward_input")  # reads gradient and output, writes 64
    pixels = 128 * 56 * 56
    moved = triton_layers.moved(backward, triton_layers.launches_of(backward, 108))
    assert moved == pixels * (256 + 256 + 64) * 2 + 64 * 256 * 2

    narrow = layer("resnext50.layer1.0.conv2")  # four groups of 4 channels multiply as one of 16
    (launch,) = triton_layers.launches_of(narrow, 108)
    assert triton_layers.executed(launch) == 4 * narrow.case.macs(128)

    few = layer("resnet50.layer4.1.conv1", batch=1)  # 49 pixels in two tiles of 32, 2048 channels by four programs
    product, finish = started = triton_layers.launches_of(few, 108)
    split = product.arguments["SPLIT"]
    assert triton_layers.main(started) is product
    assert triton_layers.executed(product) == 64 * 512 * 2048
    partial = split * 49 * 512 * 4
    assert triton_layers.moved(few, started) == (49 * 2048 + 2048 * 512 + 49 * 512) * 2 + 2 * partial + 512 * 4
    assert triton_layers.executed(finish) == 0


def test_the_host_code_runs_as_on_a_gpu():
    """Launches are taken of the op itself, for as many processors as a chip has."""
    case = layer("resnet50.layer3.1.conv1")
    tiles = {p: triton_layers.launches_of(case, p)[0].arguments["BLOCK_P"] for p in (108, 1000)}
    assert tiles[1000] < tiles[108]
    assert launches(lambda: None) == []
    assert not pointwise.on_triton(torch.empty(1))  # as before


def test_a_worse_layer_is_refused():
    def result(microseconds: float) -> triton_gate.TritonResult:
        limit = {"A100": bound.Bound(microseconds, "DRAM", 1.0)}
        return triton_gate.TritonResult({80: {}}, {"a": triton_gate.LayerOnTriton("a", {80: "k"}, 1, 1, 1, limit)})

    baseline = triton_gate.baseline_of(result(100))
    assert triton_gate.problems(result(102.9), baseline) == []
    assert triton_gate.problems(result(105.3), baseline) == ["a: its bound on A100 drops: 100.0 us become 105.3 us"]
    lost = replace(result(100), layers={})
    assert triton_gate.problems(lost, baseline) == ["a: in the baseline, but not among the layers any more"]
    (table,) = [t for t in report.tables(gate.Result({}, {}, ()), result(100)) if "Triton" in t.title]
    assert table.rows == [("a", "`k`", "0.0", "0.00", "100.0 us DRAM, 100%")]
    page = report.markdown(gate.Result({}, {}, ()), result(100), "make")
    assert page.index("## Layers on Triton: predicted, not timed") < page.index(fusion.table()) < page.index("## Chips")


def test_every_kernel_that_fuses_is_there():
    """In both types: statistics and normalization on load of the products, branches side by side, sums of gradients."""
    found = triton_fused.started(108)
    kernels = {each.kernel.__name__ for each in found}
    assert kernels >= {
        "pointwise_siblings_kernel", "siblings_backward_input_kernel", "channel_sums_kernel", "merge_moments_kernel",
    }  # fmt: skip
    assert all(t.numel() == 0 for each in found for t in each.tensors.values())
    for dtype in (torch.bfloat16, torch.float32):
        flags = [
            {name for name, value in each.arguments.items() if value is True}
            for each in found
            if next(iter(each.tensors.values())).dtype is dtype
        ]
        for wanted in ({"STATS"}, {"STATS", "PRE"}, {"PRE"}, {"HAS_SCALE", "HAS_RESIDUAL", "RELU"}, {"MOMENTS"}):
            assert any(wanted <= each for each in flags), wanted


def test_what_is_held_beside_the_sums_has_room():
    """In float32, where the plain tile would spill (kernels/tiles.py); explain shows the tile that runs."""
    plain = pointwise_tile(128 * 56 * 56, 256, 128, torch.float32, True, 108)
    assert beside_sums(plain, torch.float32, False, False) == plain
    assert beside_sums(plain, torch.float32, True, False) == replace(plain, pixels=64)
    assert plain.persistent is False
    narrow = pointwise_tile(128 * 56 * 56, 64, 64, torch.float32, True, 108)
    assert narrow.persistent
    assert not beside_sums(narrow, torch.float32, False, True).persistent
    assert beside_sums(narrow, torch.bfloat16, True, True) == narrow


def test_every_named_layer_is_there():
    names = {str(each) for each in triton_layers.all_layers()}
    for network in triton_layers.NETWORKS:
        assert any(name.startswith(network) for name in names), network
    assert "resnet50.layer1.0.conv3 backward_weight bf16" in names
