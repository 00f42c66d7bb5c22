"""Calls that must fail, with the error that each must give, and odd calls that must work. Nothing may crash."""

import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn.functional
from fastcnn.ops import conv2d as convolution

X = torch.linspace(-1, 1, 4 * 8 * 8).view(1, 4, 8, 8)
W = torch.linspace(-1, 1, 6 * 4 * 3 * 3).view(6, 4, 3, 3)
B = torch.ones(6)
Y = torch.ones(1, 6, 6, 6)  # of conv2d(X, W)
P = torch.ones(1, 4, 4, 4)  # of a 2x2 pooling of X
AT = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
TABLE = ((0, 1), (2, 3))
S = torch.ones(4, 3, 3)  # weight of TABLE's four links
V = torch.ones(4)  # one value a map of X
INT, FLOAT8, META = X.int(), X.to(torch.float8_e4m3fn), X.to("meta")
POINT, HOLED = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)

ONE, ZERO, TWO = (1, 1), (0, 0), (2, 2)
LARGE = 2**30
CONV = (ONE, ZERO, ONE, 1, False, 1)  # stride, padding, dilation, groups, relu, accuracy
CONV_BACKWARD = CONV[:4]
POOL = (TWO, TWO, ZERO, ONE, False)
AVERAGE = (TWO, TWO, ZERO, False, True, None)
NORM = (5, 1e-4, 0.75, 1.0, 1, False)
LINKS = ([2, 2], [0, 1, 2, 3], ONE, ZERO)
SUBSAMPLE = (TWO, TWO, 1.0)

