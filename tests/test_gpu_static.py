"""The static gate of the CUDA kernels: reads the compilers' output, and refuses each planted fault by its name."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.static import bound, check, chips, gate, ptxas, sass, toolchain

ROOT = Path(__file__).parents[1]
A100, RTX_4090, H100, _ = chips.CHIPS

LOG = """\
ptxas info    : Compiling entry function '_Z4spilPf' for 'sm_80'
ptxas info    : Function properties for _Z4spilPf
    8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 48 registers, used 2 barriers, 8 bytes cumulative stack size, 512 bytes smem, 608 bytes cmem[0]
ptxas info    : Function properties for __internal_accurate_pow
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_80'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 360 bytes cmem[0]
"""

# A loop over pixels around one over taps, whose slow path (16 bytes long) nothing has to take.
SASS = """\
\t.headerflags\t@"EF_CUDA_SM80"
//--------------------- .text._Z4convPf --------------------------
\t.section\t.text._Z4convPf,"ax",@progbits
.text._Z4convPf:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   MUFU.RCP R9, R8 ;
        /*0050*/                   DFMA R10, R10, R12, R14 ;
.L_x_2:
        /*0060*/              @!PT LDS RZ, [RZ] ;
        /*0070*/                   HMMA.16816.F32.BF16 R64, R72.reuse, R68, R64 ;
        /*0080*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0090*/              @!P1 BRA `(.L_x_1) ;
        /*00a0*/                   STG.E [R2.64], R5 ;
        /*00b0*/               @P2 BRA `(.L_x_0) ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   BRA `(.L_x_3);
        /*00e0*/                   NOP;
"""


def test_ptxas_log():
    found = ptxas.parse(LOG)
    assert found["_Z4spilPf"] == ptxas.Resources(48, 8, 12, 20, 512, 2)
    assert found["_Z5plainPf"] == ptxas.Resources(12, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="says nothing of _Z5plainPf"):
        ptxas.parse(LOG.replace("Used 12", "Uses 12"))


def test_disassembly():
    code = sass.parse(SASS)["_Z4convPf"]
    assert code.wide_share == 0.5
    assert len(code.instructions) == 15
    (loop,) = code.loops  # neither the outer one nor the trap at the end
    assert [i.base for i in loop.instructions][:2] == ["LDG", "BRA"]
    assert loop.mix == {"LDG": 1, "branch": 2, "special": 1, "double": 1, "other": 1, "HMMA": 1, "integer": 1}
    assert [i.base for i in loop.path] == ["LDG", "BRA", "LDS", "HMMA", "UIADD3", "BRA"]


def test_the_way_through_a_loop_makes_every_access():
    taken = SASS.replace("DFMA R10, R10, R12, R14", "LDS R10, [R12]")
    (loop,) = sass.parse(taken)["_Z4convPf"].loops
    assert loop.path == loop.instructions
    exclusive = SASS.replace("MUFU.RCP R9, R8 ;", "BRA `(.L_x_2) ;").replace(
        "DFMA R10, R10, R12, R14", "LDS R10, [R12]"
    )
    (loop,) = sass.parse(exclusive)["_Z4convPf"].loops
    assert loop.path == loop.instructions  # no way makes them all: all of it counts


def test_names():
    demangled = "void fastcnn::cuda::(anonymous namespace)::pool<fastcnn::Half, (Kind)1, 3>(fastcnn::Params)"
    assert toolchain.short(demangled) == "pool<Half, (Kind)1, 3>"
    assert toolchain.short("plain(float*)") == "plain"


@pytest.mark.parametrize(
    ("chip", "launch", "blocks", "limit"),
    [
        (A100, (256, 32, 0), 8, "threads"),
        (RTX_4090, (256, 32, 0), 6, "threads"),
        (A100, (256, 125, 49152), 2, "registers"),
        (A100, (128, 40, 49152), 3, "shared memory"),  # 3 x (48 + 1) KB of 164
        (H100, (128, 40, 49152), 4, "shared memory"),
        (RTX_4090, (128, 40, 49152), 2, "shared memory"),
        (RTX_4090, (128, 40, 100 * 1024), 0, "shared memory"),
        (A100, (32, 16, 0), 32, "blocks"),
        (A100, (32, 16, 0, 16), 4, "barriers"),
    ],
)
def test_occupancy(chip, launch, blocks, limit):
    fits = chips.occupancy(chip, *launch)
    assert (fits.blocks, fits.limit) == (blocks, limit)


