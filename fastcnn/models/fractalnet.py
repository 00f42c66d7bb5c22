"""FractalNet for CIFAR.

Larsson, Maire, Shakhnarovich: FractalNet: Ultra-Deep Neural Networks without Residuals (2016).
"""

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn
from fastcnn.nn.conv_bn import conv_bn_relu

from ._registry import Weights, load_weights, register_model


class _Layer(nn.Module):
    """f_1: convolution, dropout, normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, bias: bool):
        super().__init__()
        self.conv = fnn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.drop = fnn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.drop.p > 0:
            return self.relu(self.bn(self.drop(self.conv(x))))
        return conv_bn_relu(self.conv, self.bn, x, activation=self.relu)


class _Fractal(nn.Module):
    """f_C without its last join: (N, in_channels, H, W) to C outputs, the deepest column's first.

    f_{C+1}(x) = join(f_C(f_C(x)), layer(x)); joins that follow each other are one over all their columns.
    """

    def __init__(self, columns: int, in_channels: int, out_channels: int, dropout: float, bias: bool, drop_path: float):
        super().__init__()
        self.layer = _Layer(in_channels, out_channels, dropout, bias)
        self.columns = columns
        if columns > 1:
            self.first = _Fractal(columns - 1, in_channels, out_channels, dropout, bias, drop_path)
            self.join = fnn.DropPath(drop_path)
            self.second = _Fractal(columns - 1, out_channels, out_channels, dropout, bias, drop_path)

    def forward(self, x: Tensor, column: int | Tensor | None = None) -> list[Tensor]:
        """column, an int: only this column, counted from the deepest, is computed and returned."""
        if isinstance(column, int):
            if column == self.columns - 1:
                return [self.layer(x)]
            return self.second(self.first(x, column)[0], column)
        outputs = [self.layer(x)]
        if self.columns > 1:
            outputs = self.second(self.join(self.first(x, column), column), column) + outputs
        return outputs


class _Block(nn.Module):
    """A fractal, its last join and 2x2 pooling; pool_columns: each column is pooled before the join."""

    def __init__(self, columns: int, in_channels: int, out_channels: int, pool_columns: bool, **options):
        super().__init__()
        self.fractal = _Fractal(columns, in_channels, out_channels, **options)
        self.join = fnn.DropPath(options["drop_path"])
        self.pool = fnn.MaxPool2d(2)
        self.pool_columns = pool_columns

    def forward(self, x: Tensor, column: int | Tensor | None = None) -> Tensor:
        outputs = self.fractal(x, column)
        if isinstance(column, int):
            return self.pool(outputs[0])
        if self.pool_columns:
            return self.join([self.pool(y) for y in outputs], column)
        return self.pool(self.join(outputs, column))


class FractalNet(nn.Module):
    """Input: (N, 3, H, W), 32x32 as a rule and at least that. Output: (N, num_classes) logits.

    Of 5 blocks with `columns` columns each, the deepest path has 5 * 2**(columns - 1) convolutions. While training, a
    batch drops paths in one of two ways: with probability global_rate one column, drawn, is the whole network; else
    every join leaves out each of its inputs with probability drop_path. per_sample: each sample draws its own column.
    dropout: probability in each block. pool_columns: see _Block; the authors' code has it.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        columns: int = 3,
        channels: tuple[int, ...] = (64, 128, 256, 512, 512),
        dropout: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4),
        drop_path: float = 0.15,
        global_rate: float = 0.5,
        per_sample: bool = False,
        pool_columns: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        if columns < 1:
            raise ValueError(f"FractalNet: expected columns to be at least 1, but got {columns}")
        if len(dropout) != len(channels):
            raise ValueError(f"FractalNet: expected dropout of {len(channels)} blocks, but got {dropout}")
        if not 0 <= global_rate <= 1:
            raise ValueError(f"FractalNet: expected global_rate to be between 0 and 1, but got {global_rate}")
        self.columns, self.global_rate, self.per_sample = columns, global_rate, per_sample
        blocks = []
        before = 3
        for after, p in zip(channels, dropout):
            options = {"dropout": p, "bias": bias, "drop_path": drop_path}
            blocks.append(_Block(columns, before, after, pool_columns, **options))
            before = after
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(before, num_classes)
        self.avgpool = fnn.AdaptiveAvgPool2d((1, 1))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Glorot and Bengio's uniform weights, biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()

    def _draw(self, x: Tensor) -> int | Tensor | None:
        """The column of a batch that samples globally, for a batch that samples locally None."""
        if not self.training or torch.rand(()).item() >= self.global_rate:
            return None
        if self.per_sample:
            return torch.randint(self.columns, x.shape[:1], device=x.device)
        return int(torch.randint(self.columns, ()))

    def forward(self, x: Tensor, column: int | None = None) -> Tensor:  # shapes for 32x32 input
        """column: the network of one column alone, 0 being the deepest."""
        if column is not None and not 0 <= column < self.columns:
            raise ValueError(f"FractalNet: expected column to be from 0 to {self.columns - 1}, but got {column}")
        chosen = self._draw(x) if column is None else column
        for block in self.blocks:  # (N, 64, 16, 16), (N, 128, 8, 8), (N, 256, 4, 4), (N, 512, 2, 2), (N, 512, 1, 1)
            x = block(x, chosen)
        return self.fc(self.avgpool(x).flatten(-3))


@register_model
def fractalnet20(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> FractalNet:
    """Three columns, 20 layers deep, 33,734,922 parameters. See FractalNet for the options."""
    model = FractalNet(num_classes, **kwargs)
    load_weights(model, weights)
    return model
