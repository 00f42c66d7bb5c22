"""subsample2d: what its C++ half (csrc/ops/subsample2d.cpp) cannot say through the stable ABI."""

import itertools
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function

from ._bilinear import bilinear
from ._define import register
from ._face import autocast_cast, batched, dispatch, native, pair, refuse, together
from ._policy import by_policy


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""

    def out_size(x, weight, kernel_size, stride, scale):
        return x.shape[1], [(x.shape[2 + d] - kernel_size[d]) // stride[d] + 1 for d in range(2)]

    return bilinear(namespace, "subsample2d", out_size, lambda grad, *geometry: grad.shape[1], lambda weight: ())


def reference(x, weight, bias, kernel_size, stride, scale):
    """y[n,c,p,q] = b[c] + w[c] * scale * sum over i, j of x[n, c, p*sh+i, q*sw+j], in float64."""
    (kh, kw), (sh, sw) = kernel_size, stride
    x = x.double()
    oh, ow = (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1
    y = torch.zeros(*x.shape[:2], oh, ow, dtype=torch.float64)
    for i, j in itertools.product(range(kh), range(kw)):
        y += x[:, :, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
    y = y * scale * weight.double().view(-1, 1, 1)
    return y if bias is None else y + bias.double().view(-1, 1, 1)


ops = register(define)


@by_policy
def subsample2d(input, weight, bias=None, kernel_size=2, stride=None, *, reduce="sum"):
    """Trainable subsampling (LeCun et al. 1998, layers S2 and S4): one weight and one bias a map.

    y[n,c,p,q] = bias[c] + weight[c] * sum over the window of x; reduce 'mean' divides the sum by KH*KW. Windows behind
    the input's end are left out, there is no padding. stride: kernel_size if None.

    input: (N, C, H, W) or (C, H, W); weight, bias: (C,), of input's floating dtype. Returns (N, C, OH, OW) in input's
    memory format; half precision is summed in float32. ValueError on an unknown reduce, RuntimeError on shapes.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            subsample2d, (input, weight, bias), input, weight, bias, kernel_size, stride, reduce=reduce
        )
    if reduce not in ("sum", "mean"):
        raise ValueError(f"subsample2d: expected reduce to be 'sum' or 'mean', but got {reduce!r}")
    kernel = pair("subsample2d", "kernel_size", kernel_size)
    stride = kernel if stride is None else pair("subsample2d", "stride", stride)
    if not native(input, "subsample2d"):
        return stock(input, weight, bias, kernel, stride, reduce)
    if weight is None or not together(input, weight, bias):
        refuse("subsample2d", input, weight=weight, bias=bias)
    input, weight, bias = autocast_cast(input, weight, bias)
    x = batched("subsample2d", input)
    scale = 1.0 if reduce == "sum" else 1.0 / (kernel[0] * kernel[1])
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    y = dispatch(ops.op, ops.raw, needs_grad, x, weight, bias, kernel, stride, scale)
    return y if x is input else y.squeeze(0)


def stock(input, weight, bias, kernel, stride, reduce):
    """The same from PyTorch's operations."""
    sums = torch.nn.functional.avg_pool2d(input, kernel, stride, divisor_override=1 if reduce == "sum" else None)
    y = sums * weight.view(-1, 1, 1)
    return y if bias is None else y + bias.view(-1, 1, 1)
