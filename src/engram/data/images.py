"""`ImageSet`, the one currency of the package: uint8 pixels with their labels; and data sets."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Dataset",
    "ImageSet",
    "Images",
    "Joined",
    "Picked",
    "checksums",
    "hashed_share",
    "images_at_once",
]

MOST_AT_ONCE = 500
PIXELS_AT_ONCE = MOST_AT_ONCE * 96 * 96


def images_at_once(image_size: tuple[int, int]) -> int:
    """How many images of (height, width) are worked on at a time where nothing is trained: 500
    small ones, 91 of 224 pixels."""
    height, width = image_size
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (height * width)))


class Images(Protocol):
    """Labelled images that are read by position: an `ImageSet`, or what becomes one when read."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor) -> ImageSet: ...

    def __add__(self, other: ImageSet) -> Images: ...

    def to(self, device: torch.device) -> Images: ...


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
                f"pixels must be a uint8 tensor (N, H, W, 3), not {self.pixels.dtype} "
                f"{tuple(self.pixels.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels must be an int64 tensor ({len(self.pixels)},), not {self.labels.dtype} "
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


@dataclass(frozen=True, eq=False, slots=True)
class Dataset:
    """Training and test images of one size, with labels that index `class_names`.

    Raises:
        ValueError: the parts do not fit together.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"{self.name} has two classes of one name.")
        if self.train.image_size != self.test.image_size:
            raise ValueError(
                f"{self.name} has training images of {self.train.image_size} pixels, and test "
                f"images of {self.test.image_size}."
            )
        for label in torch.cat([self.train.labels, self.test.labels]).unique().tolist():
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"{self.name} has label {label}; those of its {len(self.class_names)} classes "
                    f"are 0 to {len(self.class_names) - 1}."
                )


@dataclass(frozen=True, eq=False, slots=True)
class Joined:
    """Two collections read as one, the first one's images first."""

    first: Images
    second: Images

    @property
    def labels(self) -> Tensor:
        return torch.cat([self.first.labels, self.second.labels])

    @property
    def image_size(self) -> tuple[int, int]:
        return self.first.image_size

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        labels = self.labels
        chosen = torch.arange(len(self), device=labels.device)[index]
        in_first = chosen < len(self.first)
        pixels = torch.empty(
            (len(chosen), *self.image_size, 3), dtype=torch.uint8, device=labels.device
        )
        pixels[in_first] = self.first[chosen[in_first]].pixels
        pixels[~in_first] = self.second[chosen[~in_first] - len(self.first)].pixels
        return ImageSet(pixels, labels[chosen])

    def __add__(self, other: ImageSet) -> Joined:
        return Joined(self, other)

    def to(self, device: torch.device) -> Joined:
        return Joined(self.first.to(device), self.second.to(device))


@dataclass(frozen=True, eq=False, slots=True)
class Picked:
    """Some images of a collection, which are read when they are asked for.

    Attributes:
        positions: (N,) among those of `images`.
    """

    images: Images
    positions: Tensor

    @property
    def labels(self) -> Tensor:
        return self.images.labels[self.positions]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.image_size

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        return self.images[self.positions[index]]

    def __add__(self, other: ImageSet) -> Joined:
        return Joined(self, other)

    def to(self, device: torch.device) -> Picked:
        return Picked(self.images.to(device), self.positions.to(device))


def hashed_share(pixels: Tensor, one_in: int) -> Tensor:
    """Every `one_in`-th image, chosen by what it shows: whatever its position and company.

    Args:
        pixels: (B, H, W, 3) uint8.

    Returns:
        (B,) bool.
    """
    return torch.tensor([found % one_in == 0 for found in checksums(pixels)], dtype=torch.bool)


def checksums(pixels: Tensor) -> list[int]:
    """A number for each image that depends on what it shows alone.

    Args:
        pixels: (B, H, W, 3) uint8.
    """
    return [zlib.crc32(image.tobytes()) for image in pixels.cpu().numpy()]