# Id, call, what the message must match, and the class where it is not RuntimeError.
# Calls of the functional face: each is also made to torch.nn.functional where that has the function.
FUNCTIONAL = [
    ("conv2d-input-2d", lambda F: F.conv2d(X[0, 0], W), "Expected 3D .* or 4D .* input"),
    ("conv2d-input-5d", lambda F: F.conv2d(X[None], W), "Expected 3D .* or 4D .* input"),
    ("conv2d-input-0d", lambda F: F.conv2d(torch.tensor(1.0), W), "Expected 3D .* or 4D .* input"),
    ("conv2d-weight-3d", lambda F: F.conv2d(X, W[0]), "4D weight"),
    ("conv2d-weight-none", lambda F: F.conv2d(X, None), "weight", TypeError),
    ("conv2d-weight-list", lambda F: F.conv2d(X, [1.0]), "weight", TypeError),
    ("conv2d-channels", lambda F: F.conv2d(X[:, :3], W), r"to have 4 channels, but got 3"),
    ("conv2d-no-outputs", lambda F: F.conv2d(X, W[:0]), "weight to be at least 1 at dimension 0"),
    ("conv2d-zero-kernel", lambda F: F.conv2d(X, W[:, :, :0]), "kernel"),
    ("conv2d-large-kernel", lambda F: F.conv2d(X[:, :, :2], W), "Kernel size can't be greater"),
    ("conv2d-groups-0", lambda F: F.conv2d(X, W, groups=0), "groups"),
    ("conv2d-groups-negative", lambda F: F.conv2d(X, W, groups=-1), "groups"),
    ("conv2d-groups-3", lambda F: F.conv2d(X, W, groups=3), "groups=3.* to have 12 channels"),
    ("conv2d-groups-4", lambda F: F.conv2d(X, W[:, :1], groups=4), "groups=4.* divisible"),
    ("conv2d-groups-2^62", lambda F: F.conv2d(X, W, groups=2**62), "groups"),
    ("conv2d-stride-0", lambda F: F.conv2d(X, W, stride=0), "stride"),
    ("conv2d-stride-negative", lambda F: F.conv2d(X, W, stride=(1, -1)), "stride"),
    ("conv2d-stride-3", lambda F: F.conv2d(X, W, stride=(1, 1, 1)), "stride"),
    ("conv2d-stride-none", lambda F: F.conv2d(X, W, stride=()), "stride"),
    ("conv2d-stride-float", lambda F: F.conv2d(X, W, stride=1.5), "stride", TypeError),
    ("conv2d-stride-text", lambda F: F.conv2d(X, W, stride="11"), "stride", TypeError),
    ("conv2d-padding-negative", lambda F: F.conv2d(X, W, padding=-1), "padding"),
    ("conv2d-padding-2^62", lambda F: F.conv2d(X, W, padding=2**62), "padding"),
    ("conv2d-padding-word", lambda F: F.conv2d(X, W, padding="full"), "Invalid padding string: 'full'"),
    ("conv2d-padding-same", lambda F: F.conv2d(X, W, stride=2, padding="same"), "padding='same'"),
    ("conv2d-huge-output", lambda F: F.conv2d(X, W, padding=2**31 - 1), "size overflows"),
    ("conv2d-dilation-0", lambda F: F.conv2d(X, W, dilation=0), "dilation"),
    ("conv2d-dilation-negative", lambda F: F.conv2d(X, W, dilation=-2), "dilation"),
    ("conv2d-reach-2^31", lambda F: F.conv2d(POINT, HOLED, None, 1, LARGE, LARGE), "dilation"),
    ("conv2d-reach-2^27", lambda F: F.conv2d(POINT, HOLED, None, 1, 2**26, 2**26), "dilation"),
    ("conv2d-weight-double", lambda F: F.conv2d(X, W.double()), "weight"),
    ("conv2d-weight-int", lambda F: F.conv2d(X, W.int()), "weight"),
    ("conv2d-weight-complex", lambda F: F.conv2d(X, W.cfloat()), "weight"),
    ("conv2d-weight-bool", lambda F: F.conv2d(X, W.bool()), "weight"),
    ("conv2d-float8", lambda F: F.conv2d(FLOAT8, W.to(FLOAT8.dtype)), "Float8", NotImplementedError),
    ("conv2d-weight-sparse", lambda F: F.conv2d(X, W.to_sparse()), "SparseCPU", NotImplementedError),
    ("conv2d-weight-meta", lambda F: F.conv2d(X, W.to("meta")), "weight on meta"),
    ("conv2d-bias-meta", lambda F: F.conv2d(X, W, B.to("meta")), "bias on meta"),
    ("conv2d-bias-size", lambda F: F.conv2d(X, W, B[:5]), "bias"),
    ("conv2d-bias-2d", lambda F: F.conv2d(X, W, B[None]), "bias"),
    ("conv2d-bias-dtype", lambda F: F.conv2d(X, W, B.double()), "bias"),
    ("conv2d-residual-size", lambda F: F.conv2d(X, W, residual=Y[:, :5]), "residual"),
    ("conv2d-residual-dtype", lambda F: F.conv2d(X, W, residual=Y.double()), "residual"),
    ("conv2d-residual-meta", lambda F: F.conv2d(X, W, residual=Y.to("meta")), "residual on meta"),
    ("conv2d-activation", lambda F: F.conv2d(X, W, activation="elu"), "activation .* 'elu'", ValueError),
    ("conv2d-accuracy", lambda F: F.conv2d(X, W, accuracy="best"), "accuracy .* 'best'", ValueError),
    ("max_pool2d-input-2d", lambda F: F.max_pool2d(X[0, 0], 2), "input"),
    ("max_pool2d-input-5d", lambda F: F.max_pool2d(X[None], 2), "input"),
    ("max_pool2d-no-channels", lambda F: F.max_pool2d(X[:, :0], 2), "input"),
    ("max_pool2d-no-rows", lambda F: F.max_pool2d(X[:, :, :0], 2), "input"),
    ("max_pool2d-kernel-0", lambda F: F.max_pool2d(X, 0), "kernel"),
    ("max_pool2d-kernel-negative", lambda F: F.max_pool2d(X, (2, -2)), "kernel"),
    ("max_pool2d-kernel-3", lambda F: F.max_pool2d(X, (2, 2, 2)), "kernel_size"),
    ("max_pool2d-kernel-none", lambda F: F.max_pool2d(X, ()), "kernel_size"),
    ("max_pool2d-kernel-float", lambda F: F.max_pool2d(X, 2.0), "kernel_size", TypeError),
    ("max_pool2d-kernel-2^62", lambda F: F.max_pool2d(X, 2**62), "kernel_size"),
    ("max_pool2d-stride-0", lambda F: F.max_pool2d(X, 2, 0), "stride"),
    ("max_pool2d-stride-negative", lambda F: F.max_pool2d(X, 2, -1), "stride"),
    ("max_pool2d-padding-negative", lambda F: F.max_pool2d(X, 2, 2, -1), "pad"),
    ("max_pool2d-padding-large", lambda F: F.max_pool2d(X, 2, 2, 2), "pad should be at most half"),
    ("max_pool2d-dilation-0", lambda F: F.max_pool2d(X, 2, 2, 0, 0), "dilation"),
    ("max_pool2d-output", lambda F: F.max_pool2d(X, 9), "Output size is too small"),
    ("max_pool2d-complex", lambda F: F.max_pool2d(X.cfloat(), 2), "not implemented|Complex", NotImplementedError),
    ("max_pool2d-float8", lambda F: F.max_pool2d(FLOAT8, 2), "Float8", NotImplementedError),
    ("avg_pool2d-input-2d", lambda F: F.avg_pool2d(X[0, 0], 2), "Dimension", IndexError),
    ("avg_pool2d-kernel-0", lambda F: F.avg_pool2d(X, (0, 2)), "kernel"),
    ("avg_pool2d-kernel-2^40", lambda F: F.avg_pool2d(X, (2, 2**40)), "kernel_size"),
    ("avg_pool2d-stride-negative", lambda F: F.avg_pool2d(X, 2, (2, -2)), "stride"),
    ("avg_pool2d-padding-large", lambda F: F.avg_pool2d(X, 2, 2, 2), "pad should be at most half"),
    ("avg_pool2d-divisor-0", lambda F: F.avg_pool2d(X, 2, divisor_override=0), "divisor must be not zero"),
    ("avg_pool2d-output", lambda F: F.avg_pool2d(X, 9), "Output size is too small"),
    ("avg_pool2d-int", lambda F: F.avg_pool2d(X.bool(), 2), "Bool", NotImplementedError),
    ("adaptive-input-2d", lambda F: F.adaptive_avg_pool2d(X[0, 0], 2), "Expected 3D or 4D"),
    ("adaptive-no-rows", lambda F: F.adaptive_avg_pool2d(X[:, :, :0], 2), "non-zero size"),
    ("adaptive-output-negative", lambda F: F.adaptive_avg_pool2d(X, -2), "output_size"),
    ("adaptive-output-3", lambda F: F.adaptive_avg_pool2d(X, (2, 2, 2)), "output_size"),
    ("adaptive-output-2^31", lambda F: F.adaptive_avg_pool2d(X, (2**31 - 1, 2**31 - 1)), "overflow"),
    ("adaptive-output-2^62", lambda F: F.adaptive_avg_pool2d(X, 2**62), "output_size"),
    ("norm-input-2d", lambda F: F.local_response_norm(X[0, 0], 5), "Expected 3D or higher .* input", ValueError),
    ("norm-size-0", lambda F: F.local_response_norm(X, 0), "size"),
    ("norm-size-negative", lambda F: F.local_response_norm(X, -3), "size"),
    ("norm-mode", lambda F: F.local_response_norm(X, 5, alpha_mode="max"), "alpha_mode", ValueError),
    ("norm-sum-even", lambda F: F.local_response_norm(X, 4, alpha_mode="sum"), "odd size", ValueError),
    ("norm-groups-0", lambda F: F.local_response_norm(X, 5, groups=0), "groups", ValueError),
    ("norm-groups-3", lambda F: F.local_response_norm(X, 5, groups=3), "groups", ValueError),
    ("norm-activation", lambda F: F.local_response_norm(X, 5, activation="elu"), "activation", ValueError),
    ("sparse-input-2d", lambda F: F.sparse_conv2d(X[0, 0], S, None, TABLE), "input"),
    ("sparse-channels", lambda F: F.sparse_conv2d(X[:, :3], S, None, TABLE), "input maps 0 to 2, but got 3"),
    ("sparse-table-negative", lambda F: F.sparse_conv2d(X, S[:1], None, ((-1,),)), "table .* but got -1"),
    ("sparse-table-2^62", lambda F: F.sparse_conv2d(X, S[:1], None, ((2**62,),)), "table"),
    ("sparse-links", lambda F: F.sparse_conv2d(X, S[:3], None, TABLE), "weight"),
    ("sparse-weight-4d", lambda F: F.sparse_conv2d(X, S[None], None, TABLE), "weight"),
    ("sparse-weight-dtype", lambda F: F.sparse_conv2d(X, S.double(), None, TABLE), "weight"),
    ("sparse-zero-kernel", lambda F: F.sparse_conv2d(X, S[:, :0], None, TABLE), "kernel_size"),
    ("sparse-bias-size", lambda F: F.sparse_conv2d(X, S, B, TABLE), "bias"),
    ("sparse-bias-dtype", lambda F: F.sparse_conv2d(X, S, B[:2].half(), TABLE), "bias"),
    ("sparse-stride-0", lambda F: F.sparse_conv2d(X, S, None, TABLE, 0), "stride"),
    ("sparse-padding-negative", lambda F: F.sparse_conv2d(X, S, None, TABLE, 1, -1), "padding"),
    ("sparse-padding-2^30", lambda F: F.sparse_conv2d(X, S, None, TABLE, 1, LARGE), "overflows"),
    ("sparse-small-input", lambda F: F.sparse_conv2d(X[..., :2], S, None, TABLE), "Kernel size"),
    ("subsample-input-2d", lambda F: F.subsample2d(X[0, 0], V), "input"),
    ("subsample-weight-size", lambda F: F.subsample2d(X, V[:3]), "weight"),
    ("subsample-bias-size", lambda F: F.subsample2d(X, V, V[:3]), "bias"),
    ("subsample-weight-dtype", lambda F: F.subsample2d(X, V.bfloat16()), "weight"),
    ("subsample-kernel-0", lambda F: F.subsample2d(X, V, None, 0), "kernel_size"),
    ("subsample-kernel-9", lambda F: F.subsample2d(X, V, None, 9), "kernel_size"),
    ("subsample-stride-0", lambda F: F.subsample2d(X, V, None, 2, 0), "stride"),
    ("subsample-reduce", lambda F: F.subsample2d(X, V, reduce="max"), "reduce", ValueError),
]

