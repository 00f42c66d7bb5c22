"""Malformed calls of conv_transpose2d and local_conv2d: each has its error, and nothing crashes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn.functional as F

X, W, B = torch.ones(1, 4, 8, 8), torch.ones(4, 3, 3, 3), torch.ones(3)
POINT, META = torch.ones(1, 1, 1, 1), X.to("meta")
FLOAT8 = torch.float8_e4m3fn
ONE, ZERO = (1, 1), (0, 0)
TRANSPOSED = (ONE, ZERO, ZERO, ONE, 1)  # stride, padding, output_padding, dilation, groups
LARGE = 2**30
L, LB = torch.ones(6, 6, 2, 4, 3, 3), torch.ones(2, 6, 6)  # of local_conv2d(X, L, LB)
LY = torch.ones(1, 2, 6, 6)
LOCAL = (ONE, ZERO, ONE)  # stride, padding, dilation
o = torch.ops.fastcnn

# Id, call, what the message must match, and the class where it is not RuntimeError.
CALLS = [
    ("input-2d", lambda: F.conv_transpose2d(X[0, 0], W), "Expected 3D .* or 4D .* input"),
    ("weight-3d", lambda: F.conv_transpose2d(X, W[0]), "4D weight"),
    ("weight-none", lambda: F.conv_transpose2d(X, None), "weight to be a Tensor", TypeError),
    ("weight-meta", lambda: F.conv_transpose2d(X, W.to("meta")), "weight on meta"),
    ("bias-list", lambda: F.conv_transpose2d(X, W, [1.0]), "bias to be a Tensor", TypeError),
    ("bias-meta", lambda: F.conv_transpose2d(X, W, B.to("meta")), "bias on meta"),
    ("bias-size", lambda: F.conv_transpose2d(X, W, torch.ones(4)), "bias to be 1-dimensional with 3 elements"),
    ("bias-2d", lambda: F.conv_transpose2d(X, W, B[None]), "bias to be 1-dimensional"),
    ("bias-dtype", lambda: F.conv_transpose2d(X, W, B.double()), "bias type"),
    ("weight-dtype", lambda: F.conv_transpose2d(X, W.double()), "weight type"),
    ("channels", lambda: F.conv_transpose2d(X[:, :3], W), "to have 4 channels, but got 3 channels"),
    ("no-channels", lambda: F.conv_transpose2d(X[:, :0], W[:0]), "weight to be at least 1 at dimension 0"),
    ("no-outputs", lambda: F.conv_transpose2d(X, W[:, :0]), "non-empty weight"),
    ("zero-kernel", lambda: F.conv_transpose2d(X, W[:, :, :0]), "non-empty weight"),
    ("no-rows", lambda: F.conv_transpose2d(X[:, :, :0], W), "Only zero batch"),
    ("groups-0", lambda: F.conv_transpose2d(X, W, groups=0), "groups"),
    ("groups-3", lambda: F.conv_transpose2d(X, W, groups=3), "groups=3, expected weight"),
    ("groups-2^62", lambda: F.conv_transpose2d(X, W, groups=2**62), "groups"),
    ("stride-0", lambda: F.conv_transpose2d(X, W, stride=0), "non-positive stride"),
    ("stride-3", lambda: F.conv_transpose2d(X, W, stride=(1, 1, 1)), "stride"),
    ("stride-float", lambda: F.conv_transpose2d(X, W, stride=1.5), "stride", TypeError),
    ("stride-2^62", lambda: F.conv_transpose2d(X, W, stride=2**62), "stride"),
    ("stride-2^30", lambda: F.conv_transpose2d(X, W, stride=LARGE), "overflows"),
    ("stride-2^28", lambda: F.conv_transpose2d(X, W, stride=2**28), "overflows|memory"),
    ("padding-negative", lambda: F.conv_transpose2d(X, W, padding=-1), "negative padding"),
    ("padding-word", lambda: F.conv_transpose2d(X, W, padding="same"), "padding", TypeError),
    ("padding-5", lambda: F.conv_transpose2d(X, W, padding=5), r"\(0 x 0\). Output size is too small"),
    ("padding-2^30", lambda: F.conv_transpose2d(X, W, padding=LARGE), "Output size is too small"),
    ("output-padding-1", lambda: F.conv_transpose2d(X, W, output_padding=1), "smaller than either stride or dilation"),
    ("output-padding-negative", lambda: F.conv_transpose2d(X, W, output_padding=-1), "negative output_padding"),
    ("output-padding-3", lambda: F.conv_transpose2d(X, W, output_padding=(0, 0, 0)), "output_padding"),
    ("dilation-0", lambda: F.conv_transpose2d(X, W, dilation=0), "dilation"),
    ("dilation-2^30", lambda: F.conv_transpose2d(X, W, dilation=LARGE), "overflows"),
    ("reach-2^27", lambda: F.conv_transpose2d(POINT, torch.ones(1, 1, 2, 2), None, 1, 2**26, 0, 1, 2**27), "copy"),
    ("float8", lambda: F.conv_transpose2d(X.to(FLOAT8), W.to(FLOAT8)), "Float8", NotImplementedError),
    ("op-int", lambda: o.conv_transpose2d(X.int(), W.int(), None, *TRANSPOSED), "dtype"),
    ("op-stride-1", lambda: o.conv_transpose2d(X, W, None, (1,), *TRANSPOSED[1:]), "stride to have 2 values"),
    ("op-padding-none", lambda: o._conv_transpose2d(X, W, None, ONE, (), *TRANSPOSED[2:]), "padding to have 2"),
    ("op-meta-stride-0", lambda: o.conv_transpose2d(META, W.to("meta"), None, ZERO, *TRANSPOSED[1:]), "stride"),
    ("op-input-3d", lambda: o.conv_transpose2d(X[0], W, None, *TRANSPOSED), "4D input"),
    ("local-input-2d", lambda: F.local_conv2d(X[0, 0], L), "Expected 3D .* or 4D .* input"),
    ("local-weight-4d", lambda: F.local_conv2d(X, L[0, 0]), "6D weight"),
    ("local-weight-none", lambda: F.local_conv2d(X, None), "weight to be a Tensor", TypeError),
    ("local-weight-meta", lambda: F.local_conv2d(X, L.to("meta")), "weight on meta"),
    ("local-weight-dtype", lambda: F.local_conv2d(X, L.half()), "weight type"),
    (
        "local-positions",
        lambda: F.local_conv2d(X, L[:5]),
        r"weight of size \[6, 6, ...\], one filter an output position",
    ),
    ("local-positions-swapped", lambda: F.local_conv2d(X[..., :7], L.transpose(0, 1)), r"weight of size \[6, 5, ...\]"),
    ("local-channels", lambda: F.local_conv2d(X[:, :3], L), "to have 4 channels, but got 3 channels"),
    ("local-zero-kernel", lambda: F.local_conv2d(X, L[..., :0]), "kernel_size"),
    ("local-large-kernel", lambda: F.local_conv2d(X[..., :2], L), "Kernel size can't be greater"),
    ("local-bias-1d", lambda: F.local_conv2d(X, L, B[:2]), r"bias of size \[2, 6, 6\]"),
    ("local-bias-dtype", lambda: F.local_conv2d(X, L, LB.double()), "bias type"),
    ("local-bias-meta", lambda: F.local_conv2d(X, L, LB.to("meta")), "bias on meta"),
    ("local-stride-0", lambda: F.local_conv2d(X, L, None, 0), "stride"),
    ("local-stride-3", lambda: F.local_conv2d(X, L, None, (1, 1, 1)), "stride"),
    ("local-padding-negative", lambda: F.local_conv2d(X, L, None, 1, -1), "padding"),
    ("local-padding-2^30", lambda: F.local_conv2d(X, L, None, 1, LARGE), "overflows|one filter an output position"),
    ("local-padding-2^62", lambda: F.local_conv2d(X, L, None, 1, 2**62), "padding"),
    ("local-dilation-2^30", lambda: F.local_conv2d(X, L, None, 1, 0, LARGE), "Kernel size can't be greater"),
    ("local-expanded", lambda: F.local_conv2d(X, L[:, :, :1].expand(6, 6, 2**55, 4, 3, 3)), "overflow"),
    ("local-float8", lambda: F.local_conv2d(X.to(FLOAT8), L.to(FLOAT8)), "Float8", NotImplementedError),
    ("local-op-int", lambda: o.local_conv2d(X.int(), L.int(), None, *LOCAL), "dtype"),
    ("local-op-stride-1", lambda: o._local_conv2d(X, L, None, (1,), *LOCAL[1:]), "stride to have 2 values"),
    ("local-op-meta", lambda: o.local_conv2d(META, L.to("meta"), None, ZERO, *LOCAL[1:]), "stride"),
    ("local-input-grad", lambda: o.local_conv2d_backward_input(LY[:, :1], L, X.shape, *LOCAL), "grad of size"),
    ("local-input-size-3", lambda: o.local_conv2d_backward_input(LY, L, (4, 8, 8), *LOCAL), "4D input"),
    ("local-input-negative", lambda: o.local_conv2d_backward_input(LY[:0], L, (-1, 4, 8, 8), *LOCAL), "sizes from 0"),
    ("local-input-2^62", lambda: o.local_conv2d_backward_input(LY, L, (2**62, 4, 8, 8), *LOCAL), "sizes from 0"),
    ("local-weight-kernel-2", lambda: o.local_conv2d_backward_weight(LY, X, (3, 3), *LOCAL), "kernel"),
    ("local-weight-kernel-0", lambda: o.local_conv2d_backward_weight(LY, X, (4, 0, 3), *LOCAL), "kernel_size"),
    ("local-weight-grad-3d", lambda: o.local_conv2d_backward_weight(LY[0], X, (4, 3, 3), *LOCAL), "4D grad"),
    ("local-weight-grad", lambda: o.local_conv2d_backward_weight(LY[..., :5], X, (4, 3, 3), *LOCAL), "grad of size"),
    ("local-weight-grad-dtype", lambda: o.local_conv2d_backward_weight(LY.half(), X, (4, 3, 3), *LOCAL), "grad type"),
    ("op-weight-meta", lambda: o.conv_transpose2d(X, W.to("meta"), None, *TRANSPOSED), "weight on meta"),
]


CPU_ALONE = {"reach-2^27"}  # a copy that the CUDA kernels do not make


@pytest.mark.parametrize(("call", "message", "error"), [
    pytest.param(call, message, *(error or (RuntimeError,)), id=name, marks=[pytest.mark.cpu] * (name in CPU_ALONE))
    for name, call, message, *error in CALLS
])  # fmt: skip
def test_is_refused(call, message, error):
    with pytest.raises(error, match=message) as refused:
        call()
    assert type(refused.value) is error


def test_nothing_crashes():
    """All calls in one fresh interpreter, which must live to name every error."""
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.split() == [name for name, *_ in CALLS]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_reach_their_windows_only(value):
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    x[0, 1, 2, 2] = value
    weight = torch.rand(2, 3, 3, 3, dtype=torch.float64) + 1
    got, want = (f(x, weight, None, 2, 1) for f in (F.conv_transpose2d, torch.nn.functional.conv_transpose2d))
    torch.testing.assert_close(got, want, equal_nan=True)


def odd_strides():
    base = torch.randn(20000, dtype=torch.float64)
    yield base[: 4 * 8 * 16 * 16].view(4, 8, 16, 16)[::2, ::2, ::2, ::2]
    yield base[:8].view(1, 1, 1, 8).expand(2, 4, 8, 8)
    yield base.as_strided((2, 4, 8, 8), (50, 20, 3, 1))
    yield base[:512].view(8, 4, 2, 8).permute(2, 1, 3, 0)


def test_any_strides():
    for x in odd_strides():
        weight, bias = x[:, :, :3, :3].transpose(0, 1), x[0, 0, 0, ::4]
        copies = [t.clone(memory_format=torch.contiguous_format) for t in (x, weight, bias)]
        want = torch.nn.functional.conv_transpose2d(*copies, 2, 1)
        torch.testing.assert_close(F.conv_transpose2d(x, weight, bias, 2, 1), want, check_stride=False)


if __name__ == "__main__":
    for name, call, *_ in CALLS:
        try:
            call()
        except Exception:
            print(name, flush=True)
