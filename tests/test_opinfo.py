"""PyTorch's own samples and malformed calls (OpInfo), through fastcnn.functional: torch's results and error classes."""

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import fastcnn.functional as F
from fastcnn import _config, _library

NAMES = (
    "conv2d", "conv_transpose2d", "max_pool2d", "max_unpool2d", "avg_pool2d", "adaptive_avg_pool2d",
    "local_response_norm",
)  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# Where results differ by more than torch.testing's tolerance for the dtype: rtol, atol, and why.
DIFFERENCES = {
    # Stock's seven passes each round to float16, up to half an ulp of 2**-10; fastcnn rounds once.
    ("local_response_norm", torch.float16): (7 * 2**-11, 1e-5),
    # Stock adds a gradient's up to nine windows in 16 bits: half an ulp of a sum below 8, nine times.
    ("avg_pool2d", torch.float16): (1e-3, 9 * 2**-9),
    ("avg_pool2d", torch.bfloat16): (1.6e-2, 9 * 2**-6),
    # Stock adds overlapping windows in 16 bits: half an ulp of partial sums below 512.
    ("conv_transpose2d", torch.float16): (1e-3, 2**-3),
    ("conv_transpose2d", torch.bfloat16): (1.6e-2, 1),
}
if _library._C.supported_capability() != "avx512":
    # There oneDNN has no halves, and stock adds a gradient's up to nine windows in 16 bits: half an ulp of a sum below
    # 64, nine times.
    DIFFERENCES |= {("conv2d", torch.float16): (1e-3, 9 * 2**-6), ("conv2d", torch.bfloat16): (1.6e-2, 9 * 2**-3)}


def opinfo(name):
    (found,) = [op for op in op_db if op.name == f"nn.functional.{name}" and not op.variant_test_name]
    return found


def laid_out(x, layout):
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        return x
    return x.detach().to(memory_format=layout).requires_grad_(x.requires_grad)


def results(function, sample, layout):
    """The outputs and the gradient of the input, for the gradient of a fixed weighting of the first output."""
    x = laid_out(sample.input, layout)
    out = function(x, *(laid_out(a, layout) for a in sample.args), **sample.kwargs)
    outputs = out if isinstance(out, tuple) else (out,)
    weights = torch.linspace(-1, 1, outputs[0].numel(), dtype=torch.float64).view(outputs[0].shape).to(x.dtype)
    (gradient,) = torch.autograd.grad(outputs[0], x, weights)
    return *outputs, gradient


@pytest.fixture
def some(request):
    """Whether the CUDA kernels compute, thread by thread: then no dtype has all of many samples."""
    return request.config.getoption("--simt")


def compare(name, function, stock, dtype, layout, some=False):
    """Compares the samples; returns how many there were. Max pooling has 1440, the product of a few values of every
    argument: all of them in float32 and contiguous, else every 11th (a prime: no argument is left out)."""
    count = 0
    every = 1 if dtype == torch.float32 and layout is LAYOUTS[0] and not some else 11
    samples = list(opinfo(name).sample_inputs("cpu", dtype, requires_grad=True))
    for sample in samples[:: every if len(samples) > 100 else 1]:
        got, want = results(function, sample, layout), results(stock, sample, layout)
        for mine, theirs in zip(got, want, strict=True):
            rtol, atol = DIFFERENCES.get((name, dtype), (None, None))
            explain = lambda m, sample=sample: f"{m}\n{sample.summary()}"
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True, msg=explain)
        assert got[0].stride() == want[0].stride() or got[0].numel() == 0, sample.summary()
        count += 1
    return count


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", NAMES)
def test_samples(name, dtype, layout, some):
    assert compare(name, getattr(F, name), getattr(torch.nn.functional, name), dtype, layout, some) > 0


@pytest.mark.parametrize("name", NAMES)
def test_malformed_calls(name):
    """The error class and the words that OpInfo demands of PyTorch itself."""
    if opinfo(name).error_inputs_func is None:
        pytest.skip("OpInfo has no malformed calls for it")
    errors = list(opinfo(name).error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(F, name)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.cpu
@pytest.mark.parametrize("name", NAMES)
def test_stock_composition(name):
    """What runs with FASTCNN_DISABLE is the same function."""
    with _config.disabled():
        assert compare(name, getattr(F, name), getattr(torch.nn.functional, name), torch.float32, LAYOUTS[0]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_result_is_seen(name, some):
    """The comparison itself, with one output element off."""

    def wrong(*args, **kwargs):
        out = getattr(F, name)(*args, **kwargs)
        first = (out[0] if isinstance(out, tuple) else out).clone()
        first.flatten()[-1:] += 1
        return (first, *out[1:]) if isinstance(out, tuple) else first

    with pytest.raises(AssertionError):
        compare(name, wrong, getattr(torch.nn.functional, name), torch.float32, LAYOUTS[0], some)