def test_bounds():
    """An A100's processor makes 1024 multiply-adds a clock: 8 clocks of a quarter for one m16n8k16."""
    product, move = (sass.Instruction(name, "") for name in ("HMMA.16816.F32.BF16", "MOV"))
    loop = sass.Loop((product,) * 4 + (move,) * 12)
    assert bound.cycles(A100, loop)["tensor"] == 32
    assert bound.loop_bound(A100, loop) == 1
    assert bound.loop_bound(A100, sass.Loop((product,) * 4 + (move,) * 60)) == 0.5
    assert bound.cycles(RTX_4090, loop)["tensor"] == 128
    with pytest.raises(ValueError, match=r"unknown shape of HMMA\.884"):
        bound.cycles(A100, sass.Loop((sass.Instruction("HMMA.884.F32.F32", ""),)))

    copy = sass.Loop((sass.Instruction("LDG.E.128", ""), sass.Instruction("STG.E.128", ""), move))
    work = bound.Work(bytes=2039 * 10**6, requests=1000)
    assert bound.layer_bound(A100, copy, work) == bound.Bound(1000, "DRAM", 1)
    busy = bound.layer_bound(A100, copy, replace(work, requests=10**9))
    assert busy.unit == "L1"  # 4 wavefronts of 128 bytes a request, 4 quarters to a processor's cache
    assert busy.microseconds == pytest.approx(10**9 / 2 * 32 / (108 * 4) / 1410)


def conv_kernel(name="conv2d_mma_kernel<Half, 128, 128>", sass_text=SASS, **resources) -> gate.Kernel:
    """Of the text above, with what a matrix product must have."""
    text = sass_text.replace("@!PT LDS RZ, [RZ] ;", "    LDSM.16.M88.4 R4, [R5] ;").replace("LDG.E.128", "LDGSTS.E.128")
    text = text.replace("DFMA R10, R10, R12, R14", "FADD R10, R10, R12")
    used = replace(ptxas.Resources(40, 0, 0, 0, 0, 1), **resources)
    return gate.Kernel(name, "conv2d_mma.cu", "80", used, sass.parse(text)["_Z4convPf"])


def result_of(kernel: gate.Kernel, **more) -> gate.Result:
    return gate.Result({"80": {kernel.name: kernel}}, more.get("layers", {}), more.get("warnings", ()))


NAME = "sm_80 conv2d_mma_kernel<Half, 128, 128>: "


def test_a_sound_kernel_passes():
    sound = result_of(conv_kernel())
    assert check.problems(sound, {}) == []
    assert check.problems(sound, check.baseline_of(sound)) == []


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (conv_kernel(spill_stores=12, spill_loads=20), "32 bytes of spills, 0 in the baseline"),
        (conv_kernel(stack=8), "8 bytes of stack, 0 in the baseline"),
        (conv_kernel(sass_text=SASS.replace("MUFU.RCP R9, R8", "LDL R9, [R1]")), "1 local memory accesses"),
        (conv_kernel(sass_text=SASS.replace("HMMA.16816.F32.BF16", "FFMA")), "the hottest loop has no HMMA"),
        (conv_kernel(sass_text=SASS.replace("LDG.E.128", "LDG.E.64")), "the hottest loop has no LDGSTS"),
        (conv_kernel(sass_text=SASS.replace("MUFU.RCP R9, R8", "DADD R8, R8, R10")), "1 float64 instructions"),
    ],
)
def test_a_fault_is_refused_by_name(kernel, says):
    found = check.problems(result_of(kernel), check.baseline_of(result_of(conv_kernel())))
    assert any(line.startswith(NAME + says) for line in found), found


