"""What CUDA tensors run, as far as tensors without data can show it on a machine without a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastcnn
import fastcnn.functional as F
from fastcnn import _explain, _library
from fastcnn.nn.conv_bn import conv_bn_relu
from fastcnn.ops import _face

built = pytest.mark.skipif(not _library.cuda_ops, reason=_library.cuda_missing)


def rows(call, *sizes, **options):
    """explain's rows for a call on CUDA tensors of these sizes."""
    with FakeTensorMode(), _explain._Recorder(None) as recorder:
        y = call(*(torch.empty(size, device="cuda", **options) for size in sizes))
    assert y.device.type == "cuda"
    return recorder.rows


@built
@pytest.mark.parametrize(
    ("op", "call", "sizes"),
    [
        ("max_pool2d", lambda x: F.max_pool2d(x, 3, 2), [(2, 8, 13, 13)]),
        ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2), [(2, 8, 13, 13)]),
        ("local_response_norm", lambda x: F.local_response_norm(x, 5), [(2, 8, 13, 13)]),
        ("lrn_max_pool2d", lambda x: F.lrn_max_pool2d(x, 5), [(2, 8, 13, 13)]),
        ("conv2d", lambda x, w: F.conv2d(x, w, padding=1), [(2, 8, 13, 13), (16, 8, 3, 3)]),
    ],
)
def test_cuda_tensors_take_the_cuda_kernels(op, call, sizes):
    kernel = {"conv2d": "mma"}.get(op, op)  # torch's default lets convolutions round to TF32
    assert [(row.op, row.kernel) for row in rows(call, *sizes)] == [(op, f"{kernel} (CUDA)")]


@built
@pytest.mark.parametrize(("training", "op"), [(True, "conv2d_bn_relu"), (False, "conv2d")])
def test_convolution_with_normalization(training, op):
    """In inference folded into the convolution. The modules and the models' function call the same ops."""

    def call(x):
        m = fastcnn.nn.ConvBNReLU2d(8, 16, 3, device="cuda").train(training)
        y = m(x)
        return conv_bn_relu(torch.nn.Conv2d(16, 16, 1, device="cuda"), m.bn, y, residual=y)

    found = rows(call, (2, 8, 13, 13))
    assert [row.op for row in found] == [op, op]
    assert not any("stock" in row.kernel for row in found)


def test_without_a_kernel_pytorch_computes_and_explain_says_why(monkeypatch):
    monkeypatch.setattr(_library, "cuda_ops", frozenset())
    monkeypatch.setattr(_library, "cuda_missing", "fastcnn was built without nvcc")
    (row,) = rows(lambda x: F.max_pool2d(x, 3, 2), (2, 8, 13, 13))
    assert row.kernel == "stock PyTorch (ATen)"
    assert row.why == "fastcnn has no CUDA kernels here: fastcnn was built without nvcc"


@built
def test_other_types_are_pytorchs():
    (row,) = rows(lambda x: F.max_pool2d(x, 3, 2), (2, 8, 13, 13), dtype=torch.int8)
    assert row.kernel == "stock PyTorch (ATen)"


@built
def test_tensors_on_two_devices_are_refused():
    with FakeTensorMode():
        x, w = torch.empty(1, 8, 9, 9, device="cuda"), torch.empty(8, 8, 3, 3)
        with pytest.raises(RuntimeError, match="conv2d: expected all tensors on one device, but got input on cuda"):
            F.conv2d(x, w)


@pytest.fixture
def autocast():
    """torch.autocast("cuda") without a GPU switches itself off."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


@built
def test_autocast(autocast):
    with FakeTensorMode():
        x, w = torch.empty(1, 8, 9, 9, device="cuda"), torch.empty(8, 8, 3, 3, device="cuda")
        assert F.conv2d(x, w).dtype == torch.bfloat16
        assert torch.ops.fastcnn.conv2d(x, w, None, None, (1, 1), (0, 0), (1, 1), 1, False, 1).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_on_a_gpu(layout):
    x = torch.randn(2, 16, 19, 17).to(memory_format=layout)
    w = torch.randn(32, 16, 3, 3)
    for call in (
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda x, w: F.lrn_max_pool2d(x, 5),
        lambda x, w: F.max_pool2d(x, 3, 2),
    ):
        torch.testing.assert_close(call(x.cuda(), w.cuda()).cpu(), call(x, w), rtol=1e-4, atol=1e-4)
    assert _face.native(x.cuda(), "conv2d")
