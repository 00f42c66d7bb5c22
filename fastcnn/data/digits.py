"""scikit-learn's handwritten digits, as LeNet-5 wants them."""

import importlib
import math

import torch
from torch import Tensor, nn

BACKGROUND, FOREGROUND = -0.1, 1.175  # LeCun et al. 1998, section II-B: mean about 0, variance about 1


def load_digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits of the UCI test set that scikit-learn installs: images (1797, 1, 32, 32), labels (1797,).

    The 8x8 counts of 0 to 16 are interpolated bilinearly to 24x24, centred on a 32x32 field of background, and scaled
    to -0.1 (paper) .. 1.175 (ink), float32. Nothing is downloaded. Raises ImportError where scikit-learn is missing.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'fastcnn[demo]'") from error
    digits = datasets.load_digits()
    ink = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    ink = nn.functional.interpolate(ink, size=(24, 24), mode="bilinear", align_corners=False)
    ink = nn.functional.pad(ink, (4, 4, 4, 4))
    return BACKGROUND + (FOREGROUND - BACKGROUND) * ink, torch.from_numpy(digits.target).long()


def split_thirds(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (two thirds), then held-out images and labels: every third digit, always the same.

    The data set lists its digits writer by writer, so both parts have all the writers.
    """
    held_out = torch.arange(len(images)) % 3 == 2
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def deform_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, 1, H, W) turned, scaled, sheared and shifted a little, each by its own random amounts.

    Uniform: turned by up to 15 degrees, scaled by up to 15 %, sheared by up to 0.2, shifted by up to 2 pixels of 32.
    """
    n = len(images)

    def uniform(most: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * most

    angle, scale, shear = uniform(math.radians(15)), 1 + uniform(0.15), uniform(0.2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    across = torch.stack([cos, shear * cos - sin, uniform(2 / 16)], 1)  # the half width is 1, or 16 pixels
    down = torch.stack([sin, shear * sin + cos, uniform(2 / 16)], 1)
    grid = nn.functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    # grid_sample takes what lies outside the image as 0, so the background must be 0 meanwhile
    return nn.functional.grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND
