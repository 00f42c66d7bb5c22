"""`python -m tests.simt.sanitized_ops part`: calls of the CUDA ops on the CPU for a sanitizer that is loaded in front,
by far too slow for the tests: odd sizes of every op, layout and kernel, once each.

Prints what it runs, so that a report can be told from the one before; FASTCNN_SIMT_SANITIZE names the library.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from tests.simt import library
from tests.simt.test_simt_ops import LAYOUTS, calls
from tests.test_conv2d_tiles import CASES, tensors

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}
SIZE = (2, 13, 7, 5)
# Without those whose tiles need thousands of pixels to be chosen.
CONVOLUTIONS = [case for case, (x, _, _) in CASES.items() if x[2] * x[3] < 800]

Calls = Iterator[tuple[str, Callable[[], object]]]


def of_op(part: str, dtypes) -> Calls:
    """The ops of test_simt_ops that `part` names by what they begin with."""
    simt = library.load()
    for dtype in dtypes:
        for layout, memory_format in LAYOUTS.items():
            for op, (call, _) in calls(simt, SIZE, DTYPES[dtype], memory_format).items():
                if op.startswith(part):
                    yield f"{op} {dtype} {layout}", call


def of_convolution(cases, dtypes) -> Calls:
    for case in cases:
        for dtype in dtypes:
            for layout, memory_format in LAYOUTS.items():
                yield f"conv2d {case} {dtype} {layout}", partial(convolve, case, DTYPES[dtype], memory_format)


def convolve(case: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """Forward, and both gradients."""
    simt = library.load()
    x, weight, bias, grad, geometry = tensors(case, dtype, memory_format)
    simt.conv2d(x, weight, bias, grad, *geometry, True, 1)
    simt.conv2d_backward_input(grad, weight, x.shape, *geometry, 1)
    simt.conv2d_backward_weight(grad, x, weight.shape, *geometry, 1)


OPS = ("local_response_norm", "max_pool2d", "lrn_max_pool2d", "avg_pool2d", "adaptive", "max_unpool2d", "subsample2d")
OPS += ("sparse", "local_conv2d", "batch_norm")
PARTS = (*OPS, *(f"conv2d {number}" for number in range(4)))


def main(part: str, dtypes: list[str]) -> None:
    torch.manual_seed(0)
    if part.startswith("conv2d "):
        runs = of_convolution(CONVOLUTIONS[int(part[-1]) :: 4], dtypes)
    else:
        runs = of_op(part, dtypes)
    count = 0
    for name, call in runs:
        print(name, flush=True)
        call()
        count += 1
    print(f"{part}: {count} calls done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(DTYPES))
