"""local_conv2d: what its C++ half (csrc/ops/local_conv2d.cpp) cannot say through the stable ABI."""

import itertools
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import register_flop_formula

from ._bilinear import bilinear
from ._define import register
from ._face import autocast_cast, batched, dispatch, native, pair, refuse, together
from ._policy import by_policy


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""

    def out_size(x, weight, stride, padding, dilation):
        torch._check(
            weight.dim() == 6 and weight.shape[3] == x.shape[1],
            lambda: f"local_conv2d: expected 6D weight for input{list(x.shape)}, but got {list(weight.shape)}",
        )
        return weight.shape[2], weight.shape[:2]

    def weight_size(grad, kernel, *geometry):
        return *grad.shape[2:], grad.shape[1], *kernel

    # Two for each multiply-accumulate, as torch counts those of a convolution.
    def forward_flops(x, weight, *rest, **kwargs):
        oh, ow, outputs, inputs, kh, kw = weight
        return 2 * x[0] * oh * ow * outputs * inputs * kh * kw

    def weight_flops(grad, x, kernel, *rest, **kwargs):
        return forward_flops(x, (*grad[2:], grad[1], *kernel))

    ops = getattr(torch.ops, namespace)
    register_flop_formula([ops.local_conv2d, ops._local_conv2d, ops.local_conv2d_backward_input])(forward_flops)
    register_flop_formula(ops.local_conv2d_backward_weight)(weight_flops)
    describe = lambda weight: (list(weight.shape[3:]),)
    return bilinear(namespace, "local_conv2d", out_size, weight_size, describe, lambda grad: grad.shape[1:])


def reference(x, weight, bias, stride, padding, dilation):
    """y[n,o,p,q] = b[o,p,q] + sum over c, i, j of w[p,q,o,c,i,j] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw], in float64."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    oh, ow, outputs, _, kh, kw = weight.shape
    padded, weight = torch.nn.functional.pad(x.double(), (pw, pw, ph, ph)), weight.double()
    y = torch.zeros(x.shape[0], outputs, oh, ow, dtype=torch.float64)
    for i, j in itertools.product(range(kh), range(kw)):
        taps = padded[:, :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        y = y + torch.einsum("nchw,hwoc->nohw", taps, weight[..., i, j])
    return y if bias is None else y + bias.double()


ops = register(define)


@by_policy
def local_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1):
    """Locally connected convolution (cuda-convnet's unshared one): each output position has a filter of its own.

    y[n,o,p,q] = bias[o,p,q] + sum over c, i, j of weight[p,q,o,c,i,j] * x[n, c, p*S-P+i*D, q*S-P+j*D]

    weight[p,q] is the weight that conv2d would take for output position (p, q). input: (N, C, H, W) or (C, H, W);
    weight: (OH, OW, O, C, KH, KW); bias: (O, OH, OW); all of one floating dtype. Returns (N, O, OH, OW) in input's
    memory format; float16 and bfloat16 are accumulated in float32. Weights that meet the padding are left out, so that
    an infinite one gives no NaN there. RuntimeError on shapes that do not fit.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            local_conv2d, (input, weight, bias), input, weight, bias, stride, padding, dilation
        )
    stride, padding, dilation = (
        pair("local_conv2d", name, v) for name, v in (("stride", stride), ("padding", padding), ("dilation", dilation))
    )
    if not native(input, "local_conv2d"):
        return stock(input, weight, bias, stride, padding, dilation)
    if weight is None or not together(input, weight, bias):
        refuse("local_conv2d", input, weight=weight, bias=bias)
    input, weight, bias = autocast_cast(input, weight, bias)
    x = batched("local_conv2d", input)
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    y = dispatch(ops.op, ops.raw, needs_grad, x, weight, bias, stride, padding, dilation)
    return y if x is input else y.squeeze(0)


def stock(input, weight, bias, stride, padding, dilation):
    """The same from PyTorch's operations."""
    oh, ow, _, _, *kernel = weight.shape
    x = batched("local_conv2d", input)
    windows = torch.nn.functional.unfold(x, kernel, dilation, padding, stride).unflatten(2, (oh, ow))
    y = torch.einsum("nkhw,hwok->nohw", windows, weight.flatten(3))
    y = y if bias is None else y + bias
    return y if x is input else y.squeeze(0)