def test_float32_products_need_no_ldmatrix():
    """Its loads transpose 16-bit elements alone."""
    name, text = "conv2d_mma_kernel<float, 128, 128, true>", SASS.replace("@!PT LDS RZ, [RZ] ;", "    LDS R4, [R5] ;")
    assert check.problems(result_of(conv_kernel(name, text)), {}) == []
    lost = conv_kernel(name, text.replace("HMMA.16816.F32.BF16", "FFMA"))
    assert check.problems(result_of(lost), {}) == [f"sm_80 {name}: the hottest loop has no HMMA"]


def test_a_halo_tile_needs_its_matrix_loop_but_no_copies_in_it():
    name, uncopied = "conv2d_grouped_mma_kernel<Half, 8>", SASS.replace("LDG.E.128", "LDG.E.64")
    assert check.problems(result_of(conv_kernel(name, uncopied)), {}) == []
    found = check.problems(result_of(conv_kernel(name, uncopied.replace("HMMA.16816.F32.BF16", "FFMA"))), {})
    assert found == [f"sm_80 {name}: the hottest loop has no HMMA"]


def test_a_reason_excuses_only_what_the_baseline_has(monkeypatch):
    monkeypatch.setattr(check, "KNOWN_STACK", (check.Excuse("AnyPower", "pow takes registers"),))
    name = "lrn_max_pool2d_kernel<double, int, AnyPower>"
    known, more = conv_kernel(name, stack=8), conv_kernel(name, stack=16)
    baseline = check.baseline_of(result_of(known))
    assert check.problems(result_of(known), baseline) == []
    assert check.problems(result_of(more), baseline) == [f"sm_80 {name}: 16 bytes of stack, 8 in the baseline"]
    other = conv_kernel(stack=8)
    assert check.problems(result_of(other), check.baseline_of(result_of(other))) == [
        NAME + "8 bytes of stack, which no reason excuses"
    ]


def busy_kernel(moves: int) -> gate.Kernel:
    """Its loop is 16 products, of 8 cycles of an A100's quarter each, 5 other instructions and these moves."""
    product = next(line for line in SASS.splitlines(keepends=True) if "HMMA" in line)
    move = "        /*0078*/                   MOV R9, R8 ;\n"
    return conv_kernel(sass_text=SASS.replace(product, product * 16 + move * moves))


def test_a_dropped_bound_is_refused():
    baseline = check.baseline_of(result_of(busy_kernel(0)))
    assert baseline["kernels"]["80"][NAME[6:-2]]["bounds"] == {"A100": 1, "RTX 4090": 1}
    assert check.problems(result_of(busy_kernel(110)), baseline) == []  # 128 cycles of 131
    assert check.problems(result_of(busy_kernel(114)), baseline) == [
        NAME + "its loop's bound on A100 drops from 100.0% to 94.8%"
    ]


@pytest.fixture
def layers():
    """The named layers, whose launches are recorded under simt."""
    library = pytest.importorskip("tests.simt.library")
    if library.MISSING:
        pytest.skip(library.MISSING)
    from bench.static import layers

    return layers


def test_launches_of_a_layer_of_full_size(layers):
    """Its host code decides, nothing is computed, and names are spelled as in compiled code."""
    layer = next(each for each in layers.all_layers() if str(each) == "alexnet.pool1 forward nhwc f32")
    call, tensors = layers.prepare(layer, layers.BATCH, small=False, filled=False)
    assert sum(t.numel() * t.element_size() for t in tensors) == 128 * 96 * (55 * 55 * 4 + 27 * 27 * (4 + 1))
    (launch,) = layers.launches(call)
    assert launch == layers.Launch("max_pool2d_kernel<float, unsigned char, 4, 3>", (128 * 3 * 3, 1, 1), 256, 0)
    traffic = layers.count(layer, launch.kernel)
    assert (traffic.sectors, traffic.bytes) == (1, 1)
    assert traffic.requests > 0


