"""lrn_max_pool2d: what its C++ half (csrc/ops/lrn_max_pool2d.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import local_response_norm as norm
from . import max_pool2d as pool
from ._define import Differentiable, fold, memory_format, register, register_fake
from ._face import batched, dispatch, native, pair, recording, tracing
from ._policy import by_policy
from ._pool import output_size, pooled

NORM_ARGUMENTS = 6  # size, alpha, beta, k, groups, relu; max pooling's five follow


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def values(x, *args):
        kernel_size, stride, padding, dilation, ceil_mode = args[NORM_ARGUMENTS:]
        size = [
            output_size(x.shape[2 + d], kernel_size[d], stride[d], padding[d], dilation[d], ceil_mode) for d in (0, 1)
        ]
        return pooled("lrn_max_pool2d", x, size)

    def both(x, *args):
        y = values(x, *args)
        wide = args[NORM_ARGUMENTS][0] * args[NORM_ARGUMENTS][1] > 256
        return y, torch.empty_like(y, dtype=torch.int32 if wide else torch.uint8)

    def backward_fake(grad, argmax, x, *args):
        return torch.empty_like(x, memory_format=memory_format(x))

    register_fake(f"{namespace}::_lrn_max_pool2d_values", values)
    register_fake(f"{namespace}::_lrn_max_pool2d", both)
    register_fake(f"{namespace}::lrn_max_pool2d", both)
    register_fake(f"{namespace}::lrn_max_pool2d_backward", backward_fake)
    for op in (ops._lrn_max_pool2d.default, ops._lrn_max_pool2d_values.default):
        torch.library.register_vmap(op, fold((0,))(op))

    def save(ctx, inputs, output):
        x, *ctx.args = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], x)

    def grad(ctx, g, _):
        return (None if g is None else backward(g, *ctx.saved_tensors, *ctx.args)), *[None] * len(ctx.args)

    def save_backward(ctx, inputs, output):
        g, argmax, x, *ctx.args = inputs
        ctx.save_for_backward(g, argmax, x)

    def grad_backward(ctx, v):
        g, argmax, x = ctx.saved_tensors
        norm_args, geometry = ctx.args[:NORM_ARGUMENTS], ctx.args[NORM_ARGUMENTS:]
        unpooled = pool.ops.backward(g, argmax, x.shape, *geometry)
        dg, dx = norm.second_order(v, unpooled, x, *norm_args)
        return pool.ops.gather(dg, argmax, *geometry), None, dx, *[None] * len(ctx.args)

    both_ways = Differentiable(ops.lrn_max_pool2d.default, save, grad, fold((0,)), raw=ops._lrn_max_pool2d.default)
    backward = Differentiable(ops.lrn_max_pool2d_backward.default, save_backward, grad_backward, fold((0, 1, 2)))
    return SimpleNamespace(
        pool=both_ways, backward=backward, raw=ops._lrn_max_pool2d.default, values=ops._lrn_max_pool2d_values.default
    )


def reference(x, *args):
    """The maxima of local_response_norm's formula over max_pool2d's windows, and where they are, in float64."""
    return pool.reference(norm.reference(x, *args[:NORM_ARGUMENTS]), *args[NORM_ARGUMENTS:])


ops = register(define)


@by_policy
def lrn_max_pool2d(
    input,
    size,
    alpha=1e-4,
    beta=0.75,
    k=1.0,
    kernel_size=3,
    stride=2,
    padding=0,
    dilation=1,
    ceil_mode=False,
    *,
    alpha_mode="mean",
    groups=1,
    activation=None,
):
    """max_pool2d(local_response_norm(input)), the pair of Krizhevsky et al. 2012, in one pass over the input.

    The normalised values are never written as a whole; the results are those of the two functions, to the bit. Their
    arguments, defaults and errors hold here, save that a 3-D input is (C, H, W), as max_pool2d has it, and that the
    window is AlexNet's unless told otherwise (stride None: kernel_size).

    input: (N, C, H, W) or (C, H, W), floating point. Returns (N, C, OH, OW) in input's dtype and memory format.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            lrn_max_pool2d,
            (input,),
            input,
            size,
            alpha,
            beta,
            k,
            kernel_size,
            stride,
            padding,
            dilation,
            ceil_mode,
            alpha_mode=alpha_mode,
            groups=groups,
            activation=activation,
        )
    x = batched("lrn_max_pool2d", input)
    norm.check("lrn_max_pool2d", x, size, alpha_mode, groups, activation)
    if not native(x, "lrn_max_pool2d"):
        y = norm.stock(x, size, alpha, beta, k, alpha_mode, groups, activation)
        y = torch.nn.functional.max_pool2d(y, kernel_size, stride, padding, dilation, ceil_mode)
        return y if x is input else y.squeeze(0)
    kernel = pair("lrn_max_pool2d", "kernel_size", kernel_size)
    args = (
        size,
        alpha / size if alpha_mode == "mean" else alpha,
        beta,
        k,
        groups,
        activation == "relu",
        kernel,
        kernel if stride is None else pair("lrn_max_pool2d", "stride", stride),
        pair("lrn_max_pool2d", "padding", padding),
        pair("lrn_max_pool2d", "dilation", dilation),
        ceil_mode,
    )
    if tracing() or (x.requires_grad and recording()):
        y, _ = dispatch(ops.pool, ops.raw, x.requires_grad, x, *args)
    else:
        y = ops.values(x, *args)
    return y if x is input else y.squeeze(0)
