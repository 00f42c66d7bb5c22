"""avg_pool2d: what its C++ half (csrc/ops/avg_pool2d.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._define import register
from ._face import batched, dispatch, native, pair
from ._policy import by_policy
from ._pool import average, output_size


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""

    def size(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
        return [output_size(x.shape[2 + d], kernel_size[d], stride[d], padding[d], 1, ceil_mode) for d in range(2)]

    return average(namespace, "avg_pool2d", size)


def reference(
    x, kernel_size, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True, divisor_override=None
) -> torch.Tensor:
    """y[n,c,p,q] = 1/d * sum of x[n, c, p*sh-ph+i, q*sw-pw+j] over 0<=i<kh, 0<=j<kw inside x, in float64.

    d is divisor_override, or the number of those positions, with count_include_pad of all i, j for which
    p*sh-ph+i < H+ph and q*sw-pw+j < W+pw. Windows are products, so rows and columns are summed one after the other.
    """
    y = x.double()
    for dim, (k, s, p) in enumerate(zip(kernel_size, stride, padding), start=2):
        size = x.shape[dim]
        windows = torch.arange(output_size(size, k, s, p, 1, ceil_mode))[:, None] * s - p
        holds = (windows <= torch.arange(size)) & (torch.arange(size) < windows + k)
        padded = (windows + k).clamp(max=size + p) - windows
        divisor = padded if count_include_pad else holds.sum(1, keepdim=True)
        weights = holds.double() if divisor_override else holds / divisor.double()
        y = (y.movedim(dim, -1) @ weights.T).movedim(-1, dim)
    return y / divisor_override if divisor_override else y


ops = register(define)


@by_policy
def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Average pooling with torch.nn.functional.avg_pool2d's arguments and rules.

    input: (N, C, H, W) or (C, H, W), floating point. Returns (N, C, OH, OW) in input's dtype and memory format; half
    precision is summed in float32. RuntimeError on a shape, a padding or a divisor that torch refuses.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            avg_pool2d,
            (input,),
            input,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
    if not native(input, "avg_pool2d") or input.dim() not in (3, 4):  # torch says what is wrong with other dimensions
        return torch.nn.functional.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    kernel = pair("avg_pool2d", "kernel_size", kernel_size)
    stride = kernel if stride is None or stride == () or stride == [] else pair("avg_pool2d", "stride", stride)
    padding = pair("avg_pool2d", "padding", padding)
    x = batched("avg_pool2d", input)
    y = dispatch(
        ops.op, ops.raw, x.requires_grad, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return y if x is input else y.squeeze(0)
