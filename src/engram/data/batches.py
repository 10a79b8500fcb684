"""Sources of batches for training, and one pass without gradients for everything else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engram.data.augment import Augmentation, brighten, crop_and_flip, cut_and_scale, moved
from engram.data.images import Images, ImageSet, Picked

__all__ = [
    "AugmentedImages",
    "FeatureDraws",
    "Loss",
    "Recoding",
    "Source",
    "Step",
    "apply",
    "resting_place",
]

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Where a batch stands in its stage; all counts start at 0.

    Attributes:
        batches: of the epoch; the last one may have fewer.
        done: batches before this one, of all epochs.
        updates: batches of the whole stage.
        warmup: of these, the first in which the learning rate rises.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    done: int
    updates: int
    warmup: int

    @property
    def progress(self) -> float:
        """The share of the stage that is done, in [0, 1)."""
        return self.done / self.updates


Loss = Callable[[Tensor, Tensor, Step], dict[str, Tensor]]
"""The named parts of the loss of a batch (inputs, labels, where it stands)."""


class Source(Protocol):
    """What `Trainer.fit` reads: samples in a new random order every epoch."""

    def __len__(self) -> int:
        """Samples in an epoch."""
        ...

    def batches(
        self, batch_size: int, generator: torch.Generator, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (inputs, labels); the last batch may be smaller."""
        ...


class Normaliser(Protocol):
    """What makes pixels a network's input: see `engram.models.normalise`."""

    size: tuple[int, int]
    mean: Tensor

    def floats(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W), in the size that they have."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """The same, scaled to (B, 3, *size)."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Recoding:
    """Some of the images as a codec gives them back, and how often they are drawn so.

    Attributes:
        images: these versions.
        positions: (N,) among them, for each of all images; -1 of one that is as a codec gave it.
        probability: with which an image that has another version is drawn so, anew in every epoch.
    """

    images: ImageSet
    positions: Tensor
    probability: float

    @classmethod
    def of_last(cls, images: ImageSet, count: int, probability: float) -> Recoding:
        """Recoding of the last ones among `count` images."""
        positions = torch.arange(count) - (count - len(images))
        return cls(images, positions.clamp_min(-1), probability)

    def __getitem__(self, chosen: Tensor) -> Recoding:
        return dataclasses.replace(self, positions=self.positions[chosen])

    def to(self, device: torch.device) -> Recoding:
        return Recoding(self.images.to(device), self.positions.to(device), self.probability)

    def swapped(self, pixels: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The pixels (B, H, W, 3) of chosen images, some of them in their other version."""
        drawn = torch.rand(len(chosen), generator=generator) < self.probability
        positions = self.positions[chosen]
        swapped = moved(pixels.device, drawn) & (positions >= 0)
        others = self.images.pixels[positions.clamp_min(0)]
        return torch.where(swapped[:, None, None, None], others, pixels)


@dataclass(frozen=True, eq=False, slots=True)
class AugmentedImages:
    """Images that are shuffled, normalised and augmented a batch at a time, on the device of what
    normalises them.

    The pixels rest there as uint8, or in main memory if they are too many; no worker processes and
    no Python per image.

    Attributes:
        images: what to draw from.
        normalise: pixels to the network's input.
        augmentation: what happens to each image.
        recoding: images of which there is another version, where `images` rest.
    """

    images: Images
    normalise: Normaliser
    augmentation: Augmentation
    recoding: Recoding | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Tensor) -> AugmentedImages:
        """Some of the images, with all else as it is; what is encoded stays so."""
        recoding = None if self.recoding is None else self.recoding[positions]
        picked = Picked(self.images, positions.to(self.images.labels.device))
        return dataclasses.replace(self, images=picked, recoding=recoding)

    def batches(
        self, batch_size: int, generator: torch.Generator, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """((B, 3, H, W) float, (B,) labels) in an order drawn from `generator`, in any epoch."""
        order = torch.randperm(len(self), generator=generator).to(self.images.labels.device)
        for chosen in order.split(batch_size):
            yield self._batch(chosen, generator)

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = self.images[chosen]
        pixels = batch.pixels
        if self.recoding is not None:
            pixels = self.recoding.swapped(pixels, chosen, generator)
        device = self.normalise.mean.device
        return self._augmented(moved(device, pixels), generator), moved(device, batch.labels)

    def _augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        recipe = self.augmentation
        if recipe.brightness:
            pixels = brighten(pixels, recipe.brightness, generator)
        if recipe.least_area < 1:
            whole = self.normalise.floats(pixels)
            x = cut_and_scale(whole, recipe.least_area, generator, self.normalise.size)
        else:
            x = self.normalise(pixels)
        return crop_and_flip(x, recipe.padding, recipe.flip, generator)


def resting_place(count: int, image_size: tuple[int, int], device: torch.device) -> torch.device:
    """Where images that are trained on rest: on the device, or in main memory if all of them,
    decoded, would take more than half of what is free there."""
    height, width = image_size
    return device if 2 * count * height * width * 3 <= free_bytes(device) else CPU


def free_bytes(device: torch.device) -> float:
    """What tensors may still take on a device; infinite where it does not tell."""
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


@dataclass(frozen=True, eq=False, slots=True)
class FeatureDraws:
    """Features of several augmented versions of the same images; an epoch reads one of them.

    Attributes:
        features: (D, N, dim).
        labels: (D, N); every version has an order of its own.
    """

    features: Tensor
    labels: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        function: Callable[[Tensor], Tensor],
        source: Source,
        draws: int,
        generator: Callable[[str], torch.Generator],
        dim: int,
        device: torch.device,
        batch_size: int,
    ) -> FeatureDraws:
        """The features of `draws` epochs of a source.

        Args:
            function: inputs to features (B, dim).
            generator: of random numbers, for a name.
            dim: of the features.
            device: where they are kept.
        """
        features = torch.empty(draws, len(source), dim, device=device)
        labels = torch.empty(draws, len(source), dtype=torch.int64, device=device)
        for draw in range(draws):
            done = 0
            for x, y in source.batches(batch_size, generator(f"draw {draw}"), draw):
                there = slice(done, done + len(y))
                features[draw, there], labels[draw, there] = function(x), y
                done += len(y)
        return cls(features, labels)

    @property
    def nbytes(self) -> int:
        """Bytes that the features take."""
        return self.features.nbytes

    def __len__(self) -> int:
        return self.labels.shape[1]

    def batches(
        self, batch_size: int, generator: torch.Generator, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of ((B, dim), (B,) labels); the versions take turns."""
        draw = epoch % len(self.labels)
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        for chosen in order.split(batch_size):
            yield self.features[draw, chosen], self.labels[draw, chosen]


@torch.no_grad()
def apply(
    function: Callable[[Tensor], Tensor],
    images: Images,
    *,
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """`function` over all images, a batch at a time and without gradients.

    Args:
        function: (B, H, W, 3) uint8 on `device` to a tensor with B rows.

    Returns:
        The rows of all images in order, on the CPU; no rows for no images.
    """
    starts = range(0, max(len(images), 1), batch_size)
    return torch.cat(
        [function(images[start : start + batch_size].pixels.to(device)).cpu() for start in starts]
    )
