"""Tensors as matrices: a row for each pixel, a column for each channel."""

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def pixel_stride(t: torch.Tensor) -> int | None:
    """How far apart neighbouring pixels of t (N, C, H, W) lie, over rows and images, too, in elements. None where
    channels are not neighbours or pixels are not equally far apart, at least C: an expanded gradient's are 0 apart."""
    n, c, h, w = t.shape
    distance = t.stride(3) if w > 1 else t.stride(2) if h > 1 else t.stride(0) if n > 1 else c
    even = (
        distance >= c
        and (c == 1 or t.stride(1) == 1)
        and (h == 1 or t.stride(2) == w * distance)
        and (n == 1 or t.stride(0) == h * w * distance)
    )
    return distance if even else None


def rows(t: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(N, C, H, W) with a pixel_stride, and that: channels_last, and a slice of its channels, as it is; else a copy."""
    distance = pixel_stride(t)
    return (t.contiguous(memory_format=torch.channels_last), t.shape[1]) if distance is None else (t, distance)


def nhwc(t: torch.Tensor) -> torch.Tensor:
    """t with neighbouring channels: itself, or a channels_last copy."""
    return t if t.shape[1] == 1 or t.stride(1) == 1 else t.contiguous(memory_format=torch.channels_last)


def empty_rows(like: torch.Tensor, n: int, c: int, h: int, w: int) -> torch.Tensor:
    """An (N, C, H, W) in channels_last, of like's dtype and device."""
    return torch.empty((n, c, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """(O, C, 1, 1) as (O, C) with C side by side; a copy only where the weight itself is not laid out so."""
    return weight.reshape(weight.shape[:2]).contiguous()


def needs_int64(*tensors: torch.Tensor | None) -> bool:
    """Whether an offset within one of them, or that of a pixel of its last tile, may exceed 31 bits."""
    behind = 128 * 8192  # a tile's pixels, and channels of each
    extents = (sum((n - 1) * s for n, s in zip(t.shape, t.stride())) for t in tensors if t is not None)
    return any(extent >= 2**31 - behind for extent in extents)


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
