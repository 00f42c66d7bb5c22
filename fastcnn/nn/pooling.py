"""Pooling modules."""

import torch

from .. import functional as F


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on fastcnn.functional.max_pool2d."""

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, C, OH, OW) or (C, OH, OW)."""
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """torch.nn.AvgPool2d on fastcnn.functional.avg_pool2d."""

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, C, OH, OW) or (C, OH, OW)."""
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d on fastcnn.functional.adaptive_avg_pool2d."""

    def forward(self, input):
        """(N, C, H, W) or (C, H, W) to (N, C, OH, OW) or (C, OH, OW)."""
        return F.adaptive_avg_pool2d(input, self.output_size)
