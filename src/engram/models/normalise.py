"""The one place where uint8 pixels become floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Normalise", "mean_image"]


class Normalise(nn.Module):
    """Pixels to the network's input: divided by 255, minus a mean image.

    iCaRL subtracts the mean of every pixel over the whole training set and divides by nothing
    else. The mean is part of the saved state.

    Attributes:
        mean: (H, W, 3) in [0, 1]; zeros until it is set.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*image_size, 3))
        self.mean: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, channels last in memory."""
        return pixels.float().div_(255).sub_(self.mean).permute(0, 3, 1, 2)


def mean_image(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to their mean image (H, W, 3) in [0, 1], exact for any N."""
    return (pixels.sum(dim=0, dtype=torch.int64).double() / (255 * max(1, len(pixels)))).float()
