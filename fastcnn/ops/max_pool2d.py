"""max_pool2d: what its C++ half (csrc/ops/max_pool2d.cpp) cannot say through the stable ABI."""

import itertools
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._define import Differentiable, fold, memory_format, register, register_fake
from ._face import batched, dispatch, native, pair, recording, tracing
from ._policy import by_policy
from ._pool import output_size, pooled


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def values(x, kernel_size, stride, padding, dilation, ceil_mode):
        size = [
            output_size(x.shape[2 + d], kernel_size[d], stride[d], padding[d], dilation[d], ceil_mode) for d in (0, 1)
        ]
        return pooled("max_pool2d", x, size)

    def both(x, kernel_size, *geometry):
        y = values(x, kernel_size, *geometry)
        wide = kernel_size[0] * kernel_size[1] > 256
        return y, torch.empty_like(y, dtype=torch.int32 if wide else torch.uint8)

    def backward_fake(grad, argmax, size, *geometry):
        return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(argmax))

    def gather_fake(x, argmax, *geometry):
        return torch.empty_like(argmax, dtype=x.dtype)

    def values_fake(x, geometry, ceil_mode):
        return values(x, geometry[:2], geometry[2:4], geometry[4:6], geometry[6:], ceil_mode)

    register_fake(f"{namespace}::_max_pool2d_values", values_fake)
    register_fake(f"{namespace}::_max_pool2d", both)
    register_fake(f"{namespace}::max_pool2d", both)
    register_fake(f"{namespace}::max_pool2d_backward", backward_fake)
    register_fake(f"{namespace}::max_pool2d_gather", gather_fake)
    for op in (ops._max_pool2d.default, ops._max_pool2d_values.default):
        torch.library.register_vmap(op, fold((0,))(op))

    # The three are closed under differentiation: pool -> backward -> gather -> backward.
    def save(ctx, inputs, output):
        x, *ctx.geometry = inputs
        ctx.size = x.shape
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    def grad(ctx, g, _):
        none = [None] * len(ctx.geometry)
        return (None if g is None else backward(g, *ctx.saved_tensors, ctx.size, *ctx.geometry)), *none

    def save_backward(ctx, inputs, output):
        _, argmax, _, *ctx.geometry = inputs
        ctx.save_for_backward(argmax)

    def grad_backward(ctx, g):
        return gather(g, *ctx.saved_tensors, *ctx.geometry), None, None, *[None] * len(ctx.geometry)

    def save_gather(ctx, inputs, output):
        x, argmax, *ctx.geometry = inputs
        ctx.size = x.shape
        ctx.save_for_backward(argmax)

    def grad_gather(ctx, g):
        return backward(g, *ctx.saved_tensors, ctx.size, *ctx.geometry), None, *[None] * len(ctx.geometry)

    pool = Differentiable(ops.max_pool2d.default, save, grad, fold((0,)), raw=ops._max_pool2d.default)
    backward = Differentiable(ops.max_pool2d_backward.default, save_backward, grad_backward, fold((0, 1), size=2))
    gather = Differentiable(ops.max_pool2d_gather.default, save_gather, grad_gather, fold((0, 1)))
    return SimpleNamespace(
        pool=pool, backward=backward, gather=gather, raw=ops._max_pool2d.default, values=ops._max_pool2d_values.default
    )


def reference(x, kernel_size, stride, padding, dilation=(1, 1), ceil_mode=False):
    """y[n,c,p,q] = max over i, j of x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw], positions outside x skipped.

    Float64 values and the window position i*kw+j of the first maximum (the last NaN where there is one).
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel_size, stride, padding, dilation
    n, c, h, w = x.shape
    oh = output_size(h, kh, sh, ph, dh, ceil_mode)
    ow = output_size(w, kw, sw, pw, dw, ceil_mode)
    y = torch.full((n, c, oh, ow), -torch.inf, dtype=torch.float64)
    argmax = torch.full((n, c, oh, ow), -1)
    for i, j in itertools.product(range(kh), range(kw)):
        rows, columns = torch.arange(oh) * sh - ph + i * dh, torch.arange(ow) * sw - pw + j * dw
        inside = ((rows >= 0) & (rows < h))[:, None] & (columns >= 0) & (columns < w)
        v = x.double()[:, :, rows.clamp(0, h - 1)][..., columns.clamp(0, w - 1)]
        take = inside & ((v > y) | v.isnan() | (argmax < 0))
        y, argmax = torch.where(take, v, y), torch.where(take, i * kw + j, argmax)
    return y, argmax


ops = register(define)


@by_policy
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Max pooling with torch.nn.functional.max_pool2d's arguments and rules (Krizhevsky et al. 2012, section 3.4:
    overlapping where stride < kernel_size). NaN wins; the gradient goes to the first maximum of a window.

    input: (N, C, H, W) or (C, H, W), floating point. Returns (N, C, OH, OW) in input's dtype and memory format,
    with return_indices also the int64 positions h*W+w of the maxima. RuntimeError on a shape that torch refuses.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    if not native(input, "max_pool2d") or input.dim() not in (3, 4):  # torch says what is wrong with other dimensions
        return torch.nn.functional.max_pool2d(
            input, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=return_indices
        )
    kernel = pair("max_pool2d", "kernel_size", kernel_size)
    geometry = (
        kernel,
        kernel if stride is None or stride == () or stride == [] else pair("max_pool2d", "stride", stride),
        pair("max_pool2d", "padding", padding),
        pair("max_pool2d", "dilation", dilation),
        ceil_mode,
    )
    x = batched("max_pool2d", input)
    if not (return_indices or tracing() or (x.requires_grad and recording())):
        y = ops.values(x, (*kernel, *geometry[1], *geometry[2], *geometry[3]), ceil_mode)
        return y if x is input else y.squeeze(0)
    y, argmax = dispatch(ops.pool, ops.raw, x.requires_grad, x, *geometry)
    if return_indices:
        indices = flat_indices(argmax, x.shape[3], *geometry)
        return (y, indices) if x is input else (y.squeeze(0), indices.squeeze(0))
    return y if x is input else y.squeeze(0)


def flat_indices(argmax, width, kernel_size, stride, padding, dilation, ceil_mode):
    """Window positions i*kw+j as positions h*W+w in the input plane, int64."""
    kw = kernel_size[1]
    rows = torch.arange(argmax.shape[2], device=argmax.device).unsqueeze(1) * stride[0] - padding[0]
    columns = torch.arange(argmax.shape[3], device=argmax.device) * stride[1] - padding[1]
    at = argmax.long()
    return (rows + at // kw * dilation[0]) * width + columns + at % kw * dilation[1]
