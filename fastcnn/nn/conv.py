"""Convolution modules."""

import torch

from .. import functional as F
from ..ops.conv2d import conv2d_module


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d on fastcnn.functional.conv2d: constructor, attributes, repr and state_dict are torch's."""

    def _conv_forward(self, input, weight, bias):
        padding = self.padding
        if self.padding_mode != "zeros" and isinstance(padding, str):
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return F.conv2d(input, weight, bias, self.stride, 0, self.dilation, self.groups)
        return conv2d_module(input, weight, bias, self.stride, padding, self.dilation, self.groups, self.padding_mode)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on fastcnn.functional.conv_transpose2d: all but forward is torch's."""

    def forward(self, input, output_size=None):
        """output_size: the height and width wanted, from which the output_padding of this call follows."""
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )
