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