# Calls of the ops themselves, whose lists, integers and second tensors no Python has looked at.
OPS = [
    ("conv2d-stride-1", lambda o: o.conv2d(X, W, None, None, (1,), *CONV[1:]), "stride to have 2 values"),
    ("conv2d-padding-3", lambda o: o.conv2d(X, W, None, None, ONE, (0, 0, 0), *CONV[2:]), "padding"),
    ("conv2d-dilation-none", lambda o: o.conv2d(X, W, None, None, ONE, ZERO, (), *CONV[3:]), "dilation"),
    ("conv2d-groups-2^63", lambda o: o.conv2d(X, W, None, None, ONE, ZERO, ONE, 2**63, False, 1), "groups"),
    ("conv2d-accuracy-3", lambda o: o.conv2d(X, W, None, None, *CONV[:5], 3), "accuracy"),
    ("conv2d-input-3d", lambda o: o.conv2d(X[0], W, None, None, *CONV), "4D input"),
    ("conv2d-int", lambda o: o.conv2d(INT, W.int(), None, None, *CONV), "dtype"),
    ("conv2d-float8", lambda o: o.conv2d(FLOAT8, W.to(FLOAT8.dtype), None, None, *CONV), "dtype"),
    ("conv2d-weight-meta", lambda o: o.conv2d(X, W.to("meta"), None, None, *CONV), "weight on meta"),
    ("conv2d-meta-stride-0", lambda o: o.conv2d(META, W.to("meta"), None, None, ZERO, *CONV[1:]), "stride"),
    ("conv2d-meta-stride-1", lambda o: o.conv2d(META, W.to("meta"), None, None, (1,), *CONV[1:]), "stride"),
    ("_conv2d-geometry-6", lambda o: o._conv2d(X, W, None, None, None, (1,) * 6, False, 1), "geometry"),
    ("_conv2d-packed-size", lambda o: o._conv2d(X, W, B, None, None, (1, 1, 0, 0, 1, 1, 1), False, 1), "packed weight"),
    ("_conv2d-packed-dtype", lambda o: o._conv2d(X, W, o._pack_weight(W, 1).double(), None, None, (1, 1, 0, 0, 1, 1,
     1), False, 1), "packed weight"),
    ("_pack_weight-groups-0", lambda o: o._pack_weight(W, 0), "groups"),
    ("_pack_weight-groups-5", lambda o: o._pack_weight(W, 5), "groups"),
    ("_pack_weight-3d", lambda o: o._pack_weight(W[0], 1), "weight"),
    ("conv2d_backward_input-size-3", lambda o: o.conv2d_backward_input(Y, W, (1, 4, 8), *CONV_BACKWARD), "input_size"),
    ("conv2d_backward_input-size-negative", lambda o: o.conv2d_backward_input(Y, W, (1, 4, -8, -8), *CONV_BACKWARD),
     "input_size"),
    ("conv2d_backward_input-size-2^62", lambda o: o.conv2d_backward_input(Y, W, (1, 4, 2**62, 8), *CONV_BACKWARD),
     "overflows"),
    ("conv2d_backward_input-size-2^31", lambda o: o.conv2d_backward_input(Y, W, (1, 4, 2**31, 8), *CONV_BACKWARD),
     "2\\^31|memory"),
    ("conv2d_backward_input-grad", lambda o: o.conv2d_backward_input(Y[:, :, :5], W, X.shape, *CONV_BACKWARD), "grad"),
    ("conv2d_backward_input-dtype", lambda o: o.conv2d_backward_input(Y.half(), W, X.shape, *CONV_BACKWARD), "weight"),
    ("conv2d_backward_input-reach", lambda o: o.conv2d_backward_input(POINT, HOLED, (1, 1, 1, 1), ONE, (LARGE, LARGE),
     (LARGE, LARGE), 1), "dilation"),
    ("conv2d_backward_weight-size-5", lambda o: o.conv2d_backward_weight(Y, X, (1, 6, 4, 3, 3), *CONV_BACKWARD),
     "weight_size"),
    ("conv2d_backward_weight-kernel-0", lambda o: o.conv2d_backward_weight(Y, X, (6, 4, 0, 3), *CONV_BACKWARD),
     "kernel"),
    ("conv2d_backward_weight-negative", lambda o: o.conv2d_backward_weight(Y, X, (6, 4, -3, -3), *CONV_BACKWARD),
     "weight_size"),
    ("conv2d_backward_weight-grad", lambda o: o.conv2d_backward_weight(Y[:, :5], X, W.shape, *CONV_BACKWARD), "grad"),
    ("conv2d_backward_weight-meta", lambda o: o.conv2d_backward_weight(Y, META, W.shape, *CONV_BACKWARD), "x on meta"),
    ("conv2d_backward_weight-reach", lambda o: o.conv2d_backward_weight(POINT, POINT, (1, 1, 3, 3), ONE, (LARGE,
     LARGE), (LARGE, LARGE), 1), "dilation"),
    ("max_pool2d-kernel-1", lambda o: o.max_pool2d(X, (2,), *POOL[1:]), "kernel_size"),
    ("max_pool2d-stride-0", lambda o: o._max_pool2d_values(X, (2, 2, *ZERO, *ZERO, 1, 1), False), "stride"),
    ("max_pool2d-geometry-7", lambda o: o._max_pool2d_values(X, (1,) * 7, False), "geometry to have 8 values"),
    ("max_pool2d-kernel-2^31", lambda o: o._max_pool2d(X, (2**31 - 1, 2**31 - 1), ONE, ZERO, ONE, True),
     "kernel_size|Output size"),
    ("max_pool2d-int", lambda o: o.max_pool2d(INT, *POOL), "dtype"),
    ("max_pool2d_backward-argmax-dtype", lambda o: o.max_pool2d_backward(P, AT.int(), X.shape, *POOL),
     "argmax of dtype uint8"),
    ("max_pool2d_backward-argmax-wide", lambda o: o.max_pool2d_backward(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1,
     1, dtype=torch.uint8), (1, 1, 17, 17), (17, 17), ONE, ZERO, ONE, False), "argmax of dtype int32"),
    ("max_pool2d_backward-argmax-size", lambda o: o.max_pool2d_backward(P, AT[..., :3], X.shape, *POOL),
     "argmax of size"),
    ("max_pool2d_backward-argmax-meta", lambda o: o.max_pool2d_backward(P, AT.to("meta"), X.shape, *POOL),
     "argmax on meta"),
    ("max_pool2d_backward-grad-size", lambda o: o.max_pool2d_backward(P[..., :3], AT, X.shape, *POOL), "grad"),
    ("max_pool2d_backward-size-3", lambda o: o.max_pool2d_backward(P, AT, (4, 8, 8), *POOL), "size"),
    ("max_pool2d_backward-size-negative", lambda o: o.max_pool2d_backward(P, AT, (-1, 4, 8, 8), *POOL), "size"),
    ("max_pool2d_backward-size-2^62", lambda o: o.max_pool2d_backward(P, AT, (2**62, 4, 8, 8), *POOL), "size"),
    ("max_pool2d_gather-argmax-dtype", lambda o: o.max_pool2d_gather(X, P, *POOL), "argmax of dtype uint8"),
    ("max_pool2d_gather-argmax-size", lambda o: o.max_pool2d_gather(X, AT[:, :3], *POOL), "argmax of size"),
    ("avg_pool2d-kernel-3", lambda o: o.avg_pool2d(X, (2, 2, 2), *AVERAGE[1:]), "kernel_size"),
    ("avg_pool2d-int", lambda o: o.avg_pool2d(INT, *AVERAGE), "dtype"),
    ("avg_pool2d_backward-size-5", lambda o: o.avg_pool2d_backward(P, (1, 1, 4, 8, 8), False, *AVERAGE), "size"),
    ("avg_pool2d_backward-grad", lambda o: o.avg_pool2d_backward(P[:, :3], X.shape, False, *AVERAGE), "grad"),
    ("adaptive-output-1", lambda o: o.adaptive_avg_pool2d(X, (2,)), "output_size"),
    ("adaptive_backward-grad", lambda o: o.adaptive_avg_pool2d_backward(P, X.shape, False, (3, 3)), "grad"),
    ("adaptive_backward-size-2^60", lambda o: o.adaptive_avg_pool2d_backward(P, (1, 4, 2**60, 8), False, (4, 4)),
     "size"),
    ("norm-size-0", lambda o: o.local_response_norm(X, 0, *NORM[1:]), "size"),
    ("norm-groups-0", lambda o: o._local_response_norm(X, *NORM[:4], 0, False), "groups"),
    ("norm-input-3d", lambda o: o.local_response_norm(X[0], *NORM), "4D input"),
    ("norm_backward-grad-size", lambda o: o.local_response_norm_backward(X[:, :3], X, *NORM), "grad"),
    ("norm_backward-grad-dtype", lambda o: o.local_response_norm_backward(X.double(), X, *NORM), "grad"),
    ("norm_backward-grad-meta", lambda o: o.local_response_norm_backward(META, X, *NORM), "x on cpu"),
    ("sparse-counts-negative", lambda o: o.sparse_conv2d(X, S, None, (5, -1), *LINKS[1:]), "counts"),
    ("sparse-counts-overflow", lambda o: o.sparse_conv2d(X, S, None, (2**62, 2**62), *LINKS[1:]), "counts"),
    ("sparse-counts-few", lambda o: o.sparse_conv2d(X, S, None, (2, 1), *LINKS[1:]), "counts"),
    ("sparse-stride-1", lambda o: o.sparse_conv2d(X, S, None, *LINKS[:2], (1,), ZERO), "stride"),
    ("sparse_backward_input-size-3", lambda o: o.sparse_conv2d_backward_input(Y[:, :2], S, (4, 8, 8), *LINKS), "input"),
    ("sparse_backward_input-grad", lambda o: o.sparse_conv2d_backward_input(Y, S, X.shape, *LINKS), "grad"),
    ("sparse_backward_input-negative", lambda o: o.sparse_conv2d_backward_input(Y[:0, :2], S, (-1, 4, 8, 8), *LINKS),
     "grad|size"),
    ("sparse_backward_weight-kernel-2^31", lambda o: o.sparse_conv2d_backward_weight(Y[:, :2], X, (2**31 - 1,
     2**31 - 1), *LINKS[:3], (LARGE, LARGE)), "overflows"),
    ("sparse_backward_weight-kernel-1", lambda o: o.sparse_conv2d_backward_weight(Y[:, :2], X, (3,), *LINKS),
     "kernel_size"),
    ("subsample-kernel-1", lambda o: o.subsample2d(X, V, None, (2,), TWO, 1.0), "kernel_size"),
    ("subsample-weight-meta", lambda o: o.subsample2d(X, V.to("meta"), None, *SUBSAMPLE), "weight on meta"),
    ("subsample_backward_input-size", lambda o: o.subsample2d_backward_input(P, V, (1, 4, 8), *SUBSAMPLE), "input"),
    ("subsample_backward_input-grad", lambda o: o.subsample2d_backward_input(P[:, :3], V, X.shape, *SUBSAMPLE), "grad"),
    ("subsample_backward_weight-dtype", lambda o: o.subsample2d_backward_weight(P.double(), X, *SUBSAMPLE), "grad"),
]  # fmt: skip


