"""The one place where uint8 pixels become floats."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Standardise", "SubtractMean", "mean_image"]


class SubtractMean(nn.Module):
    """Pixels to the network's input: divided by 255, minus a mean image.

    iCaRL subtracts the mean of every pixel over the whole training set and divides by nothing
    else. The mean is part of the saved state.

    Attributes:
        size: height and width of images and input.
        mean: (H, W, 3) in [0, 1]; zeros until it is set.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.size = image_size
        self.register_buffer("mean", torch.zeros(*image_size, 3))
        self.mean: Tensor

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Subtract the mean of these images from now on: (N, H, W, 3) uint8, in parts."""
        self.mean.copy_(mean_image(chunks))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, channels last in memory."""
        return self.floats(pixels)

    def floats(self, pixels: Tensor) -> Tensor:
        """`forward`, whose input has the size of the network's."""
        return pixels.float().div_(255).sub_(self.mean).permute(0, 3, 1, 2)


class Standardise(nn.Module):
    """Pixels to the input of a pretrained network: scaled to its size, then by its constants.

    Attributes:
        size: height and width of the network's input; images of another size are scaled to it,
            bicubic.
        mean: (3,) of the channels, in [0, 1]; subtracted.
        deviation: (3,) divided by.
    """

    def __init__(
        self, size: tuple[int, int], mean: tuple[float, ...], deviation: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))
        self.mean: Tensor
        self.deviation: Tensor

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Nothing, and no image is read: the network was trained with other constants than this
        data's mean."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, *size) float32, channels last in memory."""
        x = self.floats(pixels)
        if x.shape[2:] == self.size:
            return x
        scaled = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        return scaled.contiguous(memory_format=torch.channels_last)

    def floats(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, in the size that they have."""
        x = pixels.float().div_(255).sub_(self.mean).div_(self.deviation)
        return x.permute(0, 3, 1, 2)


def mean_image(chunks: Iterable[Tensor]) -> Tensor:
    """(N, H, W, 3) uint8, in parts, to their mean image (H, W, 3) in [0, 1], exact for any N."""
    total, count = torch.zeros((), dtype=torch.int64), 0
    for pixels in chunks:
        total = total + pixels.sum(dim=0, dtype=torch.int64)
        count += len(pixels)
    return (total.double() / (255 * max(1, count))).float()
