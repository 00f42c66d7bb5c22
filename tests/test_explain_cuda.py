"""explain for CUDA tensors: the kernel that the launch's own choice names, on a machine without a GPU."""

import functools

import pytest
import torch

import fastcnn
import fastcnn.functional as F
import fastcnn.models
from fastcnn import _library

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not _library.cuda_ops, reason=_library.cuda_missing),
]
H, B = torch.float16, torch.bfloat16
GEOMETRY = (1, 1, 1, 1, 1, 1)  # stride, padding, dilation of a 3x3 convolution


def chosen(x, weight, geometry, dtype=torch.float32, last=False, transposed=False, tf32=False) -> dict:
    kind = dtype.itemsize, dtype == torch.float64, dtype == torch.bfloat16
    return _library._C.explain_cuda_conv2d(x, weight, geometry, *kind, last, transposed, tf32)


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = request.param
    yield request.param
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "dtype"),
    [(24, 1, torch.float32), (24, 1, H), (24, 1, B), (24, 1, torch.float64), (12, 1, H), (16, 16, B), (2, 1, H)],
)
def test_explain_names_the_kernel_of_the_launchs_choice(channels, groups, dtype, last, precision):
    x, weight = (2, channels, 13, 11), (channels * 2 if groups == 1 else channels, channels // groups, 3, 3)

    def call(x, w):
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        return F.conv2d(x, w, padding=1, groups=groups)

    (row,) = fastcnn.explain(call, x, weight, dtype=dtype, device="cuda").rows
    want = chosen(x, weight, (*GEOMETRY, groups), dtype, last, tf32=precision == "tf32" and dtype is torch.float32)
    assert row.kernel == f"{want['kernel']} (CUDA)"
    assert row.tile == want["tile"]
    assert row.why.startswith(want["why"])
    assert row.why.endswith("not timed on any GPU") == (not want["copies"])


def test_kernels_are_told_apart():
    """What the choice depends on reaches it: type, layout, groups, channels."""
    dense, depthwise = (
        ((2, 64, 14, 14), (64, 64, 3, 3), (*GEOMETRY, 1)),
        ((2, 64, 14, 14), (64, 1, 3, 3), (*GEOMETRY, 64)),
    )
    assert chosen(*dense, H, last=True)["kernel"] == "mma"
    assert chosen(*dense, torch.float64)["kernel"] == "direct"
    assert chosen(*depthwise, H, last=True)["kernel"] == "grouped"
    assert chosen(*dense, H)["copies"]
    assert not chosen(*dense, H, last=True)["copies"]
    assert ("grouped", "of channels_last tensors") in chosen(*depthwise)["others"]
    assert ("mma", "in float16 and bfloat16") in chosen(*dense, torch.float64)["others"]


def test_tiles_follow_the_sizes():
    large, small = (chosen((n, 256, 28, 28), (256, 256, 3, 3), (*GEOMETRY, 1), H, last=True)["tile"] for n in (128, 1))
    assert large == "128 pixels x 128 output channels"
    assert small != large


def test_transposed():
    """The choice is made for the convolution that computes it: channels swapped, the output's size."""
    call = functools.partial(F.conv_transpose2d, stride=2, padding=1)
    (row,) = fastcnn.explain(call, (2, 64, 7, 7), (64, 32, 3, 3), dtype=H, device="cuda").rows
    want = chosen((2, 32, 13, 13), (64, 32, 3, 3), (2, 2, 1, 1, 1, 1, 1), H, transposed=True)
    assert (row.op, row.kernel, row.tile) == ("conv_transpose2d", f"{want['kernel']} (CUDA)", want["tile"])
    both = functools.partial(F.conv_transpose2d, stride=2, dilation=2)
    (row,) = fastcnn.explain(both, (2, 64, 7, 7), (64, 32, 3, 3), dtype=H, device="cuda").rows
    assert row.kernel == "direct (CUDA)"


def test_an_empty_output_starts_nothing():
    (row,) = fastcnn.explain(F.conv2d, (0, 8, 9, 9), (8, 8, 3, 3), device="cuda").rows
    assert (row.kernel, row.why) == ("none", "the output is empty: nothing is launched")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model would be copied to the GPU")
def test_a_model_on_the_cpu_is_explained_for_cuda():
    """Each row has its layer's name, and the model is left as it was."""
    model = fastcnn.models.get_model("alexnet").train()
    before = dict(model.state_dict(keep_vars=True))
    rows = fastcnn.explain(model, (1, 3, 227, 227), device="cuda").rows
    names = [(row.where, row.op) for row in rows]
    assert [op for _, op in names].count("conv2d") == 5
    assert ("conv2", "conv2d") in [(where.rpartition(".")[2], op) for where, op in names]
    assert all(row.kernel.endswith("(CUDA)") for row in rows)
    assert model.training
    assert all(t is before[name] for name, t in model.state_dict(keep_vars=True).items())


def test_what_has_no_kernel_says_why(monkeypatch):
    monkeypatch.setattr(_library, "cuda_ops", frozenset())
    monkeypatch.setattr(_library, "cuda_missing", "fastcnn was built without nvcc")
    (row,) = fastcnn.explain(fastcnn.nn.Conv2d(8, 16, 3), (1, 8, 9, 9), device="cuda").rows
    assert row.kernel == "stock PyTorch (ATen)"
    assert row.why == "fastcnn has no CUDA kernels here: fastcnn was built without nvcc"
