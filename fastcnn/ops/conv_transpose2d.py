"""conv_transpose2d: what its C++ half (csrc/ops/conv_transpose2d.cpp) cannot say through the stable ABI."""

import itertools
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from . import conv2d
from ._define import Differentiable, autocast, fold, memory_format, register, register_fake
from ._face import autocast_cast, batched, dispatch, native, pair, refuse, together
from ._policy import by_policy


def output_size(size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> int:
    """(size-1)*stride - 2*padding + dilation*(kernel-1) + output_padding + 1."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)
    forward, raw = ops.conv_transpose2d.default, ops._conv_transpose2d.default

    def fake(x, weight, bias, stride, padding, output_padding, dilation, groups):
        torch._check(
            x.dim() == 4 and weight.dim() == 4,
            lambda: f"conv_transpose2d: expected 4D input and weight, but got {list(x.shape)} and {list(weight.shape)}",
        )
        torch._check(
            x.shape[1] == weight.shape[0],
            lambda: (
                f"conv_transpose2d: Given transposed=1, weight of size {list(weight.shape)}, expected "
                f"input{list(x.shape)} to have {weight.shape[0]} channels, but got {x.shape[1]} channels instead"
            ),
        )
        geometry = (stride, padding, output_padding, dilation)
        out = [output_size(x.shape[2 + d], weight.shape[2 + d], *(g[d] for g in geometry)) for d in range(2)]
        formats = (memory_format(x), memory_format(weight))
        return torch.empty(
            (x.shape[0], weight.shape[1] * groups, *out),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if torch.channels_last in formats else torch.contiguous_format,
        )

    register_fake(forward._name, fake)
    register_fake(raw._name, fake)
    torch.library.register_vmap(raw, fold((0,))(raw))
    autocast(namespace, "conv_transpose2d", forward)

    def save(ctx, inputs, output):
        x, weight, bias, *ctx.geometry = inputs
        ctx.bias = bias is not None
        ctx.save_for_backward(x, weight)

    def grad(ctx, g):
        x, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        stride, padding, output_padding, dilation, groups = ctx.geometry
        db = g.sum((0, 2, 3)) if ctx.bias and need[2] else None
        # An output_padding of stride or more (dilation permits it) leaves room for further windows, of input zero.
        rows, columns = (extra // s for extra, s in zip(output_padding, stride))
        geometry = (stride, padding, dilation, groups)
        dx = dw = None
        if need[0]:
            dx = conv2d.ops.conv(g, weight, None, None, *geometry, False, 0)
            if rows or columns:
                dx = dx[:, :, : x.shape[2], : x.shape[3]]
        if need[1]:
            if rows or columns:
                x = torch.nn.functional.pad(x, (0, columns, 0, rows))
            dw = conv2d.ops.backward_weight(x, g, weight.shape, *geometry)
        return dx, dw, db, *[None] * 5

    def flops(x, weight, *rest, out_shape=None, **kwargs):
        return conv_flop_count(list(x), list(weight), list(out_shape), transposed=True)

    register_flop_formula([ops.conv_transpose2d, ops._conv_transpose2d])(flops)
    return SimpleNamespace(op=Differentiable(forward, save, grad, fold((0,)), raw=raw), raw=raw)


def reference(x, weight, bias, stride, padding, output_padding, dilation, groups):
    """y[n, o, h*sh-ph+i*dh, v*sw-pw+j*dw] = b[o] + sum over c in the group of o, h, v, i, j of w[c,o,i,j] * x[n,c,h,v]
    in float64; what falls outside y is dropped."""
    x, weight = x.double(), weight.double().unflatten(0, (groups, -1))
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    n, _, h, w = x.shape
    outputs, kh, kw = weight.shape[2:]
    oh = output_size(h, kh, sh, ph, output_padding[0], dh)
    ow = output_size(w, kw, sw, pw, output_padding[1], dw)
    y = torch.zeros(n, groups * outputs, oh + 2 * ph, ow + 2 * pw, dtype=torch.float64)
    for i, j in itertools.product(range(kh), range(kw)):
        taps = torch.einsum("ngchw,gco->ngohw", x.unflatten(1, (groups, -1)), weight[..., i, j]).flatten(1, 2)
        y[:, :, i * dh : i * dh + (h - 1) * sh + 1 : sh, j * dw : j * dw + (w - 1) * sw + 1 : sw] += taps
    y = y[:, :, ph : ph + oh, pw : pw + ow]
    return y if bias is None else y + bias.double().view(-1, 1, 1)


ops = register(define)


@by_policy
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Transposed convolution with torch.nn.functional.conv_transpose2d's arguments: the adjoint of conv2d.

    y[n, o, h*S-P+i*D, v*S-P+j*D] += w[c,o,i,j] * x[n,c,h,v], and b[o]

    input: (N, C, H, W) or (C, H, W); weight: (C, O/groups, KH, KW); bias: (O,); all of one floating dtype. float16 and
    bfloat16 are accumulated in float32. output_padding: rows and columns appended to the output, fewer than stride or
    dilation. Returns (N, O, OH, OW) with OH = (H-1)*S - 2*P + D*(KH-1) + output_padding + 1, channels_last where input
    or weight is. RuntimeError on shapes that do not fit.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            conv_transpose2d, (input, weight, bias), input, weight, bias, stride, padding, output_padding, groups,
            dilation,
        )  # fmt: skip
    if not native(input, "conv_transpose2d"):
        return torch.nn.functional.conv_transpose2d(
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    if weight is None or not together(input, weight, bias):
        refuse("conv_transpose2d", input, weight=weight, bias=bias)
    input, weight, bias = autocast_cast(input, weight, bias)
    x = batched("conv_transpose2d", input)
    arguments = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    geometry = [pair("conv_transpose2d", name, v) for name, v in arguments.items()]
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    y = dispatch(ops.op, ops.raw, needs_grad, x, weight, bias, *geometry, groups)
    return y if x is input else y.squeeze(0)
