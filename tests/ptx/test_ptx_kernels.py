"""CUDA kernels compiled by nvcc and run from their PTX, against numpy and torch."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ptx import NVCC, Memory, Module, compile_cuda

KERNELS = Path(__file__).parent / "kernels"
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tiles():
    return Module(compile_cuda(KERNELS / "tiles.cu"))


@pytest.fixture(scope="module")
def numbers():
    return Module(compile_cuda(KERNELS / "numbers.cu"))


@pytest.fixture(scope="module")
def gemm():
    return Module(compile_cuda(KERNELS / "gemm.cu"))


def normal(*shape, dtype=np.float32):
    return RANDOM.standard_normal(shape).astype(dtype)


def poison(*shape, dtype=np.float32):
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0x55, dtype)


def ulps(actual: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance from float64 results, in units of the last place."""
    with np.errstate(all="ignore"):
        nearest = wanted.astype(actual.dtype)
        same = (actual == nearest) | (np.isnan(actual) & np.isnan(nearest))
        distance = np.abs(actual.astype(np.float64) - wanted) / np.spacing(np.abs(nearest))
    return float(np.max(np.where(same, 0, distance)))


def elementwise(module, name, outputs, *inputs):
    """Launches name(inputs..., outputs..., n) on one thread per element of the first input."""
    memory, n = Memory(), len(inputs[0])
    addresses = [memory.add(array) for array in (*inputs, *outputs)]
    module.launch(name, (-(-n // 64),), (64,), [*addresses, n], memory)
    return [memory.read(address) for address in addresses[len(inputs) :]]


@pytest.mark.parametrize("n", [1, 31, 257, 1000])
def test_vector_add(tiles, n):
    a, b = normal(n), normal(n)
    (total,) = elementwise(tiles, "vector_add", [poison(n)], a, b)
    np.testing.assert_array_equal(total, a + b)


def test_executed_instructions_are_counted(tiles):
    memory = Memory()
    addresses = [memory.add(normal(64)) for _ in range(3)]
    per_thread = len(tiles.program.functions["vector_add"].instructions) - 1  # the implied ret is never reached
    assert tiles.launch("vector_add", (1,), (64,), [*addresses, 64], memory) == 64 * per_thread


def conv3x3(module, fault, x, weight):
    """Runs the kernel with one planted fault, or 0 for none; a guard gap follows the image."""
    (channels, height, width), out = x.shape, len(weight)
    memory = Memory()
    addresses = [memory.add(x), memory.add(weight), memory.add(poison(out, height, width))]
    grid = (-(-width // 16), -(-height // 8), out // 2)
    module.launch(f"conv3x3IL5Fault{fault}E", grid, (16, 8), [*addresses, channels, height, width], memory)
    return memory.read(addresses[2])


@pytest.mark.parametrize(("channels", "height", "width", "out"), [(1, 1, 1, 2), (3, 8, 16, 2), (5, 23, 37, 4)])
def test_tiled_convolution(tiles, channels, height, width, out):
    x, weight = normal(channels, height, width), normal(out, channels, 3, 3)
    wanted = torch.conv2d(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), padding=1)
    # float32 sums of 9 * channels products
    np.testing.assert_allclose(conv3x3(tiles, 0, x, weight), wanted, rtol=0, atol=9 * channels * 2**-21)


def block_sum(module, fault, n, threads=256):
    memory, x = Memory(), np.arange(n, dtype=np.float32) % 17  # sums of small whole numbers are exact
    addresses = [memory.add(x), memory.add(poison(5))]
    module.launch(f"block_sumIL5Fault{fault}E", (5,), (threads,), [*addresses, n], memory)
    return memory.read(addresses[1]).sum(), x.sum()


@pytest.mark.parametrize(("n", "threads"), [(1, 32), (1000, 64), (10007, 256)])
def test_reduction_by_shuffles(tiles, n, threads):
    actual, wanted = block_sum(tiles, 0, n, threads)
    assert actual == wanted


def swap_neighbours(module, fault, dynamic=256):
    memory, x = Memory(), normal(64)
    addresses = [memory.add(x), memory.add(poison(64))]
    module.launch(f"swap_neighboursIL5Fault{fault}E", (1,), (64,), addresses, memory, dynamic_shared=dynamic)
    return memory.read(addresses[1]), x.reshape(32, 2)[:, ::-1].ravel()


def test_exchange_within_warps(tiles):
    np.testing.assert_array_equal(*swap_neighbours(tiles, 0))


def to_bf16(x):
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy()


def from_bf16(bits):
    return torch.from_numpy(bits.astype(np.int16)).view(torch.bfloat16).float().numpy()


def to_tf32(x):
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


GEMM_TYPES = {
    "6__half": (lambda x: x.astype(np.float16), lambda x: x),
    "13__nv_bfloat16": (to_bf16, from_bf16),
    "f": (lambda x: x, to_tf32),
}


def run_gemm(module, kind, fault, m, n, k):
    narrow, widen = GEMM_TYPES[kind]
    a, b = narrow(normal(m, k)), narrow(normal(k, n))
    memory = Memory()
    addresses = [memory.add(a), memory.add(b), memory.add(poison(m, n))]
    grid = (-(-n // 16), -(-m // 32))
    module.launch(f"gemmI{kind}L5Fault{fault}E", grid, (128,), [*addresses, m, n, k], memory)
    return memory.read(addresses[2]), widen(a).astype(np.float64) @ widen(b).astype(np.float64)


@pytest.mark.parametrize(("m", "n", "k"), [(32, 16, 16), (70, 40, 88), (1, 8, 8)])
@pytest.mark.parametrize("kind", GEMM_TYPES)
def test_tensor_core_gemm(gemm, kind, m, n, k):
    # Each step rounds its sum to float32 once.
    np.testing.assert_allclose(*run_gemm(gemm, kind, 0, m, n, k), rtol=0, atol=k * 2**-22)


def test_struct_parameter_and_module_variables(numbers):
    x, n, shift = normal(100), 100, (3, -(1 << 40), 5)
    memory = Memory()
    y = memory.add(poison(n))
    params = struct.pack("<QQifqqq", memory.add(x), y, n, 1.5, *shift)
    numbers.launch("struct_params", (2,), (64,), [params], memory)
    index = np.arange(n)
    table = np.array([1, -2, 0.5, 4, 1e-3], np.float32)[index % 5]
    offsets = np.array([7, -5000000000, 11])[index % 3].astype(np.float32)
    wanted = (table.astype(np.float64) * x + 1.5).astype(np.float32)  # one fma
    wanted = wanted + np.array(shift)[index % 3].astype(np.float32) + offsets
    np.testing.assert_array_equal(memory.read(y), wanted)


def test_powf(numbers):
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0, -2.0, 0.5, 1e-40, 3e38, -3.0, 3.0]
    x, e = (np.array(each, np.float32) for each in zip(*itertools.product(special, special)))
    x, e = np.concatenate([x, np.exp(normal(200))]), np.concatenate([e, normal(200) * 5])
    (y,) = elementwise(numbers, "power", [poison(len(x))], x, e)
    with np.errstate(all="ignore"):
        # CUDA documents 4 ulp.
        assert ulps(y, np.power(x.astype(np.float64), e.astype(np.float64))) <= 4


def test_float_functions(numbers):
    x = np.concatenate([normal(200) * 3, [0.0, -0.0, 1e-40, 88.0, -100.0, 1e6, 123456.7, np.inf, np.nan]])
    x = x.astype(np.float32)
    (y,) = elementwise(numbers, "functions", [poison(10, len(x))], x)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exact = [np.exp(wide), np.log(wide), np.sin(wide), 1 / wide, np.sqrt(np.abs(wide)), np.tanh(wide)]
        exact += [1 / np.sqrt(wide), wide**0.75, torch.erf(torch.from_numpy(wide)).numpy(), wide / 3]
    # The limits that the CUDA programming guide states; __powf has only a bound on its exponent's error.
    for row, (wanted, limit) in enumerate(zip(exact, [2, 1, 2, 0, 0, 2, 2, None, 2, 2])):
        if limit is None:
            np.testing.assert_allclose(y[row], wanted, rtol=2**-17, atol=1e-37)
        else:
            assert ulps(y[row], wanted) <= limit, row


def test_double_functions(numbers):
    x = np.concatenate([normal(100, dtype=np.float64) * 3, [0.0, 1e-310, 1e300, -700.0, 709.0, np.inf, np.nan]])
    (y,) = elementwise(numbers, "double_functions", [poison(8, len(x), dtype=np.float64)], x)
    with np.errstate(all="ignore"):
        wide = torch.from_numpy(x)
        exact = [x / (x + 3), np.exp(x), np.log(x), np.abs(x) ** 0.75, np.sqrt(x), torch.sin(wide * 1e6).numpy()]
        exact += [(x.astype(np.longdouble) ** 2 - 2).astype(np.float64), np.tanh(x)]
    for row, (wanted, limit) in enumerate(zip(exact, [0, 1, 1, 2, 0, 2, 1, 2])):
        # numpy's own functions may err by one more
        assert ulps(y[row], wanted) <= (limit + 1 if limit else 0), row


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("i", np.int32), ("j", np.uint32), ("l", np.int64), ("m", np.uint64), ("a", np.int8), ("t", np.uint16)],
)
def test_integer_division(numbers, name, dtype):
    limits = np.iinfo(dtype)
    edges = [limits.min, limits.max, limits.max - 1, 1, 2, 7, 100, max(limits.min, -1), max(limits.min, -100)]
    a, b = (np.array(each, dtype) for each in zip(*itertools.product([*edges, 0], edges)))
    a = np.concatenate([a, RANDOM.integers(limits.min, limits.max, 300, dtype)])
    b = np.concatenate([b, RANDOM.integers(1, 1 + limits.max // 3, 300, dtype)])
    b[b == 0] = 3
    (q,) = elementwise(numbers, f"quotientsI{name}E", [poison(4, len(a), dtype=dtype)], a, b)

    def truncated(x, y):
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    rows = [[], [], [], []]
    for x, y in zip(a.tolist(), b.tolist()):
        for row, (top, bottom) in enumerate([(x, y), (x, y), (x, 7), (x, np.array(1000).astype(dtype).item())]):
            quotient = truncated(top, bottom)
            rows[row].append(top - quotient * bottom if row % 2 else quotient)
    mask = (1 << 8 * q.itemsize) - 1
    wanted = np.array([[value & mask for value in row] for row in rows], f"u{q.itemsize}").view(dtype)
    np.testing.assert_array_equal(q, wanted)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_arithmetic(numbers, kind):
    dtype = getattr(torch, kind)
    values = torch.cat([torch.randn(3, 400), torch.randn(3, 100) * 1e-4, torch.randn(3, 100) * 300], 1).to(dtype)
    values[0, :4] = torch.tensor([float("nan"), 0.0, -0.0, float("inf")])
    values[1, :4] = torch.tensor([1.0, -0.0, 0.0, float("-inf")])
    a, b, c = values
    n = len(a)
    bits = [each.view(torch.int16).numpy() for each in values]
    name = {"float16": "half_arithmeticI6__half", "bfloat16": "half_arithmeticI13__nv_bfloat16"}[kind]
    (y,) = elementwise(numbers, name, [poison(13, n, dtype=np.int16)], *bits)
    y = torch.from_numpy(y).view(dtype)
    x, z, w = a.double(), b.double(), c.double()  # float64 holds what one operation gives, so that it rounds once
    wanted = [x + z, x - z, x * z, x * z + w, torch.fmax(a, b), torch.minimum(a, b)]
    wanted += [a.float() * torch.tensor(1.1), torch.where(a < b, c, -c), None, x + z, x * z, x * z + w]
    wanted += [torch.fmax(a, b)]
    for row, each in enumerate(wanted):
        if each is not None:
            torch.testing.assert_close(y[row], each.to(dtype), rtol=0, atol=0, equal_nan=True, msg=f"row {row}")
    # __hdiv multiplies by an approximate reciprocal
    torch.testing.assert_close(
        y[8].float(), (a.float() / b.float()).to(dtype).float(), rtol=2**-7, atol=1e-6, equal_nan=True
    )


def test_conversions(numbers):
    x = np.array([0, 1.5, -1.5, 254.9, -128.7, 3e9, -3e9, 1e12, 0.49999997], np.float32)
    n = len(x)
    outputs = [poison(n, dtype=t) for t in (np.uint8, np.int64, np.float64, np.float32)]
    as_u8, as_s64, as_f64, back = elementwise(numbers, "conversions", outputs, x)
    whole = np.trunc(x.astype(np.float64))
    low = np.clip(whole, -(2**31), 2**31 - 1).astype(np.int64).astype(np.uint8)
    np.testing.assert_array_equal(as_u8, low)
    np.testing.assert_array_equal(as_s64, whole.astype(np.int64))
    np.testing.assert_array_equal(as_f64, x)
    product = (whole.astype(np.int64) * 1000003).astype(np.float32)
    np.testing.assert_array_equal(back, product + low.view(np.int8).astype(np.float32))


def test_call_with_a_pointer_to_local_memory(numbers):
    x = normal(100)
    (y,) = elementwise(numbers, "polynomial", [poison(100)], x)
    wanted = []
    for i, value in enumerate(x.tolist()):
        coefficients = [1, 2, -3, 0.5]
        coefficients[i % 4] = 0.25
        wanted.append(sum(c * value**power for power, c in enumerate(coefficients[: 2 + i % 3])))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)


def test_a_function_called_is_in_the_ptx():
    """Otherwise the test above shows nothing about calls and local memory."""
    text = compile_cuda(KERNELS / "numbers.cu")
    body = text[text.index(".entry polynomial") :]
    assert "call.uni" in body
    assert "st.local" in body
