"""Which convolutions of CUDA tensors Triton's kernels compute: a function of sizes, layout and types. Not timed."""

import torch

from .rows import DTYPES

TENSOR_CORE_CHANNELS = 16  # tl.dot's least depth: of fewer channels per group, several groups are multiplied at once


def route(
    kernel_size: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    group_in: int,
    group_out: int,
    dtype: torch.dtype,
    channels_last: bool,
    tf32: bool,
) -> tuple[str, str]:
    """("pointwise", "grouped" or "" for the CUDA kernels, why). group_in, group_out: channels of a group."""
    if groups == 1 and (tuple(kernel_size) != (1, 1) or tuple(padding) != (0, 0)):
        return "", "computes 1x1 convolutions without padding and grouped ones"
    if dtype not in DTYPES:
        return "", f"has no kernel for {dtype}"
    if not channels_last:
        return "", "reads channels_last tensors; the CUDA kernels copy or read NCHW themselves"
    if groups == 1:
        return "pointwise", "1x1: a product of two matrices as they lie in memory, with what follows in its epilogue"
    if group_in == 1 or group_out == 1:
        return "", "multiplies matrices, and one channel per group makes none: the CUDA kernels' halo tiles"
    if max(group_in, group_out) > 64:
        return "", "keeps a group's channels, at most 64, in one tile: wider groups fill the CUDA kernels' tiles"
    if dtype is torch.float32 and not tf32 and min(group_in, group_out) < TENSOR_CORE_CHANNELS:
        return "", "packs narrow groups among zeros, which without tensor cores cost as much as products"
    return "grouped", "channels per group that fill a tensor core's tile, narrow groups side by side"
