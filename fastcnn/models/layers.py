"""What happens at each layer of a network: the calls of its leaf modules, and the time that each takes."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcnn._config import disabled

from .lenet import ScaledTanh


@dataclass
class Call:
    """One call of a leaf module during a forward pass."""

    name: str  # dotted, as in named_modules
    module: nn.Module
    input: Tensor
    output: Tensor


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


@contextlib.contextmanager
def record_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Within the block, every call of a leaf module is appended to the list that the block gets."""
    calls: list[Call] = []

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: calls.append(Call(name, module, args[0], output))

    handles = [module.register_forward_hook(keep(name)) for name, module in _leaves(model)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Comparison:
    """Median seconds of something on fastcnn's kernels and on stock PyTorch's."""

    name: str
    fastcnn_s: float
    stock_s: float

    @property
    def ratio(self) -> float:
        """How many times faster fastcnn is."""
        return self.stock_s / self.fastcnn_s


def time_alternated(name: str, run: Callable[[], object], runs: int, warmup: int = 2) -> Comparison:
    """Times `run` with fastcnn on and off in turns, so that a drift of the machine's speed meets both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(warmup + runs):
        for stock, kept in enumerate(seconds):
            with disabled() if stock else contextlib.nullcontext():
                start = time.perf_counter()
                run()
                elapsed = time.perf_counter() - start
            if i >= warmup:
                kept.append(elapsed)
    return Comparison(name, statistics.median(seconds[0]), statistics.median(seconds[1]))


# Modules of a few operations per element: their time counts as part of the layer before.
_EPILOGUES = (nn.ReLU, nn.Tanh, nn.Sigmoid, ScaledTanh, nn.Dropout)


@torch.no_grad()
def time_layers(model: nn.Module, x: Tensor, runs: int = 10, warmup: int = 2) -> list[Comparison]:
    """Times every layer of whole forward passes, on fastcnn and on stock PyTorch in turns.

    Each layer thus finds its input in the cache as the layer before left it. An activation or dropout counts to the
    layer before it. Assumes that the network calls its layers in the same order each time.
    """
    rows: list[tuple[str, list[float], list[float]]] = []
    row = -1
    elapsed: list[float] = []
    started = 0.0

    def before(module: nn.Module, args: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            nonlocal row
            seconds = time.perf_counter() - started
            if isinstance(module, _EPILOGUES) and row >= 0:
                elapsed[row] += seconds
                return
            row += 1
            elapsed.append(seconds)
            if row == len(rows):
                rows.append((name, [], []))

        return hook

    handles = []
    for name, module in _leaves(model):
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(name))]
    try:
        for i in range(warmup + runs):
            for stock in (False, True):
                row, elapsed = -1, []
                with disabled() if stock else contextlib.nullcontext():
                    model(x)
                if i >= warmup:
                    for (_, fast, slow), seconds in zip(rows, elapsed):
                        (slow if stock else fast).append(seconds)
    finally:
        for handle in handles:
            handle.remove()
    return [Comparison(name, statistics.median(fast), statistics.median(slow)) for name, fast, slow in rows]
