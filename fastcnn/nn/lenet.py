"""LeNet-5's own layers (LeCun et al. 1998): the sparsely connected convolution C3 and the trainable subsampling."""

import torch
from torch.nn import Parameter

from .. import functional as F
from ..ops._face import pair


class SparseConv2d(torch.nn.Module):
    """Convolution with a channel link table: output map o reads the input maps table[o]; absent links have no weight.

    weight: (links, KH, KW) in the table's order; bias: (out_channels,).
    """

    bias: Parameter | None

    def __init__(self, in_channels, out_channels, kernel_size, table, stride=1, padding=0, bias=True):
        super().__init__()
        table = tuple(tuple(int(c) for c in row) for row in table)
        if len(table) != out_channels:
            raise ValueError(
                f"SparseConv2d: expected table to have out_channels={out_channels} rows, but got {len(table)}"
            )
        for o, row in enumerate(table):
            if len(set(row)) != len(row) or any(not 0 <= c < in_channels for c in row):
                raise ValueError(
                    f"SparseConv2d: expected distinct input maps 0 to {in_channels - 1} in table[{o}], but got {row}"
                )
        self.in_channels, self.out_channels, self.table = in_channels, out_channels, table
        self.kernel_size = pair("SparseConv2d", "kernel_size", kernel_size)
        self.stride = pair("SparseConv2d", "stride", stride)
        self.padding = pair("SparseConv2d", "padding", padding)
        self.weight = Parameter(torch.empty(sum(map(len, table)), *self.kernel_size))
        self.register_parameter("bias", Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self):
        """U(-2.4/fan_in, 2.4/fan_in), the paper's; fan_in counts the links of the output map."""
        with torch.no_grad():
            link = 0
            for o, row in enumerate(self.table):
                bound = 2.4 / max(1, len(row) * self.kernel_size[0] * self.kernel_size[1])
                self.weight[link : link + len(row)].uniform_(-bound, bound)
                if self.bias is not None:
                    self.bias[o : o + 1].uniform_(-bound, bound)
                link += len(row)

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, O, OH, OW) or (O, OH, OW)."""
        return F.sparse_conv2d(input, self.weight, self.bias, self.table, self.stride, self.padding)

    def extra_repr(self):
        """The form of torch.nn.Conv2d's."""
        s = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        s += f", padding={self.padding}" if self.padding != (0, 0) else ""
        s += f", links={len(self.weight)}"
        return s + (", bias=False" if self.bias is None else "")


class Subsample2d(torch.nn.Module):
    """Trainable subsampling: bias[c] + weight[c] * sum (or mean) of non-overlapping windows of map c."""

    def __init__(self, channels, kernel_size=2, reduce="sum"):
        super().__init__()
        if reduce not in ("sum", "mean"):
            raise ValueError(f"Subsample2d: expected reduce to be 'sum' or 'mean', but got {reduce!r}")
        self.channels, self.reduce = channels, reduce
        self.kernel_size = pair("Subsample2d", "kernel_size", kernel_size)
        self.weight = Parameter(torch.empty(channels))
        self.bias = Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self):
        """U(-2.4/fan_in, 2.4/fan_in), the paper's; fan_in is the window. 'mean' scales the weight by its size."""
        window = self.kernel_size[0] * self.kernel_size[1]
        bound = 2.4 / window
        torch.nn.init.uniform_(self.weight, -bound, bound)
        torch.nn.init.uniform_(self.bias, -bound, bound)
        if self.reduce == "mean":
            with torch.no_grad():
                self.weight.mul_(window)

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, C, OH, OW) or (C, OH, OW)."""
        return F.subsample2d(input, self.weight, self.bias, self.kernel_size, reduce=self.reduce)

    def extra_repr(self):
        """Its arguments."""
        return f"{self.channels}, kernel_size={self.kernel_size}, reduce={self.reduce!r}"
