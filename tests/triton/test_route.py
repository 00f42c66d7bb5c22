"""Which convolutions of CUDA tensors go to Triton, as tensors without data show it on a machine without a GPU."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastcnn
import fastcnn.functional as F
from fastcnn import _library
from fastcnn._config import config, road
from fastcnn.ops import _triton

pytest.importorskip("triton")
from fastcnn.kernels import register
from fastcnn.kernels.route import route
from fastcnn.kernels.tiles import CANDIDATE, pointwise_candidates
from fastcnn.kernels.tiles_grouped import grouped_candidates

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(not _library.cuda_ops, reason=_library.cuda_missing)]
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def chosen(shape, weight, dtype=F16, last=True, **options):
    """explain's row for a convolution of CUDA tensors."""

    def call(x, w):
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        return F.conv2d(x, w, **options)

    (row,) = fastcnn.explain(call, shape, weight, dtype=dtype, device="cuda").rows
    return row


@pytest.mark.parametrize(
    ("shape", "weight", "options", "kernel"),
    [
        ((2, 64, 9, 7), (32, 64, 1, 1), {}, "pointwise (Triton)"),
        ((2, 64, 9, 7), (32, 64, 1, 1), dict(stride=2, dilation=3), "pointwise (Triton)"),
        ((2, 64, 9, 7), (32, 64, 1, 1), dict(padding=1), "mma (CUDA)"),
        ((2, 64, 9, 7), (32, 64, 3, 3), {}, "mma (CUDA)"),
        ((2, 64, 9, 7), (64, 4, 3, 3), dict(groups=16, padding=1), "grouped (Triton)"),
        ((2, 64, 9, 7), (64, 32, 1, 1), dict(groups=2), "grouped (Triton)"),
        ((2, 64, 9, 7), (64, 1, 3, 3), dict(groups=64, padding=1), "grouped (CUDA)"),
        ((2, 256, 9, 7), (256, 128, 3, 3), dict(groups=2), "mma (CUDA)"),
    ],
)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_geometry(shape, weight, options, kernel, dtype):
    assert chosen(shape, weight, dtype, **options).kernel == kernel


def test_triton_that_cannot_launch_is_left_out(monkeypatch):
    """As without a C compiler, or here without a driver."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        register.unusable.cache_clear()
        with pytest.warns(RuntimeWarning, match="Triton cannot launch: .*; fastcnn's CUDA kernels compute instead"):
            assert _triton.why_not().startswith("Triton cannot launch: ")
    try:
        row = chosen((2, 64, 9, 7), (32, 64, 1, 1))
    finally:
        register.unusable.cache_clear()
    assert row.kernel == "mma (CUDA)"
    assert any("Triton: Triton cannot launch" in other for other in row.considered)


def test_layout_and_type():
    pointwise = functools.partial(chosen, (2, 64, 9, 7), (32, 64, 1, 1))
    assert pointwise(last=False).kernel == "mma (CUDA)"
    assert any("Triton: reads channels_last tensors" in other for other in pointwise(last=False).considered)
    assert pointwise(dtype=F64).kernel == "direct (CUDA)"
    assert "Triton: has no kernel for torch.float64" in pointwise(dtype=F64).considered
    assert pointwise(dtype=F32).kernel == "pointwise (Triton)"


def test_narrow_groups_without_tensor_cores():
    """In exact float32 the zeros between packed groups would be multiplied as slowly as everything else."""
    sizes = ((3, 3), (1, 1), 32, 4, 4)
    assert route(*sizes, F32, True, True)[0] == "grouped"
    assert route(*sizes, F32, True, False)[0] == ""
    assert route((3, 3), (1, 1), 8, 16, 16, F32, True, False)[0] == "grouped"


def test_explain_names_the_tile_and_the_other_kernel():
    row = chosen((32, 256, 56, 56), (64, 256, 1, 1))
    assert row.op == "conv2d"
    assert row.tile == "128 pixels x 64 output channels, 64 input channels a step, persistent, 4 warps, 3 stages"
    assert row.why.endswith("not timed on any GPU")
    assert row.considered == ["mma (CUDA): would run with FASTCNN_TRITON=0"]
    assert row.override.startswith("FASTCNN_TRITON=0 leaves Triton out")


def test_override_and_missing_triton(monkeypatch):
    sizes = (2, 64, 9, 7), (32, 64, 1, 1)
    monkeypatch.setattr(_triton, "missing", lambda: "Triton cannot be imported: No module named 'triton'")
    row = chosen(*sizes)
    assert row.kernel == "mma (CUDA)"
    assert "Triton: Triton cannot be imported: No module named 'triton'" in row.considered
    monkeypatch.setattr(config, "triton", False)
    assert "Triton: FASTCNN_TRITON=0" in chosen(*sizes).considered


def train(x, w, bias=None, **options):
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d_bn_relu(x, w, bias, None, None, None, None, training=True, **options)


def training_rows(*sizes, **options):
    """explain's rows for conv2d_bn_relu in training, of CUDA tensors."""
    return fastcnn.explain(functools.partial(train, **options), *sizes, dtype=F16, device="cuda").rows


