"""max_unpool2d: what its C++ half (csrc/ops/max_unpool2d.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function

from ._define import Differentiable, fold, memory_format, register, register_fake
from ._face import batched, dispatch, native, pair, refuse, together
from ._policy import by_policy


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def fake(x, indices, output_size, sum):
        torch._check(
            x.dim() == 4, lambda: f"max_unpool2d: expected 4D input (N, C, H, W), but got input of size {list(x.shape)}"
        )
        size = (*x.shape[:2], *output_size)
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))

    def gather_fake(x, indices):
        return torch.empty_like(indices, dtype=x.dtype, memory_format=memory_format(indices))

    register_fake(f"{namespace}::max_unpool2d", fake)
    register_fake(f"{namespace}::_max_unpool2d", fake)
    register_fake(f"{namespace}::max_unpool2d_gather", gather_fake)
    torch.library.register_vmap(ops._max_unpool2d.default, fold((0, 1))(ops._max_unpool2d.default))

    def save(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    def grad(ctx, g):
        return gather(g, *ctx.saved_tensors), None, None, None

    def save_gather(ctx, inputs, output):
        x, indices = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(indices)

    def grad_gather(ctx, g):
        return unpool(g, *ctx.saved_tensors, ctx.size, True), None

    unpool = Differentiable(ops.max_unpool2d.default, save, grad, fold((0, 1)), raw=ops._max_unpool2d.default)
    gather = Differentiable(ops.max_unpool2d_gather.default, save_gather, grad_gather, fold((0, 1)))
    return SimpleNamespace(unpool=unpool, gather=gather, raw=ops._max_unpool2d.default)


def reference(x, indices, output_size, sum):
    """y[n,c,indices[n,c,i]] = x[n,c,i], the last i winning or all of them added, in float64."""
    n, c = x.shape[:2]
    y = torch.zeros(n, c, output_size[0] * output_size[1], dtype=torch.float64)
    for values, at, plane in zip(x.double().flatten(0, 1), indices.flatten(0, 1), y.flatten(0, 1)):
        for v, i in zip(values.flatten(), at.flatten()):
            plane[i] = plane[i] + v if sum else v
    return y.unflatten(2, tuple(output_size))


ops = register(define)


@by_policy
def max_unpool2d(input, indices, kernel_size, stride=None, padding=0, output_size=None, *, overlap="assign"):
    """Partial inverse of max pooling, with torch.nn.functional.max_unpool2d's arguments and rules.

    Puts each value of input where indices, h*W+w of max_pool2d's return_indices, says its maximum was, among zeros.
    Where windows overlapped, several may name one place. overlap 'assign': the last in raster order is kept, in every
    run; 'sum': all are added (in float32 for half precision), which makes this the adjoint of max pooling. As in
    PyTorch, every input's gradient is that of its place, also where another input was kept.

    input, indices: (N, C, H, W) or (C, H, W), indices int64. Returns (N, C, OH, OW) in input's dtype and memory format:
    (H-1)*stride - 2*padding + kernel_size, or output_size, which may differ from it by less than stride. ValueError on
    an output_size that does, and on an unknown overlap; RuntimeError on shapes and, on a CPU, on an index outside the
    output; a GPU leaves its value out, since saying so would have to wait for the kernel.
    """
    if has_torch_function((input, indices)):
        return handle_torch_function(
            max_unpool2d, (input, indices), input, indices, kernel_size, stride, padding, output_size, overlap=overlap
        )
    if overlap not in ("assign", "sum"):
        raise ValueError(f"max_unpool2d: expected overlap to be 'assign' or 'sum', but got {overlap!r}")
    kernel = pair("max_unpool2d", "kernel_size", kernel_size)
    strides = kernel if stride is None else pair("max_unpool2d", "stride", stride)
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"Input to max_unpooling2d should be a 3d or 4d Tensor, but got a tensor with {input.dim()} dimensions."
        )
    if input.shape != indices.shape:
        raise RuntimeError(
            "Expected shape of indices to be same as that of the input tensor "
            f"({list(input.shape)}) but got indices tensor with shape: {list(indices.shape)}"
        )
    size = unpooled_size(input, kernel, strides, pair("max_unpool2d", "padding", padding), output_size)
    if not native(input, "max_unpool2d"):
        return stock(input, indices, kernel, strides, padding, size, overlap)
    if not together(input, indices):
        refuse("max_unpool2d", input, indices=indices)
    if indices.dtype != torch.int64:
        raise RuntimeError(f"elements in indices should be type int64 but got: {indices.dtype}")
    if 0 in input.shape[-3:]:
        raise RuntimeError(
            f"max_unpool2d: Expected input to have non-zero size for non-batch dimensions, but got {list(input.shape)}"
        )
    x = batched("max_unpool2d", input)
    at = indices if x is input else indices.unsqueeze(0)
    y = dispatch(ops.unpool, ops.raw, x.requires_grad, x, at, size, overlap == "sum")
    return y if x is input else y.squeeze(0)


def unpooled_size(input, kernel, stride, padding, output_size):
    """The output's height and width, by torch's rules."""
    default = [(input.shape[d - 2] - 1) * stride[d] + kernel[d] - 2 * padding[d] for d in (0, 1)]
    if output_size is None:
        size = default
    else:
        size = list(output_size[2:] if len(output_size) == 4 else output_size)
        if len(size) != 2:
            raise ValueError(
                "output_size should be a sequence containing 2 or 4 elements, "
                f"but it has a length of '{len(output_size)}'"
            )
        for d in (0, 1):
            low, high = default[d] - stride[d], default[d] + stride[d]
            if not low < size[d] < high:
                raise ValueError(f'invalid output_size "{tuple(size)}" (dim {d} must be between {low} and {high})')
    for d in (0, 1):
        if size[d] < 0:
            raise ValueError(
                "max_unpooling: output_size must contain non-negative spatial dimensions, "
                f"but got output_size[{d}]={size[d]}"
            )
    return tuple(size)


def stock(input, indices, kernel, stride, padding, size, overlap):
    """The same from PyTorch's operations."""
    if overlap == "assign":
        return torch.nn.functional.max_unpool2d(input, indices, kernel, stride, padding, size)
    y = input.new_zeros(*input.shape[:-2], size[0] * size[1])
    return y.scatter_add(-1, indices.flatten(-2), input.flatten(-2)).unflatten(-1, size)
