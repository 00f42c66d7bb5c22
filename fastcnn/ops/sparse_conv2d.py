"""sparse_conv2d: what its C++ half (csrc/ops/sparse_conv2d.cpp) cannot say through the stable ABI."""

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

    def out_size(x, weight, counts, indices, stride, padding):
        size = [(x.shape[2 + d] + 2 * padding[d] - weight.shape[1 + d]) // stride[d] + 1 for d in range(2)]
        return len(counts), size

    def weight_size(grad, kernel_size, counts, indices, *geometry):
        return len(indices), *kernel_size

    # Two for each multiply-accumulate over the links that exist, as torch counts those of a convolution.
    def forward_flops(x, weight, *rest, out_shape=None, **kwargs):
        links, kh, kw = weight
        n, _, oh, ow = out_shape
        return 2 * n * oh * ow * links * kh * kw

    def input_flops(grad, weight, *rest, **kwargs):
        return forward_flops(None, weight, out_shape=grad)

    def weight_flops(grad, x, kernel_size, counts, indices, *rest, **kwargs):
        return forward_flops(x, (len(indices), *kernel_size), out_shape=grad)

    ops = getattr(torch.ops, namespace)
    register_flop_formula([ops.sparse_conv2d, ops._sparse_conv2d])(forward_flops)
    register_flop_formula(ops.sparse_conv2d_backward_input)(input_flops)
    register_flop_formula(ops.sparse_conv2d_backward_weight)(weight_flops)
    return bilinear(namespace, "sparse_conv2d", out_size, weight_size, lambda weight: (list(weight.shape[1:]),))


def flatten(table) -> tuple[list[int], list[int]]:
    """A link table as the number of links of each output map and, in its order, the input maps they come from."""
    return [len(row) for row in table], [i for row in table for i in row]


def dense_weight(weight, counts, indices, in_channels):
    """The weight of the equal dense convolution, (O, C, KH, KW) with zeros for absent links; links named twice add."""
    rows = torch.repeat_interleave(torch.tensor(counts, dtype=torch.long)).to(weight.device)
    columns = torch.tensor(indices, dtype=torch.long, device=weight.device)
    zeros = weight.new_zeros(len(counts), in_channels, *weight.shape[1:])
    return zeros.index_put((rows, columns), weight, accumulate=True)


def reference(x, weight, bias, table, stride, padding):
    """y[n,o,p,q] = b[o] + sum over links l of o, i, j of w[l,i,j] * x[n, table[l], p*sh-ph+i, q*sw-pw+j], float64."""
    (sh, sw), (ph, pw) = stride, padding
    padded = torch.nn.functional.pad(x.double(), (pw, pw, ph, ph))
    kh, kw = weight.shape[1:]
    oh, ow = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    y = torch.zeros(x.shape[0], len(table), oh, ow, dtype=torch.float64)
    link = 0
    for o, row in enumerate(table):
        for c in row:
            for i, j in itertools.product(range(kh), range(kw)):
                tap = padded[:, c, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
                y[:, o] += weight[link, i, j].double() * tap
            link += 1
    return y if bias is None else y + bias.double().view(-1, 1, 1)


ops = register(define)


@by_policy
def sparse_conv2d(input, weight, bias, table, stride=1, padding=0):
    """Convolution with a channel link table (LeCun et al. 1998, layer C3): absent links have no weight.

    y[n,o,p,q] = bias[o] + sum over links l of o, i, j of weight[l,i,j] * x[n, table[o][l], p*S-P+i, q*S-P+j]

    table: for each output map the input maps that it reads. input: (N, C, H, W) or (C, H, W); weight: (links, KH, KW)
    in the table's order; bias: (O,) or None; all of one floating dtype. Returns (N, O, OH, OW) in input's memory
    format; float16 and bfloat16 are accumulated in float32. RuntimeError on shapes and on maps that input lacks.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            sparse_conv2d, (input, weight, bias), input, weight, bias, table, stride=stride, padding=padding
        )
    stride = pair("sparse_conv2d", "stride", stride)
    padding = pair("sparse_conv2d", "padding", padding)
    counts, indices = flatten(table)
    if not native(input, "sparse_conv2d"):
        x = batched("sparse_conv2d", input)
        y = torch.nn.functional.conv2d(x, dense_weight(weight, counts, indices, x.shape[1]), bias, stride, padding)
        return y if x is input else y.squeeze(0)
    if weight is None or not together(input, weight, bias):
        refuse("sparse_conv2d", input, weight=weight, bias=bias)
    input, weight, bias = autocast_cast(input, weight, bias)
    x = batched("sparse_conv2d", input)
    needs_grad = any(t is not None and t.requires_grad for t in (x, weight, bias))
    y = dispatch(ops.op, ops.raw, needs_grad, x, weight, bias, counts, indices, stride, padding)
    return y if x is input else y.squeeze(0)
