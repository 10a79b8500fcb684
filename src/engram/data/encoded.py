"""Images that rest as bytes and are decoded when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engram.data.codecs import Codec
from engram.data.images import ImageSet, Joined, images_at_once
from engram.errors import UserError

__all__ = ["EncodedImages", "recoded"]


@dataclass(frozen=True, eq=False, slots=True)
class EncodedImages:
    """Payloads of one codec with their labels; no more is decoded than is asked for.

    Attributes:
        payloads: one an image.
        labels: (N,), int64, on the device to which decoded pixels go.
    """

    codec: Codec
    payloads: Sequence[bytes]
    labels: Tensor

    @property
    def image_size(self) -> tuple[int, int]:
        return self.codec.image_size

    def __len__(self) -> int:
        return len(self.payloads)

    def __getitem__(self, index: slice | Tensor) -> ImageSet:
        labels = self.labels[index]
        chosen = torch.arange(len(self))[index if isinstance(index, slice) else index.cpu()]
        if not len(chosen):
            return ImageSet.empty(self.image_size).to(labels.device)
        try:
            parts = chosen.split(images_at_once(self.image_size))
            pixels = torch.cat([self._decoded(part.tolist()) for part in parts])
        except ValueError as error:
            raise self._damaged(chosen.tolist()) from error
        return ImageSet(pixels.to(labels.device), labels)

    def __add__(self, other: ImageSet) -> Joined:
        return Joined(self, other)

    def to(self, device: torch.device) -> EncodedImages:
        return replace(self, labels=self.labels.to(device))

    def _decoded(self, positions: Sequence[int]) -> Tensor:
        return self.codec.decode([self.payloads[position] for position in positions])

    def _damaged(self, positions: Sequence[int]) -> UserError:
        """The error that names the first of the payloads that cannot be decoded."""
        for position in positions:
            try:
                self._decoded([position])
            except ValueError as error:
                label = int(self.labels[position])
                rank = int((self.labels[: position + 1] == label).sum())
                return UserError(
                    f"Exemplar {rank} of class {label + 1} (in order of arrival) cannot be decoded "
                    f"as {self.codec.name}: {error}. Was it written with other versions of the "
                    "packages? engram doctor lists those that are here; or begin anew."
                )
        raise AssertionError("images that cannot be decoded together can be one by one")


def recoded(codec: Codec, pixels: Tensor) -> Tensor:
    """Images (N, H, W, 3), uint8, as the codec gives them back."""
    if codec.lossless or not len(pixels):
        return pixels
    parts = pixels.split(images_at_once(codec.image_size))
    return torch.cat([codec.decode(codec.encode(part)) for part in parts])
