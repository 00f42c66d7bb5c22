"""Whole training steps, by fastcnn and by stock PyTorch; as a program, the memory that one takes.

python -m bench._training NETWORK fast|stock BATCH SIZE
"""

import contextlib
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

import fastcnn.models
import fastcnn.nn as fnn
from fastcnn._config import disabled


class StockConvBNReLU2d(nn.Module):
    """As torchvision writes it: additions and ReLU in place. State dicts are ConvBNReLU2d's."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, activation="relu"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x))
        if residual is not None:
            y += residual
        return y.relu_() if self.activation else y


class BasicBlock(nn.Module):
    def __init__(self, unit, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = unit(in_channels, channels, 3, stride, 1)
        self.conv2 = unit(channels, channels, 3, 1, 1)
        straight = stride == 1 and in_channels == channels
        self.downsample = None if straight else unit(in_channels, channels, 1, stride, 0, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), x if self.downsample is None else self.downsample(x))


class ResNet18(nn.Module):
    def __init__(self, unit, pool):
        super().__init__()
        self.stem = unit(3, 64, 7, 2, 3)
        self.pool = pool(3, 2, 1)
        stages = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
        self.blocks = nn.Sequential(*(BasicBlock(unit, *stage) for stage in (*stages, (512, 512, 1))))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.pool(self.stem(x))).mean((2, 3)))


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    """fastcnn's network and stock's, in training mode, channels_last, with equal parameters of their own."""
    torch.manual_seed(0)
    if name == "resnet18":
        fast = ResNet18(fnn.ConvBNReLU2d, fnn.MaxPool2d)
        stock = ResNet18(StockConvBNReLU2d, nn.MaxPool2d)
    else:
        fast, stock = fastcnn.models.get_model(name), fastcnn.models.get_model(name)
    stock.load_state_dict(fast.state_dict())
    return tuple(m.train().to(memory_format=torch.channels_last) for m in (fast, stock))


class Step:
    """Forward, cross entropy, backward and SGD on the same batch, with the same dropout, at each call."""

    def __init__(self, network: nn.Module, x: Tensor, stock: bool):
        self.network, self.stock = network, stock
        self.x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            classes = network(self.x[:2]).shape[1]
        self.target = torch.arange(len(x)) % classes
        # Steps of no length do the same work, and leave every call the same numbers.
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def __call__(self) -> Tensor:
        torch.manual_seed(1)
        with disabled() if self.stock else contextlib.nullcontext():
            self.optimizer.zero_grad(set_to_none=True)
            loss = TF.cross_entropy(self.network(self.x), self.target)
            loss.backward()
            self.optimizer.step()
        return loss.detach()


def errors(fast: Step, stock: Step) -> tuple[float, float]:
    """Each side's largest relative error in the loss and, as vectors, in the gradients; stock's step in float64 is the
    truth."""
    exact = Step(copy.deepcopy(stock.network).double(), stock.x.double(), stock=True)
    loss = exact()

    def worst(step: Step) -> float:
        def relative(a: Tensor, b: Tensor) -> float:
            return float((a - b).norm() / b.norm())

        pairs = zip(step.network.parameters(), exact.network.parameters(), strict=True)
        return max(relative(step(), loss), *(relative(mine.grad, truth.grad) for mine, truth in pairs))

    return worst(fast), worst(stock)


def random_batch(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def peak_bytes(step: Callable[[], object]) -> int:
    """The most memory that this process ever held, once three steps are done, beyond what it held before. The first
    alone has neither momentum nor what allocators keep."""

    def status(key: str) -> int:  # not getrusage: a process inherits the peak of the one that started it
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    resident = status("VmRSS:")
    for _ in range(3):
        step()
    return status("VmHWM:") - resident


if __name__ == "__main__":
    name, side, batch, size = sys.argv[1:]
    network = networks(name)[side == "stock"]
    print(peak_bytes(Step(network, random_batch(int(batch), int(size)), side == "stock")))
