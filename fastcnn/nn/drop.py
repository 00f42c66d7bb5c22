"""Modules that leave units, blocks or paths out at random while training."""

import torch

from .. import functional as F
from ..ops._drop import check_choice, check_probability


class Dropout(torch.nn.Dropout):
    """torch.nn.Dropout; mode 'paper' keeps the scale while training and multiplies by 1-p in evaluation."""

    def __init__(self, p=0.5, inplace=False, *, mode="inverted"):
        super().__init__(p, inplace)
        check_choice("Dropout", "mode", mode, ("inverted", "paper"))
        self.mode = mode

    def forward(self, input):
        """Any shape to the same shape."""
        return F.dropout(input, self.p, self.training, self.inplace, mode=self.mode)

    def extra_repr(self):
        """torch's, and the mode where it is not torch's."""
        return super().extra_repr() + (f", mode={self.mode}" if self.mode != "inverted" else "")


class StochasticDepth(torch.nn.Module):
    """torchvision.ops.StochasticDepth; scaling 'paper' multiplies by the survival rate 1-p in evaluation instead."""

    def __init__(self, p, mode, *, scaling="inverted"):
        super().__init__()
        check_probability(p)
        check_choice("StochasticDepth", "mode", mode, ("batch", "row"))
        check_choice("StochasticDepth", "scaling", scaling, ("inverted", "paper"))
        self.p, self.mode, self.scaling = p, mode, scaling

    def forward(self, input):
        """(N, ...) to the same shape."""
        return F.stochastic_depth(input, self.p, self.mode, self.training, scaling=self.scaling)

    def extra_repr(self):
        """torchvision's, and the scaling where it is not torchvision's."""
        return f"p={self.p}, mode={self.mode}" + (f", scaling={self.scaling}" if self.scaling != "inverted" else "")


class DropPath(torch.nn.Module):
    """FractalNet's join: the mean of its inputs, of which some are left out while training."""

    def __init__(self, p=0.15, *, sampling="local", mode="batch"):
        super().__init__()
        check_probability(p)
        check_choice("DropPath", "sampling", sampling, ("local", "global"))
        check_choice("DropPath", "mode", mode, ("batch", "row"))
        self.p, self.sampling, self.mode = p, sampling, mode

    def forward(self, inputs, column=None):
        """A sequence of (N, ...) to (N, ...); column: the input that alone remains, for the whole network."""
        return F.drop_path(inputs, self.p, self.training, sampling=self.sampling, mode=self.mode, column=column)

    def extra_repr(self):
        """Its arguments."""
        return f"p={self.p}, sampling={self.sampling}, mode={self.mode}"
