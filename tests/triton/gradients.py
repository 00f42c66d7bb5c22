"""What the tests of gradients share: named 1x1 layers on reduced maps, float64 results, and bounds of rounding."""

import torch
from fastcnn.kernels.register import INTERPRETED

from fastcnn.ops.conv2d import reference
from tests.cases import find

# Layers with all their channels, on maps whose sides the interpreter bears.
LAYERS = tuple(
    (find(name), size)
    for name, size in (
        ("resnet50.layer1.0.conv3", 5),
        ("resnet50.layer1.1.conv1", 5),
        ("resnet50.layer2.0.downsample", 6),
        ("resnet50.layer4.1.conv1", 2),
        ("googlenet.3a.5x5_reduce", 7),
        ("googlenet.5b.1x1", 3),
        ("squeezenet.fire2.squeeze", 7),
        ("squeezenet.fire2.expand1x1", 7),
        ("densenet121.denseblock3.24.conv1", 4),
    )
)
# (batch, inputs, outputs, height, width, stride): ones, primes, sizes that no block divides, cells cut off by the map's
# border.
ODD = (
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 3, 5, 1, 7, (1, 1)),
    (1, 37, 19, 7, 5, (2, 2)),
    (3, 17, 33, 6, 4, (1, 2)),
    (2, 129, 31, 5, 8, (3, 2)),
    (1, 8, 8, 2, 3, (4, 5)),
)


def references(x, weight, grad, stride, y=None):
    """dx, dw in float64, and for each the sum of its products' magnitudes."""
    if y is not None:
        grad = torch.where(y <= 0, 0, grad)

    def both(x, weight, grad):
        x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
        out = reference(x, weight, None, None, stride, (0, 0), (1, 1), 1, False)
        return torch.autograd.grad(out, (x, weight), grad.double())

    return both(x, weight, grad), both(x.abs(), weight.abs(), grad.abs())


def assert_close(actual, wanted, magnitude, terms: int) -> None:
    """float32 sums of `terms` products in any order err by at most terms * 2**-24 of the products' magnitudes; products
    of 16 bits are exact in float32. Then the result is rounded, by half a step; Triton's interpreter truncates to
    bfloat16, by a whole one."""
    info = torch.finfo(actual.dtype)
    step = info.eps if actual.dtype == torch.bfloat16 and INTERPRETED else info.eps / 2
    bound = terms * 2.0**-24 * magnitude + step * (wanted.abs() + info.smallest_normal)
    excess = (actual.double() - wanted).abs() - bound * 1.01  # the bound's own second-order terms
    assert (excess <= 0).all(), f"exceeds the bound by {excess.max():.3g}"  # NaN does


def tensors(dtype, batch, inputs, outputs, height, width, stride, slack: int = 0):
    """x, weight, grad and y in channels_last; with slack, slices out of tensors with so many channels more."""
    p, q = (height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1

    def pixels(c, h, w):
        whole = torch.randn(batch, c + slack, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
        return whole[:, slack // 2 : slack // 2 + c]

    x, grad, y = pixels(inputs, height, width), pixels(outputs, p, q), pixels(outputs, p, q).relu()
    return x, torch.randn(outputs, inputs, 1, 1).to(dtype), grad, y