def test_sums_in_pieces():
    """Of 338 tiles on 108 processors 14 are left: in 4 pieces of 14 steps, of 54, which cross the memory bus twice."""
    split = bound.Split(tiles=338, rest=14, pieces=4, piece=14 / 54, bytes=14 * 4 * 128 * 128 * 4, finish=14 * 8)
    assert split.balance(A100) == pytest.approx(338 / 108 / (3 + 14 / 54))
    assert split.microseconds(A100) == pytest.approx(2 * 14 * 4 * 65536 / 2039e3)
    assert replace(split, finish=27).microseconds(A100) == pytest.approx(5 * 14 * 4 * 65536 / 2039e3)
    loop, work = conv_kernel().code.hottest, bound.Work(bytes=0, macs=10**11)
    even, whole = bound.layer_bound(A100, loop, work), bound.layer_bound(A100, loop, work, 338 / 108 / 4)
    cut = bound.layer_bound(A100, loop, work, 338 / 108 / 4, split)
    assert cut.microseconds == pytest.approx(even.microseconds / split.balance(A100) + split.microseconds(A100))
    assert cut.microseconds < whole.microseconds
    assert cut.roofline == pytest.approx(whole.roofline * whole.microseconds / cut.microseconds)


def test_layers_of_other_kernels_are_left_out(layers, monkeypatch):
    """Of one file's kernels only its layers are predicted."""
    some = layers.all_layers()[:1]
    monkeypatch.setattr(layers, "all_layers", lambda: some)
    assert gate.examine_layers({"80": {}}) == {}


def test_a_layer_in_pieces(layers):
    layer = next(each for each in layers.all_layers() if str(each) == "alexnet.conv5 forward nhwc f16")
    call, _ = layers.prepare(layer, layer.batch, small=False, filled=False)
    with layers.setting("FASTCNN_SIMT_PROCESSORS", "108"):
        started = layers.launches(call)
    split = layers.split(layer, started)
    assert (split.tiles, split.rest, split.finish) == (338, 14, 14 * 8)
    assert layers.main(started).blocks == 324 + 14 * split.pieces
    assert split.bytes == 14 * split.pieces * 128 * 128 * 4
    assert layers.fill(layer, layers.main(started)) == 1
    with pytest.raises(RuntimeError, match="blocks are no 338 tiles with 15 of them in pieces"):
        layers.split(layer, [started[-2], replace(started[-1], grid=(8, 15, 1))])
    with layers.setting("FASTCNN_SIMT_PROCESSORS", "132"):
        assert layers.split(layer, layers.launches(call)) is None
    # Five by five taps of 48 channels: 1200 terms in 38 steps of 32.
    layer = next(each for each in layers.all_layers() if str(each) == "alexnet.conv2 forward nhwc f16")
    call, _ = layers.prepare(layer, layer.batch, small=False, filled=False)
    assert layers.fill(layer, layers.main(layers.launches(call))) == pytest.approx(1200 / (38 * 32))


def layer(microseconds: float, sectors=1.0, conflicts=1.0) -> dict[str, gate.LayerResult]:
    work = bound.Work(bytes=1, shared_requests=1, conflicts=conflicts)
    limit = {"A100": bound.Bound(microseconds, "DRAM", 1.0)}
    return {"alexnet.lrn1": gate.LayerResult("alexnet.lrn1", "normalize", 1, 32, 0, work, sectors, 1.0, limit)}


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        (layer(105.3), "alexnet.lrn1: its bound on A100 drops: 100.0 us become 105.3 us"),
        (layer(100, sectors=1.1), "alexnet.lrn1: sectors per ideal sector rise from 1.00 to 1.10"),
        (layer(100, conflicts=2), "alexnet.lrn1: bank conflicts rise from 1.00 to 2.00"),
    ],
)
def test_a_worse_layer_is_refused(worse, says):
    baseline = check.baseline_of(result_of(conv_kernel(), layers=layer(100)))
    assert check.problems(result_of(conv_kernel(), layers=layer(102.9)), baseline) == []
    assert check.problems(result_of(conv_kernel(), layers=worse), baseline) == [says]
    lost = {name.replace("1", "2"): each for name, each in worse.items()}
    found = check.problems(result_of(conv_kernel(), layers=lost), baseline)
    assert found == ["alexnet.lrn1: in the baseline, but not among the layers any more"]


def test_a_warning_is_refused():
    warned = result_of(conv_kernel(), warnings=("conv2d_mma.cu: ptxas warning : setmaxnreg ignored",))
    assert check.problems(warned, {}) == ["compiler warning: conv2d_mma.cu: ptxas warning : setmaxnreg ignored"]