def _table(face: str, namespace, calls) -> list:
    return [
        (f"{face}-{name}", lambda call=call: call(namespace), argument, error[0] if error else RuntimeError)
        for name, call, argument, *error in calls
    ]


TABLES = _table("functional", fastcnn.functional, FUNCTIONAL) + _table("op", torch.ops.fastcnn, OPS)

# What fastcnn's functions take beyond torch.nn.functional's.
EXTRA = {
    "conv2d": {"activation", "accuracy", "residual"},
    "local_response_norm": {"alpha_mode", "groups", "activation"},
}

# Where torch.nn.functional raises another class, or nothing (None), and why fastcnn does not follow.
DIFFERENT = {
    "conv2d-reach-2^31": (None, "torch looks at the taps inside the input only; fastcnn copies what a window spans"),
    "conv2d-reach-2^27": (None, "as above: the copy would take terabytes"),
    "conv2d-weight-sparse": (RuntimeError, "torch speaks of memory formats; the dispatcher names the backend"),
    "conv2d-weight-meta": (None, "torch returns memory that nobody has written"),
    "conv2d-bias-meta": (None, "as above"),
}


class _Called(Exception):
    """Carries which function is called, and with which keywords."""


class _Recorder:
    def __getattr__(self, function):
        def called(*args, **keywords):
            raise _Called(function, keywords)

        return called


