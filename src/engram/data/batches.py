"""Sources of batches for training, and one pass without gradients for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engram.data.augment import Augmentation, brighten, crop_and_flip
from engram.data.images import ImageSet

__all__ = ["AugmentedImages", "Loss", "Source", "Step", "apply"]


@dataclass(frozen=True, slots=True)
class Step:
    """Where a batch stands in its stage; both counts start at 0."""

    epoch: int
    epochs: int
    batch: int
    batches: int


Loss = Callable[[Tensor, Tensor, Step], dict[str, Tensor]]
"""The named parts of the loss of a batch (inputs, labels, where it stands)."""


class Source(Protocol):
    """What `Trainer.fit` reads: samples in a new random order every epoch."""

    def __len__(self) -> int:
        """Samples in an epoch."""
        ...

    def batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (inputs, labels); the last batch may be smaller."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class AugmentedImages:
    """Images that are shuffled, normalised and augmented a batch at a time, on the device.

    The pixels rest there as uint8; no worker processes and no Python per image.

    Attributes:
        images: what to draw from; batches are made on the device where these are.
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) float.
        augmentation: what happens to each image.
    """

    images: ImageSet
    normalise: Callable[[Tensor], Tensor]
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of ((B, 3, H, W) float, (B,) labels) in an order drawn from `generator`."""
        pixels, labels = self.images.pixels, self.images.labels
        order = torch.randperm(len(self), generator=generator).to(pixels.device)
        for chosen in order.split(batch_size):
            yield self._augmented(pixels[chosen], generator), labels[chosen]

    def _augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        recipe = self.augmentation
        if recipe.brightness:
            pixels = brighten(pixels, recipe.brightness, generator)
        return crop_and_flip(self.normalise(pixels), recipe.padding, recipe.flip, generator)


@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor],
    images: ImageSet,
    *,
    device: torch.device,
    batch_size: int = 500,
) -> Tensor:
    """`function` over all images, a batch at a time and without gradients.

    Args:
        function: (B, H, W, 3) uint8 on `device` to a tensor with B rows.

    Returns:
        The rows of all images in order, on the CPU; no rows for no images.
    """
    return torch.cat(
        [function(pixels.to(device)).cpu() for pixels in images.pixels.split(batch_size)]
    )