def test_training_takes_the_statistics_in_the_epilogue():
    convolution, normalization = training_rows((2, 64, 9, 7), (32, 64, 1, 1), stride=2)
    assert convolution.kernel == "pointwise (Triton)"
    assert convolution.considered == ["mma (CUDA): would run with FASTCNN_TRITON=0"]
    assert normalization.kernel == "normalize_conv2d (CUDA)"
    convolution, _ = training_rows((2, 64, 9, 7), (64, 16, 3, 3), padding=1, groups=4)
    assert convolution.kernel == "grouped (Triton)"
    (row,) = training_rows((2, 64, 9, 7), (32, 64, 3, 3))
    assert row.kernel == "mma, then batch_norm_relu (CUDA)"
    (row,) = training_rows((2, 64, 9, 7), (32, 64, 1, 1), (32,))
    assert f"Triton: {_triton.BIAS}" in row.considered


def test_trainings_gradients_are_tritons():
    with FakeTensorMode():
        x, weight = (torch.empty(size, device="cuda", dtype=F16) for size in ((2, 64, 9, 7), (32, 64, 1, 1)))
        normalization = train(x, weight.requires_grad_()).grad_fn
    (convolution, _), *_ = normalization.next_functions
    assert (normalization.name(), convolution.name()) == (
        "normalize_conv2dBackward",
        "pointwise_conv2d_statsBackward",
    )


def test_normalization_is_folded_into_the_epilogue():
    """In inference the weight is not touched: scale and shift are the kernel's."""
    model = fastcnn.nn.ConvBNReLU2d(64, 32, 1).to(memory_format=torch.channels_last)
    (row,) = fastcnn.explain(model, (2, 64, 9, 7), dtype=F32, device="cuda").rows
    assert row.kernel == "pointwise (Triton)"


def test_wrong_arguments_are_left_to_conv2d():
    """Whose messages say what is wrong as PyTorch's do."""
    with pytest.raises(RuntimeError, match="conv2d: Given groups=1, weight of size"):
        chosen((2, 64, 9, 7), (32, 60, 1, 1))
    x, weight = torch.empty(2, 64, 9, 7, device="meta"), torch.empty(32, 64, 1, 1, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    right = dict(bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, level=1)
    assert _triton.takes(x, weight, **right)
    bias = torch.empty(31, device="meta")
    for wrong in (dict(stride=(0, 1)), dict(dilation=(1, 0)), dict(groups=0), dict(groups=2), dict(bias=bias)):
        assert not _triton.takes(x, weight, **right | wrong)


@pytest.fixture
def fakes():
    with FakeTensorMode():
        yield


def test_policy_fastest_times_other_tiles_and_the_cuda_kernel(fakes):
    from fastcnn.ops._policy import _triton_rivals

    x = torch.empty(2, 64, 9, 7, device="cuda", dtype=F16).contiguous(memory_format=torch.channels_last)
    given = dict(
        input=x, weight=torch.empty(32, 64, 1, 1, device="cuda", dtype=F16), bias=None, stride=1, padding=0,
        dilation=1, groups=1, accuracy=None,
    )  # fmt: skip
    cuda, *tiles = _triton_rivals("conv2d", given)
    assert cuda == _triton.CUDA
    assert len(tiles) > 2
    grouped = given | dict(weight=torch.empty(32, 16, 3, 3, device="cuda", dtype=F16), padding=1, groups=4)
    assert _triton_rivals("conv2d", grouped)[0] == cuda
    assert len(_triton_rivals("conv2d", grouped)) > 3
    assert _triton_rivals("conv2d", given | dict(padding=1)) == []
    assert _triton_rivals("conv2d", given | dict(padding="same")) == [cuda, *tiles]
    assert _triton_rivals("conv2d", grouped | dict(padding="same")) == _triton_rivals("conv2d", grouped)
    assert _triton_rivals("conv2d", given | dict(input=x[0])) == []  # as a batch of one it is not channels_last
    single = given | dict(input=x.float(), weight=given["weight"].float())
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would not, without a GPU; its dtype is float16
    try:
        assert _triton_rivals("conv2d", single) == [cuda, *tiles]
    finally:
        torch.set_autocast_enabled("cuda", False)
    training = given | dict(training=True)
    assert _triton_rivals("conv2d_bn_relu", training) == [cuda, *tiles]
    assert _triton_rivals("conv2d_bn_relu", training | dict(bias=torch.empty(32, device="cuda", dtype=F16))) == []
    assert _triton_rivals("max_pool2d", given) == []


def test_a_verdict_decides_kernel_and_tile(monkeypatch):
    """explain's row while policy "fastest" runs what it has found."""
    call = functools.partial(chosen, (2, 64, 9, 7), (32, 64, 1, 1))
    name = next(iter(pointwise_candidates(126, 64, 32, F16, False, 108)))
    assert call().tile != name.removeprefix(CANDIDATE)
    monkeypatch.setattr(road, "candidate", name)
    assert (call().kernel, call().tile) == ("pointwise (Triton)", name.removeprefix(CANDIDATE))
    grouped = functools.partial(chosen, (2, 64, 9, 7), (64, 16, 3, 3), padding=1, groups=4)
    name = next(iter(grouped_candidates(126, 4, 16, 16, F16, 108)))
    monkeypatch.setattr(road, "candidate", "")
    assert grouped().tile != name.removeprefix(CANDIDATE)
    monkeypatch.setattr(road, "candidate", name)
    assert (grouped().kernel, grouped().tile) == ("grouped (Triton)", name.removeprefix(CANDIDATE))
    monkeypatch.setattr(road, "candidate", _triton.CUDA)
    assert call().kernel == "mma (CUDA)"
    assert "Triton: slower when timed" in call().considered
