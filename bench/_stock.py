"""LeNet-5's ops and the benchmarked networks in stock PyTorch alone, on the state dict of fastcnn's model."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as TF
from torch import Tensor

from tests.cases import ALEXNET, ALEXNET_OWT, ConvCase, SparseConvCase, find

Parameters = dict[str, Tensor]


def dense_weight(weight: Tensor, table: Sequence[Sequence[int]], in_channels: int) -> Tensor:
    """The (out, in, kH, kW) weight that holds the (links, kH, kW) weight of a link table, and zero elsewhere."""
    links = torch.tensor([(o, i) for o, maps in enumerate(table) for i in maps])
    dense = weight.new_zeros(len(table), in_channels, *weight.shape[1:])
    return dense.index_put((links[:, 0], links[:, 1]), weight)


def subsample(x: Tensor, weight: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
    """weight * (sum over each window) + bias, a map at a time."""
    sums = TF.avg_pool2d(x, kernel_size, divisor_override=1)
    return sums * weight[:, None, None] + bias[:, None, None]


def _scaled_tanh(x: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(x * (2 / 3))


def prepare_lenet5(p: Parameters) -> Parameters:
    """Spreads C3's weight once, as a stock user would keep it."""
    case = find("lenet5.c3")
    return {**p, "c3.weight": dense_weight(p["c3.weight"], case.table, case.in_channels)}


def lenet5(p: Parameters, x: Tensor) -> Tensor:
    x = _scaled_tanh(TF.conv2d(x, p["c1.weight"], p["c1.bias"]))
    x = _scaled_tanh(subsample(x, p["s2.weight"], p["s2.bias"], 2))
    x = _scaled_tanh(TF.conv2d(x, p["c3.weight"], p["c3.bias"]))
    x = _scaled_tanh(subsample(x, p["s4.weight"], p["s4.bias"], 2))
    x = _scaled_tanh(TF.conv2d(x, p["c5.weight"], p["c5.bias"])).flatten(1)
    x = _scaled_tanh(TF.linear(x, p["f6.weight"], p["f6.bias"]))
    return (x[:, None] - p["out.weight"]).square().sum(-1)


def _tower_norm(x: Tensor) -> Tensor:
    """The paper's normalization within each of two towers; torch divides alpha by the window."""
    return torch.cat([TF.local_response_norm(t, 5, 5e-4, 0.75, 2.0) for t in TF.relu(x).chunk(2, 1)], 1)


def alexnet(p: Parameters, x: Tensor) -> Tensor:
    def conv(x: Tensor, name: str, **kwargs: int) -> Tensor:
        return TF.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **kwargs)

    x = TF.max_pool2d(_tower_norm(conv(x, "conv1", stride=4)), 3, 2)
    x = TF.max_pool2d(_tower_norm(conv(x, "conv2", padding=2, groups=2)), 3, 2)
    x = TF.relu(conv(x, "conv3", padding=1))
    x = TF.relu(conv(x, "conv4", padding=1, groups=2))
    x = TF.max_pool2d(TF.relu(conv(x, "conv5", padding=1, groups=2)), 3, 2).flatten(1)
    x = TF.relu(TF.linear(x, p["fc6.weight"], p["fc6.bias"]))
    x = TF.relu(TF.linear(x, p["fc7.weight"], p["fc7.bias"]))
    return TF.linear(x, p["fc8.weight"], p["fc8.bias"])


def alexnet_owt(p: Parameters, x: Tensor) -> Tensor:
    def conv(x: Tensor, i: int, **kwargs: int) -> Tensor:
        return TF.relu(TF.conv2d(x, p[f"features.{i}.weight"], p[f"features.{i}.bias"], **kwargs))

    def linear(x: Tensor, i: int) -> Tensor:
        return TF.linear(x, p[f"classifier.{i}.weight"], p[f"classifier.{i}.bias"])

    x = TF.max_pool2d(conv(x, 0, stride=4, padding=2), 3, 2)
    x = TF.max_pool2d(conv(x, 3, padding=2), 3, 2)
    x = conv(conv(conv(x, 6, padding=1), 8, padding=1), 10, padding=1)
    x = TF.adaptive_avg_pool2d(TF.max_pool2d(x, 3, 2), 6).flatten(1)
    return linear(TF.relu(linear(TF.relu(linear(x, 1)), 4)), 6)


@dataclass(frozen=True)
class NetworkCase:
    """A model of fastcnn.models, its input (channels, height, width) and its multiply-accumulates an image."""

    name: str
    input: tuple[int, int, int]
    macs: int


def _linear(*widths: int) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))


def _convs(cases: Iterable[ConvCase | SparseConvCase]) -> int:
    return sum(case.macs() for case in cases)


_FC = _linear(9216, 4096, 4096, 1000)
NETWORKS = (
    NetworkCase(
        "lenet5",
        (1, 32, 32),
        _convs(map(find, ("lenet5.c1", "lenet5.c3", "lenet5.c5"))) + _linear(120, 84, 10),
    ),
    NetworkCase("alexnet", (3, 227, 227), _convs(ALEXNET) + _FC),
    NetworkCase("alexnet_owt", (3, 224, 224), _convs(ALEXNET_OWT) + _FC),
)
