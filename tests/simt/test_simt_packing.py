"""What a convolution on CUDA does about its weight: nothing, where it lies in memory as the kernel reads it."""

import pytest
import torch

from bench.static.layers import launches
from tests.simt import library

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
GEOMETRY = [1, 1, 1, 1, 1, 1]


def image(dtype):
    x = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).to(memory_format=torch.channels_last)


def convolution(weight, groups=1):
    ops, x = library.load(), image(weight.dtype)
    return lambda: ops._conv2d(x, weight, None, None, None, [*GEOMETRY, groups, 0], False, 1)


def weight(dtype, *size, memory_format=torch.channels_last):
    w = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    return w.to(memory_format=memory_format)


def packs(call) -> int:
    return sum("pack_kernel" in launch.kernel for launch in launches(call))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_channels_last_weight_of_16_bits_is_read_as_it_is(dtype, groups):
    last = weight(dtype, 32, 16 // groups, 3, 3)
    plain = last.contiguous()
    assert (packs(convolution(last, groups)), packs(convolution(plain, groups))) == (0, 1)
    assert torch.equal(convolution(last, groups)(), convolution(plain, groups)())


def test_others_are_packed():
    """Other types, other strides, and an address that copies of 16 bytes cannot start from."""
    within = weight(torch.float16, 24, 32, 3, 3)[:, :16]
    moved = torch.empty(24 * 16 * 9 + 1, dtype=torch.float16)[1:].view(24, 3, 3, 16).permute(0, 3, 1, 2)
    moved.copy_(within)
    for w in (weight(torch.float32, 24, 16, 3, 3), within, moved):
        assert packs(convolution(w)) == 1
        want = torch.nn.functional.conv2d(image(w.dtype).double(), w.double(), padding=1)
        torch.testing.assert_close(convolution(w)().double(), want, rtol=2e-3, atol=2e-2)


def test_a_write_is_seen():
    """Nothing is kept from one call to the next."""
    w = torch.nn.Parameter(weight(torch.float16, 24, 16, 3, 3))
    with torch.no_grad():
        before = convolution(w)()
        w.data.mul_(2)
        assert torch.equal(convolution(w)(), before * 2)
