"""The way from fastcnn's convolutions to Triton's kernels (kernels/), for CUDA tensors."""

import torch

from .._config import config, road
from ._define import memory_format
from ._face import TF32, dispatch, recording

CUDA = "fastcnn's CUDA kernel"  # the candidate of policy "fastest" that leaves Triton out


def missing() -> str:
    """Why there are no Triton kernels here; '' where there are. Imports them: half a second, once, at the first
    convolution of a CUDA tensor."""
    from fastcnn import kernels

    if kernels.MISSING:
        return kernels.MISSING
    from fastcnn.kernels.register import unusable

    return unusable()


# As in _face.allows_tf32: a compiled graph keeps the answer that it was traced with.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not() -> str:
    """Why no convolution may take Triton's kernels, whatever its sizes; '' where they may."""
    if not config.triton:
        return "FASTCNN_TRITON=0"
    if road.candidate == CUDA:
        return "slower when timed"
    return missing()


def fits(x, weight, bias, groups: int) -> bool:
    """Whether the tensors make a convolution. If not, conv2d's own op says what is wrong."""
    return (
        x.dim() == 4 == weight.dim()
        and groups > 0
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and weight.dtype == x.dtype
        and (bias is None or (bias.dim() == 1 and bias.shape[0] == weight.shape[0] and bias.dtype == x.dtype))
        and x.numel() > 0
        and weight.numel() > 0
    )


def route(x, weight, padding, groups: int, level: int) -> tuple[str, str]:
    """kernels/route.py's answer for tensors that fit."""
    from fastcnn.kernels.route import route

    last = torch.channels_last in (memory_format(x), memory_format(weight))  # then conv2d's output is, too
    widths = weight.shape[1], weight.shape[0] // groups
    return route(tuple(weight.shape[2:]), padding, groups, *widths, x.dtype, last, level >= TF32)


def takes(x, weight, bias, stride, padding, dilation, groups: int, level: int) -> bool:
    """Whether Triton's kernels compute this convolution of CUDA tensors."""
    if why_not() or not fits(x, weight, bias, groups) or min(*stride, *dilation) < 1 or min(padding) < 0:
        return False
    if any(d * (k - 1) >= n + 2 * p for d, k, n, p in zip(dilation, weight.shape[2:], x.shape[2:], padding)):
        return False
    return route(x, weight, padding, groups, level)[0] != ""


BIAS = "a bias before batch normalization, which takes it away again, is left to the CUDA kernels"


def trains(x, weight, bias, stride, padding, dilation, groups: int, level: int) -> bool:
    """Whether Triton's kernels compute this convolution and the statistics of its output."""
    return bias is None and takes(x, weight, None, stride, padding, dilation, groups, level)


def rivals(x, weight, stride, padding, dilation, groups: int, level: int) -> list[str]:
    """What policy "fastest" times beside the default for what `takes` takes: the CUDA kernel and other tiles. A name is
    the candidate that runs while road.candidate is it."""
    from fastcnn.kernels.grouped_forward import out_shape
    from fastcnn.kernels.register import processors
    from fastcnn.kernels.tiles import pointwise_candidates
    from fastcnn.kernels.tiles_grouped import grouped_candidates

    n, outputs, height, width = out_shape(x, weight, stride, padding, dilation)
    pixels, inputs, chip = n * height * width, weight.shape[1], processors(x)
    if groups > 1:
        return [CUDA, *grouped_candidates(pixels, groups, inputs, outputs // groups, x.dtype, chip)]
    return [CUDA, *pointwise_candidates(pixels, inputs, outputs, x.dtype, level >= TF32, chip)]


def conv2d(x, weight, scale, shift, residual, stride, padding, dilation, groups: int, relu: bool, level: int):
    """act(scale * conv2d(x, weight) + shift + residual) for what `takes` takes; scale and shift may be float32."""
    tensors = (x, weight, scale, shift, residual)
    needs_grad = recording() and any(t is not None and t.requires_grad for t in tensors)
    tf32 = level >= TF32
    if groups == 1:
        from fastcnn.kernels.pointwise import pointwise

        return dispatch(pointwise, pointwise.raw, needs_grad, *tensors, None, None, stride, relu, tf32)
    from fastcnn.kernels.grouped import grouped_conv2d

    return dispatch(
        grouped_conv2d, grouped_conv2d.raw, needs_grad, *tensors, stride, padding, dilation, groups, relu, tf32
    )


def conv2d_stats(x, weight, stride, padding, dilation, groups: int, level: int):
    """conv2d(x, weight) for what `trains` takes, and its channels' mean and biased variance."""
    needs_grad, tf32 = recording() and (x.requires_grad or weight.requires_grad), level >= TF32
    if groups == 1:
        from fastcnn.kernels.pointwise import pointwise_stats as op

        return dispatch(op, op.raw, needs_grad, x, weight, None, None, None, stride, tf32)
    from fastcnn.kernels.grouped import grouped_conv2d_stats as op

    return dispatch(op, op.raw, needs_grad, x, weight, stride, padding, dilation, groups, tf32)
