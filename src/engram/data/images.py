"""`ImageSet`, the one currency of the package: uint8 pixels with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ImageSet"]


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """Images of one size with integer labels. Nobody changes what is inside.

    Attributes:
        pixels: (N, H, W, 3), uint8.
        labels: (N,), int64.
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4 or self.pixels.shape[3] != 3:
            raise ValueError(
                f"pixels must be uint8 (N, H, W, 3), not {self.pixels.dtype} "
                f"{tuple(self.pixels.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(self.pixels)},), not {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> ImageSet:
        """No images, of `image_size` (height, width)."""
        return cls(
            torch.empty((0, *image_size, 3), dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> ImageSet:
        """The images that `index` names: a slice, positions, or a mask (N,)."""
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(index, dtype=torch.int64)
        return ImageSet(self.pixels[index], self.labels[index])

    def __add__(self, other: ImageSet) -> ImageSet:
        return ImageSet(
            torch.cat([self.pixels, other.pixels]), torch.cat([self.labels, other.labels])
        )

    def of(self, label: int) -> ImageSet:
        """The images of one class, in order."""
        return self[self.labels == label]

    def to(self, device: torch.device) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.pixels.to(device), self.labels.to(device))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]
