"""The one place where uint8 pixels become floats."""

from __future__ import annotations

from collections.abc import Iterable

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


def mean_image(chunks: Iterable[Tensor]) -> Tensor:
    """(N, H, W, 3) uint8, in parts, to their mean image (H, W, 3) in [0, 1], exact for any N."""
    total, count = torch.zeros((), dtype=torch.int64), 0
    for pixels in chunks:
        total = total + pixels.sum(dim=0, dtype=torch.int64)
        count += len(pixels)
    return (total.double() / (255 * max(1, count))).float()
