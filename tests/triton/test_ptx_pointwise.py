"""1x1 convolution's kernels as Triton compiles them for sm_80: their PTX, run with every access checked."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from fastcnn.kernels import pointwise_forward as pointwise
from fastcnn.kernels.tiles import PointwiseTile

from tests.triton.from_ptx import from_ptx

pytestmark = pytest.mark.cpu
# Two steps of 32 input channels in two stages, so that copies are under way while a tile is multiplied.
TILE = PointwiseTile(pixels=32, outputs=32, inputs=32, group=2, split=1, persistent=False, warps=4, stages=2)
KINDS = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)]
NAMES = ["bf16", "f16", "tf32", "f32"]


def tensor(*size: int, dtype=torch.float32) -> torch.Tensor:
    made = torch.randn(size).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if len(size) == 4 else made


def reference(x, weight, scale=None, shift=None, residual=None, pre_scale=None, pre_shift=None, stride=(1, 1), relu=0):
    """In float64; of the prologue what the kernel multiplies, which has x's type."""
    x, weight = x.double(), weight.double()
    if pre_scale is not None:
        before = x * pre_scale.double().view(-1, 1, 1) + pre_shift.double().view(-1, 1, 1)
        x = before.relu()
    y = torch.nn.functional.conv2d(x, weight, stride=stride)
    y = y if scale is None else y * scale.double().view(-1, 1, 1)
    y = y if shift is None else y + shift.double().view(-1, 1, 1)
    y = y if residual is None else y + residual.double()
    return y.relu() if relu else y


def bound(x, weight, tf32: bool, **epilogue) -> torch.Tensor:
    """Sums of C products in float32, each off by half an ulp of the largest partial sum, which sum |x||w| is not less
    than; TF32 takes operands to 10 bits by truncation: 2^-9 of each product for the two. One rounding to the output's
    type, and of the prologue's result to x's, at the end."""
    magnitude = reference(
        x.abs(), weight.abs(), **{k: v.abs() if torch.is_tensor(v) else v for k, v in epilogue.items()}
    )
    rounded = 2.0**-9 if tf32 else 0.0
    stored = 1.0 if epilogue.get("pre_scale") is not None else 0.5
    return magnitude * (x.shape[1] * 2.0**-24 + rounded + (1 + stored) * torch.finfo(x.dtype).eps) + 1e-6


def compute(x, weight, tile=TILE, tf32=False, out=None, processors=108, **arguments):
    """What the PTX leaves of an output of NaN, the moments, and the launches."""
    y = pointwise.empty_output(x, weight, arguments.get("stride", (1, 1))) if out is None else out
    y.fill_(torch.nan)
    with from_ptx(processors) as launches:
        moments = pointwise.launch(x, weight, y, tf32=tf32, tile=tile, **arguments)
    return y, moments, launches


def assert_right(y, x, weight, tf32=False, **arguments):
    allowed = bound(x, weight, tf32, **arguments)
    error = (y.double() - reference(x, weight, **arguments)).abs()
    assert (error <= allowed).all(), f"another value, off by {(error / allowed).max():.2g} of what rounding explains"


@pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=NAMES)
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "size"),
    [(1, 64, 32, (8, 4)), (2, 61, 37, (5, 7)), (1, 1, 1, (1, 1)), (1, 16, 40, (3, 11))],
)
def test_sizes(dtype, tf32, batch, inputs, outputs, size):
    """Whole tiles, primes, one, and none of all but one."""
    x, weight = tensor(batch, inputs, *size, dtype=dtype), tensor(outputs, inputs, 1, 1, dtype=dtype)
    y, _, (launch,) = compute(x, weight, tf32=tf32)
    assert_right(y, x, weight, tf32)
    assert launch.kernel.__name__ == "pointwise_kernel"


@pytest.mark.parametrize(("dtype", "tf32"), KINDS, ids=NAMES)
def test_every_part_of_the_epilogue(dtype, tf32):
    """With a stride, which leaves out the last row and column."""
    x, weight = tensor(1, 24, 6, 8, dtype=dtype), tensor(19, 24, 1, 1, dtype=dtype)
    arguments = dict(
        scale=tensor(19), shift=tensor(19), residual=tensor(1, 19, 3, 4, dtype=dtype), pre_scale=tensor(24),
        pre_shift=tensor(24), stride=(2, 2), relu=True,
    )  # fmt: skip
    y, _, _ = compute(x, weight, tf32=tf32, **arguments)
    assert_right(y, x, weight, tf32, **arguments)


def test_the_sum_of_a_split():
    """In 16 steps of 16 channels among four programs; a second launch adds theirs and finishes."""
    x, weight = tensor(1, 250, 3, 5, dtype=torch.bfloat16), tensor(17, 250, 1, 1, dtype=torch.bfloat16)
    arguments = dict(shift=tensor(17), relu=True)
    tile = PointwiseTile(16, 16, 16, 2, split=4, persistent=False, warps=1, stages=3)
    y, _, launches = compute(x, weight, tile, **arguments)
    assert [launch.kernel.__name__ for launch in launches] == ["pointwise_kernel", "pointwise_reduce_kernel"]
    assert launches[0].grid == (8,)
    assert_right(y, x, weight, **arguments)


def test_programs_that_take_tile_after_tile():
    x, weight = tensor(1, 32, 9, 11, dtype=torch.float16), tensor(40, 32, 1, 1, dtype=torch.float16)
    tile = PointwiseTile(16, 16, 32, 2, split=1, persistent=True, warps=1, stages=2)
    y, _, (launch,) = compute(x, weight, tile, processors=2)
    assert launch.grid == (4,)  # of 21 tiles
    assert_right(y, x, weight)


@pytest.mark.parametrize("split", [1, 2])
def test_statistics(split):
    """Of the values as stored; the last tile has 3 pixels of 16."""
    x, weight = tensor(1, 64, 5, 7, dtype=torch.bfloat16), tensor(20, 64, 1, 1, dtype=torch.bfloat16)
    tile = PointwiseTile(16, 16, 16, 2, split=split, persistent=False, warps=1, stages=2)
    y, (mean, variance), launches = compute(x, weight, tile, shift=tensor(20) + 5, stats=True)
    assert launches[-1].kernel.__name__ == "merge_moments_kernel"
    wanted, about = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), about, rtol=4e-7, atol=1e-6)  # some roundings of float32
    torch.testing.assert_close(variance.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_slice_of_wider_tensors():
    """x, y and the residual lie in tensors of more channels: those beside them stay as they are."""
    wide = tensor(2, 60, 3, 5, dtype=torch.float16)
    into, added = tensor(2, 50, 3, 5, dtype=torch.float16), tensor(2, 48, 3, 5, dtype=torch.float16)
    before, weight = into.clone(), tensor(21, 33, 1, 1, dtype=torch.float16)
    x, residual = wide[:, 7:40], added[:, 8:29]
    y, _, _ = compute(x, weight, out=into[:, 11:32], residual=residual)
    assert_right(y, x, weight, residual=residual)
    assert into[:, :11].equal(before[:, :11])
    assert into[:, 32:].equal(before[:, 32:])


def test_offsets_of_64_bits():
    """The kernel that tensors of more than 2^31 elements take, on a small one."""
    x, weight = tensor(1, 20, 5, 5, dtype=torch.bfloat16), tensor(18, 20, 1, 1, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise, "needs_int64", lambda *tensors: True)
        y, _, (launch,) = compute(x, weight)
    assert launch.arguments["WIDE"] is True
    assert_right(y, x, weight)
