"""conv2d: what its C++ half (csrc/ops/conv2d.cpp) cannot say through the stable ABI."""

import itertools
from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .. import _library, _packed
from .._config import ACCURACIES, config
from . import _triton
from ._define import Differentiable, autocast, fold, memory_format, register, register_fake
from ._face import autocast_cast, batched, dispatch, log, native, pair, recording, refuse, together, tracing, with_tf32
from ._policy import by_policy


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """floor((size + 2*padding - dilation*(kernel-1) - 1) / stride) + 1."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def format_of(x, weight):
        formats = (memory_format(x), memory_format(weight))
        return torch.channels_last if torch.channels_last in formats else torch.contiguous_format

    def check(x, weight, groups):
        torch._check(
            x.dim() == 4 and weight.dim() == 4,
            lambda: f"conv2d: expected 4D input and weight, but got {list(x.shape)} and {list(weight.shape)}",
        )
        torch._check(
            x.shape[1] == weight.shape[1] * groups,
            lambda: (
                f"conv2d: Given groups={groups}, weight of size {list(weight.shape)}, expected "
                f"input{list(x.shape)} to have {weight.shape[1] * groups} channels, but got {x.shape[1]} instead"
            ),
        )

    def conv_fake(x, weight, bias, residual, stride, padding, dilation, groups, relu, accuracy):
        check(x, weight, groups)
        out = [output_size(x.shape[2 + d], weight.shape[2 + d], stride[d], padding[d], dilation[d]) for d in range(2)]
        shape = (x.shape[0], weight.shape[0], *out)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_of(x, weight))

    def raw_fake(x, weight, packed, bias, residual, geometry, relu, accuracy):
        sh, sw, ph, pw, dh, dw, groups = geometry[:7]
        return conv_fake(x, weight, bias, residual, (sh, sw), (ph, pw), (dh, dw), groups, relu, accuracy)

    def input_fake(grad, weight, input_size, stride, padding, dilation, groups, accuracy=1):
        f = format_of(grad, weight)
        return torch.empty(input_size, dtype=grad.dtype, device=grad.device, memory_format=f)

    def weight_fake(grad, x, weight_size, stride, padding, dilation, groups, accuracy=1):
        return torch.empty(weight_size, dtype=grad.dtype, device=grad.device)

    def pack_fake(weight, groups, winograd=False):
        double = weight.dtype == torch.float64
        outputs, inputs, kh, kw = weight.shape
        if weight.is_cuda or namespace != "fastcnn":  # csrc/cuda/conv2d.cuh: packed_layout
            wide = weight.dtype in (torch.float32, torch.float64)
            if not wide and groups == 1 and inputs <= 4:  # a first layer's: rows in pairs, outputs in steps of 32
                return weight.new_empty(outputs * -(-kh * (-(-kw * inputs // 2) * 2) // 32) * 32)
            filled = groups * -(-(outputs // groups) // 4) * 4 if wide else outputs
            return weight.new_empty(filled * inputs * kh * kw)
        lanes = _library._C.lanes(double)
        side_by_side = groups > 1 and outputs == inputs * groups and inputs in (1, 2, 4, 8) and inputs <= lanes
        vectors = -(-outputs // lanes) if side_by_side else groups * -(-(outputs // groups) // lanes)
        dtype = torch.float64 if double else torch.float32
        if weight.dtype == torch.bfloat16 and not side_by_side and _library._C.bf16_dot():
            inputs = inputs if winograd else -(-inputs // 2)  # pairs
        return torch.empty(vectors * (36 if winograd else kh * kw) * inputs * lanes, dtype=dtype, device=weight.device)

    register_fake(f"{namespace}::_pack_weight", pack_fake)
    register_fake(f"{namespace}::conv2d", conv_fake)
    register_fake(f"{namespace}::_conv2d", raw_fake)
    register_fake(f"{namespace}::conv2d_backward_input", input_fake)
    register_fake(f"{namespace}::conv2d_backward_weight", weight_fake)

    # The three are closed under differentiation: y = x*w, dx = g*w', dw = g*x' are each linear in both arguments.
    def save(ctx, inputs, output):
        x, weight, ctx.bias, ctx.residual, *ctx.geometry, ctx.relu, ctx.accuracy = inputs
        ctx.bias, ctx.residual = ctx.bias is not None, ctx.residual is not None
        ctx.save_for_backward(x, weight, output if ctx.relu else None)

    def grad(ctx, g):
        x, weight, y = ctx.saved_tensors
        if ctx.relu:
            g = torch.ops.aten.threshold_backward(g, y, 0)
        need = ctx.needs_input_grad
        return (
            backward_input(g, weight, x.shape, *ctx.geometry, ctx.accuracy) if need[0] else None,
            backward_weight(g, x, weight.shape, *ctx.geometry, ctx.accuracy) if need[1] else None,
            g.sum((0, 2, 3)) if ctx.bias and need[2] else None,
            g if ctx.residual and need[3] else None,
            *[None] * 6,
        )

    def save_pair(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        *ctx.geometry, ctx.accuracy = inputs[3:]

    def grad_input(ctx, d):
        g, weight = ctx.saved_tensors
        how = *ctx.geometry, ctx.accuracy
        dg = linear(d, weight, *how) if ctx.needs_input_grad[0] else None
        dw = backward_weight(g, d, weight.shape, *how) if ctx.needs_input_grad[1] else None
        return dg, dw, *[None] * 6

    def grad_weight(ctx, d):
        g, x = ctx.saved_tensors
        how = *ctx.geometry, ctx.accuracy
        dg = linear(x, d, *how) if ctx.needs_input_grad[0] else None
        dx = backward_input(g, d, x.shape, *how) if ctx.needs_input_grad[1] else None
        return dg, dx, *[None] * 6

    def linear(x, weight, stride, padding, dilation, groups, accuracy):
        return conv(x, weight, None, None, stride, padding, dilation, groups, False, accuracy)

    def raw(x, weight, bias, residual, stride, padding, dilation, groups, relu, accuracy):
        geometry = (*stride, *padding, *dilation, groups)
        return ops._conv2d.default(x, weight, None, bias, residual, geometry, relu, accuracy)

    conv = Differentiable(ops.conv2d.default, save, grad, fold((0, 3)), raw=raw)
    backward_input = Differentiable(ops.conv2d_backward_input.default, save_pair, grad_input, fold((0,), size=2))
    backward_weight = Differentiable(ops.conv2d_backward_weight.default, save_pair, grad_weight, fold(()))
    autocast(namespace, "conv2d", ops.conv2d.default)

    def forward_flops(x, weight, *rest, out_shape=None, **kwargs):
        return conv_flop_count(list(x), list(weight), list(out_shape))

    def input_flops(grad, weight, input_size, *rest, out_shape=None, **kwargs):
        return conv_flop_count(list(input_size), list(weight), list(grad))

    def weight_flops(grad, x, weight_size, *rest, out_shape=None, **kwargs):
        return conv_flop_count(list(x), list(weight_size), list(grad))

    register_flop_formula([ops.conv2d, ops._conv2d])(forward_flops)
    register_flop_formula(ops.conv2d_backward_input)(input_flops)
    register_flop_formula(ops.conv2d_backward_weight)(weight_flops)
    return SimpleNamespace(
        conv=conv, backward_input=backward_input, backward_weight=backward_weight, raw=ops._conv2d.default
    )


def reference(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    """y[n,o,p,q] = act(b[o] + sum_{c,i,j} w[o,c,i,j] * x[n, c, p*sh-ph+i*dh, q*sw-pw+j*dw] + r[n,o,p,q]), float64."""
    x, weight = x.double(), weight.double()
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    outputs, inputs, kh, kw = weight.shape
    oh = output_size(x.shape[2], kh, sh, ph, dh)
    ow = output_size(x.shape[3], kw, sw, pw, dw)
    padded = torch.nn.functional.pad(x, (pw, pw, ph, ph)).unflatten(1, (groups, inputs))
    weight = weight.unflatten(0, (groups, -1))
    y = torch.zeros(x.shape[0], outputs, oh, ow, dtype=torch.float64)
    for i, j in itertools.product(range(kh), range(kw)):
        taps = padded[..., i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        y = y + torch.einsum("ngchw,goc->ngohw", taps, weight[..., i, j]).flatten(1, 2)
    if bias is not None:
        y += bias.double().view(-1, 1, 1)
    if residual is not None:
        y += residual.double()
    return y.relu() if relu else y


ops = register(define)


@by_policy
def conv2d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    *,
    activation=None,
    residual=None,
    accuracy=None,
):
    """Convolution with torch.nn.functional.conv2d's arguments, and an epilogue that costs no pass of its own.

    y[n,o,p,q] = act(b[o] + sum_{c,i,j} w[o,c,i,j] * x[n, c, p*S-P+i*D, q*S-P+j*D] + residual[n,o,p,q])

    input: (N, C, H, W) or (C, H, W); weight: (O, C/groups, KH, KW); bias: (O,); all of one floating dtype. float16
    and bfloat16 are accumulated in float32. padding: ints, 'valid' or 'same' (stride 1).
    activation: None or 'relu'. residual: as the output, added before the activation.
    accuracy: 'strict', 'default' or 'fast'; None takes fastcnn.set_accuracy's. On CUDA all but 'strict' round float32
    to TF32 where torch.backends.cudnn allows it.
    Returns (N, O, OH, OW), channels_last where input or weight is. RuntimeError on shapes that do not fit, ValueError
    on an unknown activation or accuracy.
    """
    if has_torch_function((input, weight, bias, residual)):
        return handle_torch_function(
            conv2d, (input, weight, bias, residual), input, weight, bias, stride, padding, dilation, groups,
            activation=activation, residual=residual, accuracy=accuracy,
        )  # fmt: skip
    if activation is not None and activation != "relu":
        raise ValueError(f"conv2d: expected activation to be None or 'relu', but got {activation!r}")
    level = config.accuracy if accuracy is None else accuracy
    if level not in ACCURACIES:
        raise ValueError(f"conv2d: expected accuracy to be one of {', '.join(ACCURACIES)}, but got {accuracy!r}")
    if not native(input, "conv2d"):
        y = torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
        y = y if residual is None else y + residual
        return y.relu() if activation else y
    if weight is None or not together(input, weight, bias, residual):
        refuse("conv2d", input, weight=weight, bias=bias, residual=residual)
    if weight.dim() != 4:
        raise RuntimeError(
            f"conv2d: Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight "
            f"{list(weight.shape)}: expected 4D weight (O, C/groups, KH, KW)"
        )
    input, weight, bias, residual = autocast_cast(input, weight, bias, residual)
    x = input if input.dim() == 4 else batched("conv2d", input)
    dilation = pair("conv2d", "dilation", dilation)
    stride = pair("conv2d", "stride", stride)
    if isinstance(padding, str):
        x, padding = pad_by_name(x, weight, padding, stride, dilation)
    else:
        padding = pair("conv2d", "padding", padding)
    if residual is not None and x is not input:
        residual = residual.unsqueeze(0)
    relu, level = activation is not None, with_tf32(ACCURACIES.index(level), x)
    if not x.is_cpu and _triton.takes(x, weight, bias, stride, padding, dilation, groups, level):
        y = _triton.conv2d(x, weight, None, bias, residual, stride, padding, dilation, groups, relu, level)
    elif tracing() or recording():
        needs_grad = (
            x.requires_grad
            or weight.requires_grad
            or (bias is not None and bias.requires_grad)
            or (residual is not None and residual.requires_grad)
        )
        y = dispatch(
            ops.conv,
            ops.conv.raw,
            needs_grad,
            x,
            weight,
            bias,
            residual,
            stride,
            padding,
            dilation,
            groups,
            relu,
            level,
        )
    else:
        log("conv2d", x, weight)
        geometry = (*stride, *padding, *dilation, groups)
        y = ops.raw(
            x, weight, _packed.cache.get(weight, x.shape, geometry, level), bias, residual, geometry, relu, level
        )  # fmt: skip
    return y if x is input or input.dim() == 4 else y.squeeze(0)


PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def conv2d_module(input, weight, bias, stride, padding, dilation, groups, mode):
    """torch.nn.Conv2d's forward. Plain CPU tensors go straight to the kernel, which checks shapes and dtypes itself:
    conv2d's other questions would cost a small map a fifth of its time. Without gradients the kernel's copy of a block
    also reads the border where `mode` says; a gradient must be folded back into the input, which is padded first.

    padding: (height, width) or, where mode is 'zeros', all that conv2d takes.
    """
    pairs = (
        type(stride) is type(padding) is type(dilation) is tuple and len(stride) == len(padding) == len(dilation) == 2
    )
    if pairs and _is_plain(input, weight, bias):
        needs_grad = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        gradients, level = needs_grad and recording(), config.level
        if config.verbose and (mode == "zeros" or not gradients):  # else conv2d logs it
            log("conv2d", input, weight)
        if not gradients:
            geometry = (*stride, *padding, *dilation, groups)
            if mode == "zeros" or not any(padding):
                packed = _packed.cache.get(weight, input.shape, geometry, level)
                return ops.raw(input, weight, packed, bias, None, geometry, False, level)
            return ops.raw(input, weight, None, bias, None, (*geometry, PADDING_MODES.index(mode)), False, level)
        if mode == "zeros":
            return ops.conv.apply(input, weight, bias, None, stride, padding, dilation, groups, False, level)
    if mode != "zeros":
        (ph, pw), padding = padding, 0
        padded = torch.nn.functional.pad(input, (pw, pw, ph, ph), mode=mode)
        # torch's circular padding forgets channels_last
        input = padded.contiguous(memory_format=memory_format(input)) if input.dim() == 4 else padded
    return conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_plain(input, weight, bias) -> bool:
    """Whether nothing but the kernel has a say in a call."""
    return (
        not has_torch_function((input, weight, bias))
        and not tracing()
        and config.policy != "fastest"
        and input.is_cpu
        and input.dim() == 4
        and native(input, "conv2d")
        and weight is not None
        and weight.is_cpu
        and (bias is None or bias.is_cpu)
        and not torch._C._is_any_autocast_enabled()
    )


def pad_by_name(x, weight, padding, stride, dilation):
    """'valid' and 'same' as numbers; where 'same' is uneven the extra row or column is appended, as torch does."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if stride != (1, 1):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    if weight.dim() != 4:
        raise RuntimeError(f"conv2d: expected 4D weight, but got weight of size {list(weight.shape)}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    if total[0] % 2 or total[1] % 2:
        x = torch.nn.functional.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)