KERNELS = """
extern "C" {
// 200 sums, of which a thread can keep 64 in registers.
__global__ void __launch_bounds__(1024) spill(const float* x, float* y, int n) {
  float sums[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) sums[i] = x[i];
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 200; ++i) sums[i] = sums[i] * x[j] + sums[(i + 1) % 200];
#pragma unroll
  for (int i = 0; i < 200; ++i) y[i * n + threadIdx.x] = sums[i];
}
// An array whose places only the launch knows.
__global__ void local(const float* x, const int* at, float* y) {
  float values[32];
  for (int i = 0; i < 32; ++i) values[at[i] & 31] = x[i];
  y[threadIdx.x] = values[at[threadIdx.x] & 31];
}
__global__ void plain_mma_kernel(const float* a, const float* b, float* y, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i * blockDim.x + threadIdx.x];
  y[threadIdx.x] = sum;
}
__global__ void wide_mma_kernel(const unsigned* a, float* y, int n) {
  float d[8][4] = {};
  const unsigned u = a[threadIdx.x], v = a[threadIdx.x + 32];
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %4, %5}, {%4, %5}, "
                   "{%0, %1, %2, %3};" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3]) : "r"(u), "r"(v));
#pragma unroll
    for (int j = 0; j < IDLE; ++j) d[j % 8][0] = fmaf(d[j % 8][0], 1.5f, 0.25f);
  }
  for (int j = 0; j < 8; ++j) y[threadIdx.x * 8 + j] = d[j][0] + d[j][1] + d[j][2] + d[j][3];
}
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The tables' text of this file's kernels, and a folder with `kernels.cu` and the baseline of its sound state."""
    if toolchain.MISSING:
        pytest.skip(toolchain.MISSING)
    folder = tmp_path_factory.mktemp("static")
    (folder / "kernels.cu").write_text(KERNELS.replace("IDLE", "0"))
    result = gate.examine([folder / "kernels.cu"], ["80"], with_layers=False, cache_dir=folder / "cache")
    return folder, result


def test_faults_of_compiled_kernels(compiled):
    _, result = compiled
    found = "\n".join(check.problems(result, {}))
    for says in (
        r"sm_80 spill: \d+ bytes of spills, 0 in the baseline",
        r"sm_80 spill: \d+ local memory accesses, 0 in the baseline",
        r"sm_80 local: 128 bytes of stack, 0 in the baseline",
        r"sm_80 local: \d+ local memory accesses, 0 in the baseline",
        r"sm_80 plain_mma_kernel: the hottest loop has no HMMA",
        r"sm_80 wide_mma_kernel: the hottest loop has no LDSM",
    ):
        assert re.search(says, found), found
    assert "local: 0 bytes of spills" not in found
    assert "wide_mma_kernel: the hottest loop has no HMMA" not in found


def test_a_bound_of_compiled_code_drops(compiled):
    """The command itself, on a kernel whose loop has grown by instructions beyond what its products' time hides."""
    folder, sound = compiled
    wide = sound.kernels["80"]["wide_mma_kernel"]
    assert wide.code.hottest.mix["HMMA"] == 8
    assert wide.bounds()["A100"] == 1
    baseline = folder / "baseline.json"
    baseline.write_text(json.dumps(check.baseline_of(sound)))
    (folder / "grown.cu").write_text(KERNELS.replace("IDLE", "64"))
    command = [sys.executable, str(ROOT / "bench/gpu_static.py"), str(folder / "grown.cu"), "--check", "--no-layers"]
    done = subprocess.run(
        [*command, "--baseline", str(baseline)], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "refused sm_80 wide_mma_kernel: its loop's bound on A100 drops from 100.0% to" in done.stdout
    assert "Loop bounds: predicted, not timed" in done.stdout


def test_an_unchanged_file_is_compiled_once(compiled, monkeypatch):
    folder, result = compiled
    monkeypatch.setattr(toolchain, "run", lambda *command: pytest.fail(f"ran {command}"))
    again = gate.examine([folder / "kernels.cu"], ["80"], with_layers=False, cache_dir=folder / "cache")
    assert again == result
