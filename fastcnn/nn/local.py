"""The locally connected convolution of cuda-convnet."""

import torch
from torch.nn import Parameter

from .. import functional as F
from ..ops._face import pair
from ..ops.conv2d import output_size


class LocallyConnected2d(torch.nn.Module):
    """Convolution whose every output position has a filter and a bias of its own; the input's size is fixed.

    weight: (OH, OW, out_channels, in_channels, KH, KW), so that weight[p, q] is a Conv2d's; bias: (out_channels, OH,
    OW). input_size: the input's height and width.
    """

    bias: Parameter | None

    def __init__(self, in_channels, out_channels, kernel_size, input_size, stride=1, padding=0, dilation=1, bias=True):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        least = {"kernel_size": 1, "input_size": 0, "stride": 1, "padding": 0, "dilation": 1}
        given = zip(least, (kernel_size, input_size, stride, padding, dilation))
        sizes = {name: pair("LocallyConnected2d", name, v) for name, v in given}
        for name, v in sizes.items():
            if min(v) < least[name]:
                raise ValueError(f"LocallyConnected2d: expected {name} of at least {least[name]}, but got {v}")
        if in_channels < 1 or out_channels < 1:
            raise ValueError(
                "LocallyConnected2d: expected at least one channel, but got "
                f"in_channels={in_channels} and out_channels={out_channels}"
            )
        self.kernel_size, self.input_size, self.stride, self.padding, self.dilation = sizes.values()
        geometry = zip(self.input_size, self.kernel_size, self.stride, self.padding, self.dilation)
        self.output_size = tuple(output_size(*along) for along in geometry)
        if min(self.output_size) < 1:
            raise ValueError(
                f"LocallyConnected2d: expected a kernel_size that fits into input_size={self.input_size} with "
                f"padding={self.padding}, but got {self.kernel_size}"
            )
        self.weight = Parameter(torch.empty(*self.output_size, out_channels, in_channels, *self.kernel_size))
        self.register_parameter("bias", Parameter(torch.empty(out_channels, *self.output_size)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self):
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias, as torch.nn.Conv2d."""
        bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, O, OH, OW) or (O, OH, OW)."""
        return F.local_conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self):
        """The form of torch.nn.Conv2d's."""
        s = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, input_size={self.input_size}"
        s += f", stride={self.stride}"
        s += f", padding={self.padding}" if self.padding != (0, 0) else ""
        s += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        return s + (", bias=False" if self.bias is None else "")
