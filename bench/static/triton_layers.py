"""Named layers, and what fastcnn's Triton ops launch for them: found by running the ops' own host code."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fastcnn.kernels import MISSING  # noqa: F401  registers the ops
from torch import Tensor

from tests.cases import CASES, ConvCase
from tests.cases.geometry import pair

from .triton_launch import SHORT, Launch, launches

BATCHES = (128, 1)
NETWORKS = ("resnet50", "resnext50", "googlenet", "squeezenet", "densenet121")
# Of float32 fewer: TF32 on tensor cores, and 1x1 layers in IEEE by fused multiply-adds (kernels/route.py).
FLOAT32 = ("resnet50.layer1.0.conv3", "resnet50.layer3.1.conv1", "resnet50.layer4.0.conv3", "resnext50.layer2.1.conv2")
DIRECTIONS = ("forward", "backward_input", "backward_weight")


@dataclass(frozen=True)
class Layer:
    case: ConvCase
    dtype: torch.dtype
    batch: int
    direction: str = "forward"
    tf32: bool = False

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else SHORT[self.dtype]
        batch = "" if self.batch == 128 else f" batch {self.batch}"
        return f"{self.case.name} {self.direction} {dtype}{batch}"


def is_pointwise(case: ConvCase) -> bool:
    return pair(case.kernel_size) == (1, 1) and case.groups == 1 and pair(case.padding) == (0, 0)


def is_grouped(case: ConvCase) -> bool:
    return case.groups > 1 and not case.depthwise


def all_layers() -> list[Layer]:
    cases = [
        case
        for case in CASES.values()
        if isinstance(case, ConvCase)
        and case.name.partition(".")[0] in NETWORKS
        and (is_pointwise(case) or is_grouped(case))
    ]
    layers = [Layer(case, torch.bfloat16, batch) for batch in BATCHES for case in cases]
    narrow = [case for case in cases if case.name in FLOAT32]
    layers += [Layer(case, torch.bfloat16, 128, way) for way in DIRECTIONS[1:] for case in narrow]
    layers += [Layer(case, torch.float32, 128, tf32=True) for case in narrow]
    layers += [Layer(case, torch.float32, 128) for case in narrow if is_pointwise(case)]
    return layers


def layers_on(arch: int) -> list[Layer]:
    """On the newest two, whose compilers take longest, the large batches of types that tensor cores take."""
    wanted = all_layers()
    return (
        wanted
        if arch < 100
        else [each for each in wanted if each.batch == 128 and (each.tf32 or each.dtype.itemsize == 2)]
    )


def tensors(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and output as memory comes, which nobody reads."""
    case = layer.case

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=layer.dtype, memory_format=torch.channels_last)

    weight = torch.empty(case.weight_shape, dtype=layer.dtype)
    return empty(*case.input_shape(layer.batch)), weight, empty(*case.output_shape(layer.batch))


def call(layer: Layer) -> Callable[[], object]:
    """The layer by its op, in inference with a folded normalization's shift and ReLU, in backward with ReLU's mask."""
    ops, case = torch.ops.fastcnn, layer.case
    x, weight, y = tensors(layer)
    grad = torch.empty_like(y)  # the mask's y is another tensor
    stride, tf32 = list(pair(case.stride)), layer.tf32
    if is_pointwise(case):
        return {
            "forward": lambda: ops.pointwise_conv2d(
                x, weight, None, torch.empty(case.out_channels), None, None, None, stride, True, tf32
            ),
            "backward_input": lambda: ops.pointwise_conv2d_backward_input(grad, weight, x.shape, stride, y, tf32),
            "backward_weight": lambda: ops.pointwise_conv2d_backward_weight(grad, x, stride, y, tf32),
        }[layer.direction]
    geometry = (stride, list(pair(case.padding)), list(pair(case.dilation)), case.groups)
    return {
        "forward": lambda: ops.grouped_conv2d(
            x, weight, None, torch.empty(case.out_channels), None, *geometry, True, tf32
        ),
        "backward_input": lambda: ops.grouped_conv2d_backward_input(grad, weight, x.shape, *geometry, y, tf32),
        "backward_weight": lambda: ops.grouped_conv2d_backward_weight(grad, x, weight.shape, *geometry, y, tf32),
    }[layer.direction]


def launches_of(layer: Layer, processors: int) -> list[Launch]:
    return launches(call(layer), processors)


def main(started: list[Launch]) -> Launch:
    """The launch that multiplies; the others add what it left in pieces."""
    return next(launch for launch in started if executed(launch))


def rounded(size: int, block: int) -> int:
    return -(-size // block) * block


def executed(launch: Launch) -> int:
    """Multiply-adds that the tiles of a launch make, those beyond the edges of tensors included; 0 of other kernels."""
    a = launch.arguments
    name = launch.kernel.__name__
    if name == "pointwise_kernel":
        depth = rounded(-(-a["inputs"] // a["BLOCK_C"]), a["SPLIT"]) * a["BLOCK_C"]
        return rounded(a["pixels"], a["BLOCK_P"]) * rounded(a["outputs"], a["BLOCK_O"]) * depth
    if name == "pointwise_backward_input_kernel":
        columns = rounded(a["inputs"], a["BLOCK_C"]) * rounded(a["outputs"], a["BLOCK_O"])
        return rounded(a["pixels"], a["BLOCK_M"]) * columns
    if name == "pointwise_backward_weight_kernel":
        weights = rounded(a["inputs"], a["BLOCK_C"]) * rounded(a["outputs"], a["BLOCK_O"])
        return weights * rounded(a["pixels"], a["BLOCK_M"])
    if name in ("grouped_conv2d_kernel", "grouped_conv2d_backward_input_kernel"):
        # Of the input's gradient the grid's second axis has each tap in one of its programs.
        summed = a["INPUTS"] if name == "grouped_conv2d_kernel" else a["OUTPUTS"]
        depth = a["KH"] * a["KW"] * rounded(a["PACK"] * summed, a["BLOCK_K"])
        return launch.grid[0] * a["BLOCK_M"] * a["BLOCK_N"] * depth
    if name == "grouped_conv2d_backward_weight_kernel":
        return launch.grid[0] * a["BLOCK_O"] * a["BLOCK_C"] * rounded(a["pixels"], a["BLOCK_P"])
    return 0


def programs(launch: Launch) -> int:
    """Tiles that processors take: a persistent launch has fewer blocks than these."""
    a = launch.arguments
    if a.get("PERSISTENT"):
        return -(-a["pixels"] // a["BLOCK_P"]) * -(-a["outputs"] // a["BLOCK_O"])
    return math.prod(launch.grid)


# What the programs of a split sum are given and leave to a second launch.
FINISHED_LATER = ("y", "scale", "shift", "residual", "moments", "counts")


def moved(layer: Layer, started: list[Launch]) -> int:
    """Bytes that must cross the memory bus: each tensor of each launch once, of a strided 1x1 layer's input the pixels
    that are read."""
    case = layer.case
    (h, w), (oh, ow) = pair(case.size), case.output_size
    whole = math.prod(case.input_shape(layer.batch))
    total = 0
    for launch in started:
        left = FINISHED_LATER if launch.arguments.get("SPLIT", 1) > 1 and "weight" in launch.arguments else ()
        distinct = {(t.data_ptr(), t.numel()): t for name, t in launch.tensors.items() if name not in left}
        for tensor in distinct.values():
            skipped = is_pointwise(case) and layer.direction != "backward_input" and tensor.numel() == whole
            total += tensor.nbytes * oh * ow // (h * w) if skipped else tensor.nbytes
    return total
