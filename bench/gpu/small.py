"""Every op on odd sizes, forward and backward, against the CPU's result: what compute-sanitizer watches.

python -m bench.gpu.small         on the GPU
python -m bench.gpu.small --dry   by tests/simt
"""

import itertools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import fastcnn.functional as F

from .machine import tf32_allowed

# A type, whether TF32 may stand in for it, and what the results may differ by.
KINDS = (
    (torch.float32, False, 1e-4),
    (torch.float32, True, 1e-2),
    (torch.float16, False, 2e-2),
    (torch.bfloat16, False, 1e-1),
)
TABLE = ((0, 1, 2), (1, 2, 3), (0, 3))


def conv2d_bn_relu(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU passes all of a channel on, or nothing: near zero, rounding would decide what gradient there is."""
    shift = shift + 8 * shift.sign()
    return F.conv2d_bn_relu(x, w, None, None, None, scale, shift, padding=1, training=True)


@torch.no_grad()  # else PyTorch computes it
def batch_norm_relu(x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.batch_norm_relu(x, mean, var.abs() + 0.1, scale, shift)


def max_unpool2d(x: Tensor) -> Tensor:
    pooled, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(pooled, indices, 2, output_size=x.shape[2:])


def cases() -> dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]]:
    """By name: a function, and the sizes of its inputs, which are all learned."""
    image, few = (3, 24, 13, 11), (2, 3, 13, 11)
    return {
        "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [image, (40, 24, 3, 3), (40,)]),
        "conv2d of few channels": (lambda x, w: F.conv2d(x, w, stride=2, padding=3), [few, (20, 3, 7, 7)]),
        "conv2d 1x1": (F.conv2d, [image, (17, 24, 1, 1)]),
        "conv2d in groups": (lambda x, w: F.conv2d(x, w, padding=1, groups=6), [image, (24, 4, 3, 3)]),
        "conv2d depthwise": (lambda x, w: F.conv2d(x, w, stride=2, groups=24), [image, (24, 1, 3, 3)]),
        "conv2d dilated": (lambda x, w: F.conv2d(x, w, dilation=2), [image, (8, 24, 3, 3)]),
        "conv2d_bn_relu": (conv2d_bn_relu, [image, (40, 24, 3, 3), (40,), (40,)]),
        "batch_norm_relu": (batch_norm_relu, [image, (24,), (24,), (24,), (24,)]),
        "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), [image, (24, 9, 3, 3)]),
        "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2), [image]),
        "max_unpool2d": (max_unpool2d, [image]),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), [image]),
        "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), [image]),
        "local_response_norm": (lambda x: F.local_response_norm(x, 5), [image]),
        "lrn_max_pool2d": (lambda x: F.lrn_max_pool2d(x, 5), [image]),
        "local_conv2d": (F.local_conv2d, [(2, 3, 6, 5), (4, 3, 4, 3, 3, 3)]),
        "subsample2d": (F.subsample2d, [(2, 6, 12, 10), (6,), (6,)]),
        "sparse_conv2d": (lambda x, w, b: F.sparse_conv2d(x, w, b, TABLE), [(2, 4, 9, 7), (8, 3, 3), (3,)]),
    }


def outputs(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The result and, if it has a gradient, the inputs', on the CPU."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = call(*leaves)
    if not y.requires_grad:
        return [y.cpu()]
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator).to(y.device, y.dtype)
    return [t.detach().cpu() for t in (y, *torch.autograd.grad(y, leaves, grad))]


def main(dry: bool) -> None:
    made = []
    layouts = (torch.contiguous_format, torch.channels_last)
    for (name, (call, sizes)), kind, layout in itertools.product(cases().items(), KINDS, layouts):
        generator = torch.Generator().manual_seed(0)
        inputs = [(0.3 * torch.randn(size, generator=generator)).to(kind[0]) for size in sizes]
        inputs[0] = inputs[0].to(memory_format=layout)
        made.append((f"{name} {kind} {layout}", call, inputs, outputs(call, inputs), kind))
    if dry:
        from tests.simt import library

        library.take_over()
    for name, call, inputs, expected, (_, tf32, tolerance) in made:
        with tf32_allowed(tf32):
            found = outputs(call, inputs if dry else [t.cuda() for t in inputs])
        for got, want in zip(found, expected):
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    print(f"{len(made)} cases agree with the CPU's")


if __name__ == "__main__":
    main("--dry" in sys.argv[1:])
