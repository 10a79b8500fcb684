"""Codecs: how one exemplar becomes bytes, and pixels again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from engram.errors import unknown

__all__ = ["CODECS", "Codec", "Raw", "create_codec"]


class Codec(Protocol):
    """Turns one image of a fixed size into bytes and back."""

    name: str
    lossless: bool

    def encode(self, pixels: Tensor) -> bytes:
        """(H, W, 3) uint8 to its payload."""
        ...

    def decode(self, payload: bytes, image_size: tuple[int, int]) -> Tensor:
        """A payload of `encode` to (H, W, 3) uint8.

        Raises:
            ValueError: the payload is not one of an image of that size.
        """
        ...


class Raw:
    """The uint8 pixels themselves: H x W x 3 bytes an image."""

    name = "raw"
    lossless = True

    def encode(self, pixels: Tensor) -> bytes:
        return pixels.numpy().tobytes()

    def decode(self, payload: bytes, image_size: tuple[int, int]) -> Tensor:
        height, width = image_size
        if len(payload) != height * width * 3:
            raise ValueError(
                f"{len(payload)} bytes are not an image of {height}x{width} pixels, "
                f"which takes {height * width * 3}"
            )
        return torch.frombuffer(bytearray(payload), dtype=torch.uint8).reshape(height, width, 3)


CODECS: dict[str, Callable[[], Codec]] = {"raw": Raw}


def create_codec(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        UserError: no codec has that name.
    """
    if name not in CODECS:
        raise unknown("codec", name, CODECS)
    return CODECS[name]()
