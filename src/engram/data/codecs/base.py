"""What a codec is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Codec"]


class Codec(ABC):
    """Turns images of one size into bytes and back.

    A payload holds what is different in every image. What is the same in all, such as a file's
    header or a table of frequencies, is `shared` and kept once.

    Args:
        name: as the user gave it; `create_codec` makes the same codec of it again.
        image_size: height and width of the images.

    Attributes:
        lossless: whether pixels come back as they were.
        payload_bytes: of every image, or None where images differ.
        learns: whether `prepare` learns anything.
    """

    lossless: bool
    learns = False
    payload_bytes: int | None = None

    def __init__(self, name: str, image_size: tuple[int, int]) -> None:
        self.name = name
        self.image_size = image_size

    @property
    def shared(self) -> bytes:
        """What decoding needs besides the payload."""
        return b""

    def prepare(self, pixels: Tensor) -> None:  # noqa: B027, most codecs have nothing to learn
        """Learn `shared` from images (N, H, W, 3), uint8, where the codec has anything to learn.

        Called once, with the images of the first task, before anything is encoded.
        """

    def adopt(self, shared: bytes) -> None:
        """Take over the `shared` of a codec of the same name.

        Raises:
            ValueError: it is not of such a codec.
        """
        if shared != self.shared:
            raise ValueError(f"{len(shared)} shared bytes where {len(self.shared)} are needed")

    def cost(self, payload: bytes) -> int:
        """Bytes of a payload and, where lengths differ, of its length: seven bits a byte."""
        if self.payload_bytes is not None:
            return len(payload)
        return len(payload) + max(1, math.ceil(len(payload).bit_length() / 7))

    @abstractmethod
    def encode(self, pixels: Tensor) -> list[bytes]:
        """Images (N, H, W, 3), uint8, to their payloads."""

    @abstractmethod
    def decode(self, payloads: Sequence[bytes]) -> Tensor:
        """At least one payload to images (N, H, W, 3), uint8.

        Raises:
            ValueError: a payload is not one of `encode`, as far as the format can tell. A JPEG scan
                that is cut short decodes to grey; the memory's checksums find that.
        """
