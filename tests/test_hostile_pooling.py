"""test_hostile.py for lrn_max_pool2d and max_unpool2d: calls that must fail, odd calls that must work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn.functional
from tests.test_hostile import ONE, STRIDES, TWO, ZERO, X, _strided, _table

INT, FLOAT8, META = X.int(), X.to(torch.float8_e4m3fn), X.to("meta")
P = torch.ones(1, 4, 4, 4)  # of a 2x2 pooling of X
AT = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
PLACES = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
NORM = (5, 1e-4, 0.75, 1.0, 1, False)
POOL = (TWO, TWO, ZERO, ONE, False)
BOTH = (*NORM, *POOL)

# Id, call, what the message must match, and the class where it is not RuntimeError.
FUNCTIONAL = [
    ("fused-input-2d", lambda F: F.lrn_max_pool2d(X[0, 0], 5), "Expected 3D .* or 4D .* input"),
    ("fused-input-5d", lambda F: F.lrn_max_pool2d(X[None], 5), "Expected 3D .* or 4D .* input"),
    ("fused-size-0", lambda F: F.lrn_max_pool2d(X, 0), "lrn_max_pool2d: .* size of at least 1, but got 0"),
    ("fused-mode", lambda F: F.lrn_max_pool2d(X, 5, alpha_mode="max"), "alpha_mode", ValueError),
    ("fused-sum-even", lambda F: F.lrn_max_pool2d(X, 4, alpha_mode="sum"), "odd size", ValueError),
    ("fused-groups-3", lambda F: F.lrn_max_pool2d(X, 5, groups=3), "groups", ValueError),
    ("fused-activation", lambda F: F.lrn_max_pool2d(X, 5, activation="elu"), "activation", ValueError),
    ("fused-kernel-0", lambda F: F.lrn_max_pool2d(X, 5, kernel_size=0), "kernel_size"),
    ("fused-kernel-3", lambda F: F.lrn_max_pool2d(X, 5, kernel_size=(2, 2, 2)), "kernel_size"),
    ("fused-kernel-9", lambda F: F.lrn_max_pool2d(X, 5, kernel_size=9), "Output size is too small"),
    ("fused-kernel-2^62", lambda F: F.lrn_max_pool2d(X, 5, kernel_size=2**62), "kernel_size"),
    ("fused-stride-0", lambda F: F.lrn_max_pool2d(X, 5, stride=0), "stride"),
    ("fused-stride-float", lambda F: F.lrn_max_pool2d(X, 5, stride=1.5), "stride", TypeError),
    ("fused-padding-large", lambda F: F.lrn_max_pool2d(X, 5, padding=2), "pad should be at most half"),
    ("fused-padding-negative", lambda F: F.lrn_max_pool2d(X, 5, padding=-1), "pad"),
    ("fused-dilation-0", lambda F: F.lrn_max_pool2d(X, 5, dilation=0), "dilation"),
    ("fused-no-channels", lambda F: F.lrn_max_pool2d(X[:, :0], 5), "input"),
    ("fused-no-rows", lambda F: F.lrn_max_pool2d(X[:, :, :0], 5), "input"),
    ("unpool-input-2d", lambda F: F.max_unpool2d(P[0, 0], PLACES[0, 0], 2), "3d or 4d"),
    ("unpool-input-5d", lambda F: F.max_unpool2d(P[None], PLACES[None], 2), "3d or 4d"),
    ("unpool-shape", lambda F: F.max_unpool2d(P, PLACES[:, :3], 2), "shape of indices"),
    ("unpool-int32", lambda F: F.max_unpool2d(P, PLACES.int(), 2), "indices .* int64"),
    ("unpool-no-channels", lambda F: F.max_unpool2d(P[:, :0], PLACES[:, :0], 2), "non-zero size"),
    ("unpool-index-64", lambda F: F.max_unpool2d(P, PLACES + 64, 2), "invalid max index: 64"),
    ("unpool-index-negative", lambda F: F.max_unpool2d(P, PLACES - 1, 2), "invalid max index: -1"),
    ("unpool-output-large", lambda F: F.max_unpool2d(P, PLACES, 2, output_size=(10, 8)), "output_size", ValueError),
    ("unpool-output-1", lambda F: F.max_unpool2d(P, PLACES, 2, output_size=(8,)), "output_size", ValueError),
    ("unpool-output-negative", lambda F: F.max_unpool2d(P, PLACES, 2, -2), "output_size", ValueError),
    ("unpool-output-huge", lambda F: F.max_unpool2d(P, PLACES, 2**30), "output_size|overflows|memory"),
    ("unpool-kernel-2^62", lambda F: F.max_unpool2d(P, PLACES, 2**60), "output_size"),
    ("unpool-kernel-float", lambda F: F.max_unpool2d(P, PLACES, 2.0), "kernel_size", TypeError),
    ("unpool-overlap", lambda F: F.max_unpool2d(P, PLACES, 2, overlap="max"), "overlap .* 'max'", ValueError),
    ("unpool-indices-meta", lambda F: F.max_unpool2d(P, PLACES.to("meta"), 2), "indices on meta"),
]

# Calls of the ops themselves, whose lists, integers and second tensors no Python has looked at.
OPS = [
    ("fused-input-3d", lambda o: o.lrn_max_pool2d(X[0], *BOTH), "4D input"),
    ("fused-int", lambda o: o.lrn_max_pool2d(INT, *BOTH), "dtype"),
    ("fused-float8", lambda o: o._lrn_max_pool2d_values(FLOAT8, *BOTH), "dtype"),
    ("fused-size-0", lambda o: o.lrn_max_pool2d(X, 0, *BOTH[1:]), "size"),
    ("fused-groups-0", lambda o: o.lrn_max_pool2d(X, *BOTH[:4], 0, *BOTH[5:]), "groups"),
    ("fused-kernel-1", lambda o: o.lrn_max_pool2d(X, *NORM, (2,), *POOL[1:]), "kernel_size"),
    ("fused-kernel-2^31", lambda o: o._lrn_max_pool2d(X, *NORM, (2**31 - 1,) * 2, ONE, ZERO, ONE, True),
     "kernel_size|Output size"),
    ("fused-meta-stride-0", lambda o: o.lrn_max_pool2d(META, *NORM, TWO, ZERO, ZERO, ONE, False), "stride"),
    ("fused_backward-argmax-dtype", lambda o: o.lrn_max_pool2d_backward(P, AT.int(), X, *BOTH), "argmax of dtype"),
    ("fused_backward-argmax-size", lambda o: o.lrn_max_pool2d_backward(P, AT[..., :3], X, *BOTH), "argmax of size"),
    ("fused_backward-argmax-4", lambda o: o.lrn_max_pool2d_backward(P, AT + 4, X, *BOTH), "argmax below 4"),
    ("fused_backward-argmax-meta", lambda o: o.lrn_max_pool2d_backward(P, AT.to("meta"), X, *BOTH), "argmax on meta"),
    ("fused_backward-grad-size", lambda o: o.lrn_max_pool2d_backward(P[..., :3], AT, X, *BOTH), "grad"),
    ("fused_backward-grad-dtype", lambda o: o.lrn_max_pool2d_backward(P.double(), AT, X, *BOTH), "grad"),
    ("fused_backward-x-3d", lambda o: o.lrn_max_pool2d_backward(P, AT, X[0], *BOTH), "4D input"),
    ("fused_backward-x-size", lambda o: o.lrn_max_pool2d_backward(P, AT, X[:, :3], *BOTH), "argmax of size"),
    ("unpool-input-3d", lambda o: o.max_unpool2d(P[0], PLACES[0], (8, 8), False), "4D"),
    ("unpool-size-1", lambda o: o.max_unpool2d(P, PLACES, (8,), False), "output_size to have 2 values"),
    ("unpool-size-negative", lambda o: o.max_unpool2d(P, PLACES, (-8, -8), True), "output_size"),
    ("unpool-size-2^31", lambda o: o.max_unpool2d(P, PLACES, (2**31 - 1, 2**31 - 1), True), "overflows"),
    ("unpool-int", lambda o: o.max_unpool2d(P.int(), PLACES, (8, 8), False), "dtype"),
    ("unpool-indices-size", lambda o: o.max_unpool2d(P, PLACES[..., :3], (8, 8), False), "shape of indices"),
    ("unpool-indices-dtype", lambda o: o.max_unpool2d(P, AT, (8, 8), True), "int64"),
    ("unpool-index-2^63", lambda o: o.max_unpool2d(P, PLACES - 2**63, (8, 8), True), "invalid max index"),
    ("unpool_gather-indices-3d", lambda o: o.max_unpool2d_gather(X, PLACES[0]), "4D indices"),
    ("unpool_gather-channels", lambda o: o.max_unpool2d_gather(X[:, :3], PLACES), "grad"),
    ("unpool_gather-empty", lambda o: o.max_unpool2d_gather(X[:, :, :0], PLACES), "grad"),
    ("unpool_gather-index", lambda o: o.max_unpool2d_gather(X, PLACES + 64), "invalid max index: 64"),
    ("unpool_gather-meta", lambda o: o.max_unpool2d_gather(X, PLACES.to("meta")), "indices on meta"),
]  # fmt: skip

# Of what a tensor holds, a GPU's kernel could tell its caller only by making it wait: the CPU's ops alone refuse it.
CONTENTS = (
    "unpool-index-64", "unpool-index-negative", "unpool-index-2^63", "unpool_gather-index", "fused_backward-argmax-4",
)  # fmt: skip


def marked(name, *rest):
    case = name.split("-", 1)[1]
    return pytest.param(*rest, id=name, marks=[pytest.mark.cpu] if case in CONTENTS else [])


TABLES = _table("functional", fastcnn.functional, FUNCTIONAL) + _table("op", torch.ops.fastcnn, OPS)


@pytest.mark.parametrize(("call", "argument", "error"), [marked(*row) for row in TABLES])
def test_is_refused(call, argument, error):
    with pytest.raises(error, match=argument) as refused:
        call()
    assert type(refused.value) is error


def test_nothing_crashes():
    """All calls in one fresh interpreter, which must live to name every error."""
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(fastcnn.__file__).parents[1])},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.splitlines() == [f"{name} {error.__name__}" for name, _, _, error in TABLES]


@pytest.mark.parametrize("strides", STRIDES)
def test_any_strides(strides):
    """Every tensor argument with odd strides, on the ops themselves."""
    o, odd = torch.ops.fastcnn, _strided(strides)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    small = odd[..., ::2, 1::2]
    argmax = torch.randint(0, 4, (2, 4, 8, 8), dtype=torch.uint8)[..., ::2, ::2]
    places = torch.randint(0, 64, (2, 4, 8, 8))[..., ::2, ::2]

    def equal(op, *mine):
        want = op(*(t.clone(memory_format=torch.contiguous_format) for t in mine))
        torch.testing.assert_close(op(*mine), want, rtol=1e-12, atol=1e-12, check_stride=False)

    equal(lambda t: o._lrn_max_pool2d_values(t, *BOTH), odd)
    equal(lambda t: o.lrn_max_pool2d(t, *BOTH)[0], odd)
    equal(lambda g, at, t: o.lrn_max_pool2d_backward(g, at, t, *BOTH), small, argmax, odd)
    equal(lambda g, at: o.lrn_max_pool2d_backward(g, at, x, *BOTH), small, argmax[:, :1].expand(2, 4, 4, 4))
    for sum in (False, True):
        equal(lambda t, at, sum=sum: o.max_unpool2d(t, at, (8, 8), sum), small, places)
    equal(lambda g, at: o.max_unpool2d_gather(g, at), odd, places)
    equal(lambda g, at: o.max_unpool2d_gather(g, at), odd, places[:, :1].expand(2, 4, 4, 4))


def test_meta_tensors_are_stock():
    """A meta tensor gives a shape."""
    F = fastcnn.functional
    assert F.lrn_max_pool2d(META, 5).shape == (1, 4, 3, 3)
    assert F.max_unpool2d(P.to("meta"), PLACES.to("meta"), 2).shape == X.shape


if __name__ == "__main__":
    for name, call, *_ in TABLES:
        try:
            call()
        except Exception as error:
            print(name, type(error).__name__, flush=True)
