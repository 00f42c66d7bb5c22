"""Tensors as matrices: a row for each pixel, a column for each channel."""

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def rows(t: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(N, C, H, W) whose channels lie side by side and whose pixels lie at equal distances, and that distance in
    elements: channels_last, and a slice of its channels, as it is; else a copy in channels_last."""
    n, c, h, w = t.shape
    distance = t.stride(3) if w > 1 else t.stride(2) if h > 1 else t.stride(0) if n > 1 else c
    # A stride of 0 (an expanded gradient) would be right to read, but would not tell the pixels apart.
    even = (
        distance >= c
        and (c == 1 or t.stride(1) == 1)
        and (h == 1 or t.stride(2) == w * distance)
        and (n == 1 or t.stride(0) == h * w * distance)
    )
    return (t, distance) if even else (t.contiguous(memory_format=torch.channels_last), c)


def empty_rows(like: torch.Tensor, n: int, c: int, h: int, w: int) -> torch.Tensor:
    """An (N, C, H, W) in channels_last, of like's dtype and device."""
    return torch.empty((n, c, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """(O, C, 1, 1) as (O, C) with C side by side; a copy only where the weight itself is not laid out so."""
    return weight.reshape(weight.shape[:2]).contiguous()


def wide(*operands: tuple[torch.Tensor, int]) -> bool:
    """Whether an offset into one of these tensors, with their pixels' distances, or the number of a pixel that a last
    block of 128 masks, exceeds 32 bits."""
    return any((t.shape[0] * t.shape[2] * t.shape[3] + 128) * distance >= 2**31 for t, distance in operands)


def output_pixels(size: int, stride: int) -> int:
    """Of one side: those that a 1x1 convolution without padding computes."""
    return (size - 1) // stride + 1


def precision(tf32: bool) -> str:
    """tl.dot's name of it."""
    return "tf32" if tf32 else "ieee"


def check_types(op: str, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    torch._check(
        x.dtype in DTYPES,
        lambda: f"{op}: expected float16, bfloat16 or float32 on Triton, but got {x.dtype}",
    )
    for t in others:
        torch._check(
            t is None or (t.dtype == x.dtype and t.device == x.device),
            lambda t=t: f"{op}: expected {x.dtype} on {x.device} throughout, but got {t.dtype} on {t.device}",
        )