def _has_stock(call) -> bool:
    with pytest.raises(_Called) as recorded:
        call(_Recorder())
    function, keywords = recorded.value.args
    return hasattr(torch.nn.functional, function) and not EXTRA.get(function, set()) & keywords.keys()


STOCK = [
    pytest.param(name, call, error[0] if error else RuntimeError, id=name)
    for name, call, _, *error in FUNCTIONAL
    if _has_stock(call)
]


@pytest.mark.parametrize(("call", "argument", "error"), [pytest.param(*rest, id=name) for name, *rest in TABLES])
def test_is_refused(call, argument, error):
    with pytest.raises(error, match=argument) as refused:
        call()
    assert type(refused.value) is error  # NotImplementedError is a RuntimeError


@pytest.mark.parametrize(("name", "call", "error"), STOCK)
def test_torch_refuses_alike(name, call, error):
    error, _ = DIFFERENT.get(name, (error, ""))
    if error is None:
        call(torch.nn.functional)
        return
    with pytest.raises(error) as refused:
        call(torch.nn.functional)
    assert type(refused.value) is error


def test_differences_are_in_the_table():
    assert DIFFERENT.keys() <= {param.id for param in STOCK}


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


def test_poison_reaches_native_allocations():
    """Memory for the ops' outputs is poisoned (conftest.py), too: else no test could see an element left out."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    size, stride = (ctypes.c_int64 * 1)(1000), (ctypes.c_int64 * 1)(1)
    handle, data = ctypes.c_void_p(), ctypes.c_void_p()
    float32, cpu = library.aoti_torch_dtype_float32(), library.aoti_torch_device_type_cpu()
    made = library.aoti_torch_empty_strided(ctypes.c_int64(1), size, stride, float32, cpu, 0, ctypes.byref(handle))
    assert made == 0
    library.aoti_torch_get_data_ptr(handle, ctypes.byref(data))
    values = torch.tensor((ctypes.c_float * 1000).from_address(data.value)[:])
    library.aoti_torch_delete_tensor_object(handle)
    assert values.isnan().all()


# Calls that are odd, but must work. SAME: functions of one input that torch has, too.
SAME = {
    "conv2d": lambda F, x: F.conv2d(x, W.to(x.dtype), B.to(x.dtype), 1, 1),
    "conv2d-1x1": lambda F, x: F.conv2d(x, W[:, :, :1, :1].to(x.dtype)),
    "conv2d-depthwise": lambda F, x: F.conv2d(x, W[:4, :1].to(x.dtype), None, 1, 1, 1, 4),
    "conv2d-grouped": lambda F, x: F.conv2d(x, W[:4, :2].to(x.dtype), None, 2, 1, 1, 2),
    "max_pool2d": lambda F, x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d-indices": lambda F, x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[1].to(x.dtype),
    "avg_pool2d": lambda F, x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda F, x: F.adaptive_avg_pool2d(x, (3, 5)),
    "local_response_norm": lambda F, x: F.local_response_norm(x, 3, 0.1),
}


def _strided(name: str) -> torch.Tensor:
    """A tensor of size (2, 4, 8, 8) whose elements do not lie side by side."""
    base = torch.randn(20000, dtype=torch.float64)
    return {
        "gaps": lambda: base[: 4 * 8 * 16 * 16].view(4, 8, 16, 16)[::2, ::2, ::2, ::2],
        "expanded": lambda: base[:8].view(1, 1, 1, 8).expand(2, 4, 8, 8),
        "one-element": lambda: base[0].expand(2, 4, 8, 8),
        "overlapping-rows": lambda: base.as_strided((2, 4, 8, 8), (50, 20, 3, 1)),
        "overlapping-images": lambda: base.as_strided((2, 4, 8, 8), (8, 64, 8, 1)),
        "permuted": lambda: base[:512].view(8, 4, 2, 8).permute(2, 1, 3, 0),
        "offset": lambda: base[3 : 3 + 512].view(2, 8, 8, 4).permute(0, 3, 1, 2),
        "mapped-last": lambda: base[: 2 * 8 * 8 * 8].view(2, 8, 8, 8).permute(0, 3, 1, 2)[:, 1:5],
    }[name]()


STRIDES = (
    "gaps", "expanded", "one-element", "overlapping-rows", "overlapping-images", "permuted", "offset", "mapped-last"
)  # fmt: skip


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("name", SAME)
def test_any_strides(name, strides):
    """As stock PyTorch on a contiguous copy, forward and backward, with a gradient that is expanded."""
    x = _strided(strides)
    theirs = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    mine = x.detach().requires_grad_()
    got, want = SAME[name](fastcnn.functional, mine), SAME[name](torch.nn.functional, theirs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, check_stride=False)
    if want.requires_grad:
        (dx,), (expected,) = torch.autograd.grad(got.sum(), mine), torch.autograd.grad(want.sum(), theirs)
        torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-12, check_stride=False)


@pytest.mark.parametrize("strides", STRIDES)
def test_any_strides_of_other_tensors(strides):
    """Weight, bias, residual and gradient with odd strides, on the ops themselves."""
    o, odd = torch.ops.fastcnn, _strided(strides)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    weight, bias = odd[:, :, :3, :3], odd[0, 0, 0, ::4]
    residual = odd[:, :2, :6, :6]
    copies = [t.clone(memory_format=torch.contiguous_format) for t in (weight, bias, residual)]

    def equal(op, *mine):
        want = op(*(t.clone(memory_format=torch.contiguous_format) for t in mine))
        torch.testing.assert_close(op(*mine), want, rtol=1e-12, atol=1e-12, check_stride=False)

    equal(lambda w, b, r: o.conv2d(x, w, b, r, *CONV), weight, bias, residual)
    want = torch.nn.functional.conv2d(x, *copies[:2]) + copies[2]
    torch.testing.assert_close(o.conv2d(x, weight, bias, residual, *CONV), want, check_stride=False)
    equal(lambda g, w: o.conv2d_backward_input(g, w, x.shape, *CONV_BACKWARD), residual, weight)
    equal(lambda g: o.conv2d_backward_weight(g, x, (2, 4, 3, 3), *CONV_BACKWARD), residual)
    equal(lambda w: o._pack_weight(w, 1), weight)
    equal(lambda w: o.sparse_conv2d(x, w, None, *LINKS), odd[0, :, :3, :3])
    equal(lambda g: o.sparse_conv2d_backward_weight(g, x, (3, 3), *LINKS), residual)
    equal(lambda w, b: o.subsample2d(x, w, b, *SUBSAMPLE), odd[0, :, 0, 0], odd[1, :, 0, 0])
    equal(lambda g: o.local_response_norm_backward(g, x, *NORM), odd)
    equal(lambda g: o.avg_pool2d_backward(g, x.shape, False, *AVERAGE), odd[..., ::2, 1::2])
    equal(lambda g, at: o.max_pool2d_backward(g, at, x.shape, *POOL), odd[..., ::2, ::2], AT[:, :1].expand(2, 4, 4, 4))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", SAME)
def test_nan_and_infinity(name, value, layout):
    """Reach exactly the elements that they reach in stock PyTorch, which they do by IEEE arithmetic."""
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64).to(memory_format=layout)
    x[0, 1, 3, 3] = x[1, 2, 0, 7] = value
    x[1, 3, 0, 7] = -value
    got, want = SAME[name](fastcnn.functional, x), SAME[name](torch.nn.functional, x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True, check_stride=False)


@pytest.mark.parametrize(("groups", "layout", "skips"), [
    (1, torch.contiguous_format, False),
    (1, torch.channels_last, False),
    (4, torch.contiguous_format, False),
    (4, torch.channels_last, True),
])  # fmt: skip
def test_infinite_weight_at_a_border(groups, layout, skips):
    """Known difference: most kernels multiply the padding's zeros beside a row by the border taps, as the formula over
    a padded input does, so an infinite weight there gives NaN. Stock PyTorch's kernels may skip those taps, and so
    does fastcnn's for groups of up to 8 channels in channels_last. Away from the border all agree."""
    x, weight = torch.ones(1, 4, 5, 5).to(memory_format=layout), torch.ones(4, 4 // groups, 3, 3)
    weight[:, :, 0, 0] = torch.inf
    got = fastcnn.functional.conv2d(x, weight, None, 1, 1, 1, groups)
    padded = convolution.reference(x, weight, None, None, ONE, ONE, ONE, groups, False).float()
    assert padded[..., 1:, 0].isnan().all()
    assert got[..., 1:, 1:].isposinf().all()
    assert padded[..., 1:, 1:].isposinf().all()
    assert (got[..., 1:, 0].isfinite() if skips else got[..., 1:, 0].isnan()).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), [
    ((2, 5, 9, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 17, 9, 9), (2, 3), (3, 1), (0, 1), (2, 3)),
    ((1, 3, 20, 20), (17, 16), (1, 2), (8, 8), (1, 1)),  # int32 positions
])  # fmt: skip
def test_argmax_that_forward_never_writes(size, kernel, stride, padding, dilation, dtype, layout):
    """Positions behind the window are refused; those in it but outside the input are left out."""
    o, geometry = torch.ops.fastcnn, (kernel, stride, padding, dilation, False)
    x = torch.randn(size).to(dtype).to(memory_format=layout)
    _, argmax = o.max_pool2d(x, *geometry)
    g = torch.randint(-4, 5, argmax.shape).to(dtype).to(memory_format=layout)  # sums are exact
    places = kernel[0] * kernel[1]
    wrong = torch.randint(0, places, argmax.shape, dtype=argmax.dtype).to(memory_format=layout)

    dx, y, outside = torch.zeros(size, dtype=dtype), torch.zeros(argmax.shape, dtype=dtype), 0
    for n, c, p, q in itertools.product(*map(range, argmax.shape)):
        i, j = divmod(int(wrong[n, c, p, q]), kernel[1])
        row, column = p * stride[0] - padding[0] + i * dilation[0], q * stride[1] - padding[1] + j * dilation[1]
        if 0 <= row < size[2] and 0 <= column < size[3]:
            dx[n, c, row, column] += g[n, c, p, q]
            y[n, c, p, q] = x[n, c, row, column]
        else:
            outside += 1
    assert outside
    assert o.max_pool2d_backward(g, wrong, size, *geometry).equal(dx)
    assert o.max_pool2d_gather(x, wrong, *geometry).equal(y)

    info = torch.iinfo(argmax.dtype)
    for behind in {places, info.max, info.min} - {0}:
        worse = argmax.clone()
        worse[-1, -1, -1, -1] = behind
        with pytest.raises(RuntimeError, match=f"argmax below {places}"):
            o.max_pool2d_backward(g, worse, size, *geometry)
        with pytest.raises(RuntimeError, match=f"argmax below {places}"):
            o.max_pool2d_gather(x, worse, *geometry)


@pytest.mark.parametrize("name", SAME)
def test_meta_and_integer_tensors_are_stock(name):
    """What the kernels do not compute runs in PyTorch: a meta tensor gives a shape."""
    assert SAME[name](fastcnn.functional, META).device.type == "meta"
    if name.startswith("max"):
        assert SAME[name](fastcnn.functional, INT).equal(SAME[name](torch.nn.functional, INT))


if __name__ == "__main__":
    for name, call, *_ in TABLES:
        try:
            call()
        except Exception as error:
            print(name, type(error).__name__, flush=True)
