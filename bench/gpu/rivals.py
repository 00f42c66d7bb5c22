"""What else could compute the convolutions that fastcnn gives to Triton, besides cuDNN: timed against the kernels."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import fastcnn.functional as F
from bench import test_bench_conv2d
from bench._layer import Layer
from bench._rows import Row
from fastcnn._config import config
from tests.cases import CASES, ConvCase
from tests.cases.geometry import pair

NETWORKS = ("resnet50", "resnext50", "googlenet", "squeezenet", "densenet121")


def is_pointwise(case: ConvCase) -> bool:
    return pair(case.kernel_size) == (1, 1) and pair(case.padding) == (0, 0) and case.groups == 1


def cublas(case: ConvCase) -> Callable[..., Tensor]:
    """A matrix product of channels_last pixels, which is all that a 1x1 convolution without a stride is."""

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        n, c, h, w = x.shape
        rows, columns = x.permute(0, 2, 3, 1).reshape(-1, c), weight.reshape(-1, c).t()
        y = rows @ columns if bias is None else torch.addmm(bias, rows, columns)
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)

    return multiply


def compiled(case: ConvCase) -> Callable[..., Tensor]:
    """torch.compile, which times its Triton templates against cuDNN and cuBLAS and takes the fastest."""

    def conv2d(*tensors: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(*tensors, **case.kwargs)

    if torch.cuda.is_available():
        return torch.compile(conv2d, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
    return torch.compile(conv2d, backend="aot_eager", fullgraph=True, dynamic=False)  # there is nothing to tune


def without_triton(case: ConvCase) -> Callable[..., Tensor]:
    """fastcnn's own CUDA kernel, as under FASTCNN_TRITON=0."""

    def conv2d(*tensors: Tensor) -> Tensor:
        before, config.triton = config.triton, False
        try:
            return F.conv2d(*tensors, **case.kwargs)
        finally:
            config.triton = before

    return conv2d


RIVALS = {"cuBLAS": cublas, "CUDA kernel": without_triton, "torch.compile": compiled}
OPS = {f"conv2d, {name}": name for name in RIVALS}  # as rows name them


def takes_part(name: str, case: ConvCase) -> bool:
    return name != "cuBLAS" or (is_pointwise(case) and pair(case.stride) == (1, 1))


def cases(name: str) -> list[ConvCase]:
    """The layers of which `name` is a rival."""
    return [
        case
        for case in CASES.values()
        if isinstance(case, ConvCase)
        and case.name.partition(".")[0] in NETWORKS
        and (is_pointwise(case) or (case.groups > 1 and not case.depthwise))
        and takes_part(name, case)
    ]


def builder(op: str) -> Callable[[Row, torch.Generator], Layer]:
    """A layer whose stock is the rival; the float64 reference remains PyTorch's."""

    def layer(row: Row, generator: torch.Generator) -> Layer:
        if torch.cuda.is_available():
            from fastcnn.ops import _triton

            if reason := _triton.why_not():
                raise RuntimeError(f"no convolution goes to Triton: {reason}")
        built, rival = test_bench_conv2d.layer(row, generator), RIVALS[OPS[op]](row.case)

        def stock(*tensors: Tensor) -> Tensor:
            return (built.stock if tensors[0].dtype is torch.float64 else rival)(*tensors)

        return replace(built, stock=stock)

    return layer
